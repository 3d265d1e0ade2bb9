"""Whether a sample's members can be used: its image decoded as a run does, its label read."""

from __future__ import annotations

import json
import re
from typing import Literal

from pretrain.view.array import decode_stored
from pretrain.view.decode import decode, is_tiff
from pretrain.view.pixels import DecodeError, Pixels

LABELS = {"cls": "is no class number", "json": "is no json"}


def pixels_of(data: bytes) -> Pixels:
    """An image member's pixels: [H, W, 3] uint8, or an array as it was stored where it is no such image.

    Raises:
        DecodeError: it cannot be decoded, neither in a run of colours nor in one of arrays.
    """
    try:
        return decode(data)
    except DecodeError as failure:
        if failure.kind != "wrong_type" and not is_tiff(data):
            raise
    return decode_stored(data)


def image_trouble(data: bytes) -> tuple[Literal["image", "unchecked"], str] | None:
    """(the kind of finding, why an image cannot be decoded), None if it can."""
    try:
        pixels_of(data)
    except DecodeError as failure:
        if failure.kind == "unsupported":
            return "unchecked", f"cannot be checked: {failure}"
        return "image", f"cannot be decoded: {failure}"
    return None


def label_trouble(extension: str, data: bytes) -> str:
    """Why a label cannot be read, "" if it can or is none."""
    if extension == "cls":
        readable = re.fullmatch(rb"\d{1,9}", data.strip()) is not None
    elif extension == "json":
        try:
            json.loads(data)
            readable = True
        except (ValueError, RecursionError):  # nested too deep
            readable = False
    else:
        return ""
    return "" if readable else f"its {extension} {LABELS[extension]}: {data[:20]!r}"

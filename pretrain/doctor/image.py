"""Whether a sample's members can be used: its image decoded as a run does, its label read."""

from __future__ import annotations

import json
import re

from pretrain.view.array import decode_npy
from pretrain.view.decode import decode
from pretrain.view.pixels import DecodeError, Pixels

LABELS = {"cls": "is no class number", "json": "is no json"}


def pixels_of(extension: str, data: bytes) -> Pixels:
    """An image member's pixels: [H, W, 3] uint8, or an array as it was stored.

    Raises:
        DecodeError: it cannot be decoded.
    """
    return decode_npy(data) if extension == "npy" else decode(data)


def image_trouble(extension: str, data: bytes) -> str:
    """Why an image cannot be decoded, "" if it can."""
    try:
        pixels_of(extension, data)
    except DecodeError as failure:
        return f"cannot be decoded: {failure}"
    return ""


def label_trouble(extension: str, data: bytes) -> str:
    """Why a label cannot be read, "" if it can or is none."""
    if extension == "cls":
        readable = re.fullmatch(rb"\d{1,9}", data.strip()) is not None
    elif extension == "json":
        try:
            json.loads(data)
            readable = True
        except ValueError:
            readable = False
    else:
        return ""
    return "" if readable else f"its {extension} {LABELS[extension]}: {data[:20]!r}"

"""What a decoded image is, and in which ways a file is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

MAX_PIXELS = 64_000_000  # larger images are refused from their header: a bomb of a few kB would fill the memory

Pixels = np.ndarray  # [H, W, C]

Kind = Literal[
    "empty",  # no bytes at all
    "not_an_image",  # of no format that is read
    "truncated",  # ends before its picture does
    "damaged",  # what it says cannot be, or parts of its picture cannot be told
    "too_large",  # of more pixels than are decoded
    "wrong_channels",  # whole, of more or fewer channels than the views have
    "wrong_type",  # whole, of numbers of another type than the views have
    "not_finite",  # whole, with numbers that are nan or infinite
    "unsupported",  # whole as far as can be told, but it takes a library that is not installed
]

TURNS: dict[int, Callable[[Pixels], Pixels]] = {  # EXIF 2.32, tag 0x0112
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


class DecodeError(ValueError):
    """These bytes are no image that can be decoded: `kind` says in which way, for counting, and the sentence why."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind: Kind = kind


def refuse_bombs(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise DecodeError(
            "too_large",
            f"{height}×{width} pixels are more than the {MAX_PIXELS // 1_000_000} million that are decoded",
        )


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """An image the right way up, by the orientation that a camera noted; one that means nothing turns nothing."""
    turn = TURNS.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))

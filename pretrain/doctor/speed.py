"""What one core makes of images before and after they were shrunk: decoded, and cut to one view as MAE does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from pretrain.view import crop
from pretrain.view.decode import DecodeError, decode
from pretrain.view.spec import ViewSpec

_VIEW = ViewSpec(224, scale=(0.2, 1.0))
_ROUNDS = 5


@dataclass(frozen=True)
class Speed:
    """Images a second and core, of as many images as can be decoded both ways: of each, the least time of the rounds
    counts. `ratio` is the median of the rounds' own, in each of which both take turns."""

    images: int
    before: float
    after: float
    ratio: float
    ratio_least: float
    ratio_greatest: float
    rounds: int = _ROUNDS

    def line(self) -> str:
        return (
            f"decoding and cutting one view of {_VIEW.height_width[0]} pixels: {self.before:.0f} images/s a core "
            f"before, {self.after:.0f} after, {self.ratio:.2f} times ({self.ratio_least:.2f} to "
            f"{self.ratio_greatest:.2f}; {self.images} images)"
        )


def compare(before: Sequence[bytes], after: Sequence[bytes]) -> Speed | None:
    """Times both in turn, so that a noisy machine slows both; None if there is nothing to time."""
    pairs = [pair for pair in zip(before, after, strict=True) if all(map(_decodes, pair))]
    if not pairs:
        return None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = [[_seconds([pair[way] for pair in pairs]) for way in (0, 1)] for _ in range(_ROUNDS)]
    finally:
        torch.set_num_threads(threads)
    least = [min(row[way] for row in times) for way in (0, 1)]
    ratios = [old / new for old, new in times]
    return Speed(len(pairs), len(pairs) / least[0], len(pairs) / least[1], median(ratios), min(ratios), max(ratios))


def _seconds(files: Sequence[bytes]) -> float:
    draws = crop.draws(0, torch.arange(len(files)), (_VIEW,))
    start = time.perf_counter()
    for data, numbers in zip(files, draws, strict=True):
        pixels = decode(data)
        height, width = pixels.shape[:2]
        crop.crop(pixels, crop.random_box(numbers[0], height, width, _VIEW), _VIEW)
    return time.perf_counter() - start


def _decodes(data: bytes) -> bool:
    try:
        decode(data)
    except DecodeError:
        return False
    return True

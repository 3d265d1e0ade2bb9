"""Which crops of an image an objective wants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pretrain.records import Problem, refuse


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size given as one side or as two."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


@dataclass(frozen=True)
class ViewSpec:
    """A random resized crop with a flip (Szegedy et al., arXiv 1409.4842), as torchvision's RandomResizedCrop draws it.

    Args:
        size: (height, width) of the view in pixels, or one number for a square.
        count: how many such views of every sample.
        scale: least and greatest share of the image's area that a crop covers.
        ratio: least and greatest width / height of a crop.
        interpolation: of the antialiased resize.
        flip: probability of a horizontal flip.
        mean, std: per channel, of colours between 0 and 1; pixels are normalised by them.
        crop_ratio: for evaluation, the share of the resized image's short side that the central crop covers.
    """

    size: int | Sequence[int]
    count: int = 1
    scale: Sequence[float] = (0.2, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: float = 0.5
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    crop_ratio: float = 0.875

    def __post_init__(self) -> None:
        refuse(self, self.problems(**vars(self)))

    @staticmethod
    def problems(
        size: int | Sequence[int],
        count: int,
        scale: Sequence[float],
        ratio: Sequence[float],
        flip: float,
        mean: Sequence[float],
        std: Sequence[float],
        crop_ratio: float,
        **_: object,
    ) -> Iterator[Problem]:
        if not isinstance(size, int) and len(size) != 2:
            yield "size", "must be one number or [height, width]"
        elif min(pair(size)) < 1:
            yield "size", "must be at least 1"
        if count < 1:
            yield "count", "must be at least 1"
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            yield "scale", "must be two shares of the area, 0 < least ≤ greatest ≤ 1"
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
            yield "ratio", "must be two numbers, 0 < least ≤ greatest"
        if not 0 <= flip <= 1:
            yield "flip", "must be a probability between 0 and 1"
        for name, values in {"mean": mean, "std": std}.items():
            if len(values) != 3:
                yield name, "must be three numbers, for red, green and blue"
        if min(std, default=0) <= 0:
            yield "std", "must be positive"
        if not 0 < crop_ratio <= 1:
            yield "crop_ratio", "must be above 0 and at most 1"

    @property
    def height_width(self) -> tuple[int, int]:
        return pair(self.size)

"""Which crops of an image an objective wants, of which numbers, and what is done to their colours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pretrain.records import Problem, refuse

Numbers = Literal["rgb", "uint8", "uint16", "int16", "float16", "float32"]
RGB_SCALE = 255.0


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size given as one side or as two."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


@dataclass(frozen=True)
class Colors:
    """Random changes of colour, as DINO makes them (Caron et al., arXiv 2104.14294): jitter, grayscale, blur, solarize.

    Each happens to a view with its probability, in this order; after them pixels are normalised.

    Args:
        jitter: probability of changing brightness, contrast, saturation and hue, in a random order.
        brightness, contrast, saturation: of the jitter; a factor lies between max(0, 1 − x) and 1 + x.
        hue: of the jitter: the greatest turn, as a share of the colour circle.
        grayscale: probability of taking all colour away.
        blur: probability of a Gaussian blur; a list gives one for each view of the specification.
        blur_sigma: least and greatest σ of the blur, in pixels of the view.
        solarize: probability of inverting bright values; a list gives one for each view of the specification.
        solarize_threshold: the least value, of 0 to 255, that is inverted.
    """

    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float | Sequence[float] = 0.5
    blur_sigma: Sequence[float] = (0.1, 2.0)
    solarize: float | Sequence[float] = 0.0
    solarize_threshold: int = 128

    def __post_init__(self) -> None:
        refuse(self, self.problems(**vars(self)))

    @staticmethod
    def problems(
        jitter: float,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        grayscale: float,
        blur: float | Sequence[float],
        blur_sigma: Sequence[float],
        solarize: float | Sequence[float],
        solarize_threshold: int,
        **_: object,
    ) -> Iterator[Problem]:
        for name, probability in {"jitter": jitter, "grayscale": grayscale, "blur": blur, "solarize": solarize}.items():
            values = [probability] if isinstance(probability, int | float) else probability
            if not all(0 <= value <= 1 for value in values):
                yield name, "must be a probability between 0 and 1"
        for name, strength in {"brightness": brightness, "contrast": contrast, "saturation": saturation}.items():
            if strength < 0:
                yield name, "must be at least 0"
        if not 0 <= hue <= 0.5:
            yield "hue", "must be between 0 and 0.5, half the colour circle"
        if len(blur_sigma) != 2 or not 0 < blur_sigma[0] <= blur_sigma[1]:
            yield "blur_sigma", "must be two numbers, 0 < least ≤ greatest"
        if not 0 <= solarize_threshold <= 255:
            yield "solarize_threshold", "must be between 0 and 255"


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
        mean, std: per channel, of values between 0 and 1; pixels are normalised by them. So many channels a view has.
        crop_pct: for evaluation, the share of the resized image's short side that the central crop covers.
        colors: random changes of colour; None makes none. Evaluation never makes any.
        pixels: `rgb` makes 8-bit colours of every image. Anything else keeps the numbers of arrays as they are: all
            images must be of this type, and of as many channels as `mean` has, and so are the views.
        full_scale: the number that counts as 1 for `mean` and `std`.
    """

    size: int | Sequence[int]
    count: int = 1
    scale: Sequence[float] = (0.2, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: float = 0.5
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.875
    colors: Colors | None = None
    pixels: Numbers = "rgb"
    full_scale: float = RGB_SCALE

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
        crop_pct: float,
        colors: Colors | Mapping[str, Any] | None = None,
        pixels: str = "rgb",
        full_scale: float = RGB_SCALE,
        **_: object,
    ) -> Iterator[Problem]:
        if not isinstance(size, int) and len(size) != 2:
            yield "size", "must be one number or [height, width]"
        elif min(pair(size)) < 1:
            yield "size", "must be at least 1"
        if count < 1:
            yield "count", "must be at least 1 (null in place of local views leaves them out)"
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            yield "scale", "must be two shares of the area, 0 < least ≤ greatest ≤ 1"
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
            yield "ratio", "must be two numbers, 0 < least ≤ greatest"
        if not 0 <= flip <= 1:
            yield "flip", "must be a probability between 0 and 1"
        yield from _channel_problems(mean, std, pixels, full_scale)
        if min(std, default=0) <= 0:
            yield "std", "must be positive"
        if not 0 < crop_pct <= 1:
            yield "crop_pct", "must be above 0 and at most 1"
        changes = vars(colors) if isinstance(colors, Colors) else {}
        if isinstance(colors, Mapping):  # a node that is not built yet
            changes = vars(Colors()) | dict(colors)
        for name in ("blur", "solarize"):
            chance = changes.get(name)
            if isinstance(chance, Sequence) and len(chance) != count:
                yield (
                    "count",
                    f"is {count}, but `colors.{name}` has {len(chance)} values: give it one number, "
                    f"or a list of {count}",
                )
        undefined = [
            name for name in ("jitter", "grayscale", "solarize") if pixels != "rgb" and _any(changes.get(name))
        ]
        if undefined:
            yield (
                "colors",
                f"{', '.join(undefined)} {'are' if len(undefined) > 1 else 'is'} defined for RGB alone, and `pixels` "
                f"is {pixels}: set to 0, or `colors` to null (blur works for any channels)",
            )

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers of a view before it is normalised."""
        dtype: torch.dtype = getattr(torch, "uint8" if self.pixels == "rgb" else self.pixels)
        return dtype

    @property
    def height_width(self) -> tuple[int, int]:
        return pair(self.size)


def _channel_problems(mean: Sequence[float], std: Sequence[float], pixels: str, full_scale: float) -> Iterator[Problem]:
    for name, values in {"mean": mean, "std": std}.items():
        if pixels == "rgb" and len(values) != 3:
            yield (
                name,
                "must be three numbers, for red, green and blue; images of other channels need `pixels` to say of "
                "which type their numbers are",
            )
    if pixels != "rgb" and (not mean or len(mean) != len(std)):
        yield "mean", "and `std` must have a number for each channel"
    if full_scale <= 0:
        yield "full_scale", "must be positive: the number that counts as 1"
    elif pixels == "rgb" and full_scale != RGB_SCALE:
        yield "full_scale", "is 255 where `pixels` is rgb"


def _any(chances: float | Sequence[float] | None) -> bool:
    """Whether something ever happens, by its probability or by one for each view."""
    return any(chances) if isinstance(chances, Sequence) else bool(chances)

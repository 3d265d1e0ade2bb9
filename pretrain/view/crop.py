"""Crops: random boxes as torchvision's RandomResizedCrop draws them, and the antialiased resize to a view's size.

All boxes of a sample are drawn before it is decoded, from numbers keyed by (seed, g) alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.random import Purpose, uniform
from pretrain.view.spec import ViewSpec

_ATTEMPTS = 10
_DRAWS = 2 * _ATTEMPTS + 2  # area and aspect of each attempt, then top and left


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def draws(seed: int, g: Tensor, specs: Sequence[ViewSpec]) -> np.ndarray:
    """The random numbers of all crops of samples: g [B] → [B, views of a sample, numbers a view]."""
    views = sum(spec.count for spec in specs)
    return uniform(seed, Purpose.CROP, g, views * _DRAWS).view(len(g), views, _DRAWS).double().numpy()


def random_box(numbers: np.ndarray, height: int, width: int, spec: ViewSpec) -> Box:
    """A box of random area and aspect, from `_DRAWS` uniform numbers; a central one if ten attempts do not fit."""
    low, high = math.log(spec.ratio[0]), math.log(spec.ratio[1])
    *attempts, top, left = numbers.tolist()
    for share, aspect in zip(attempts[::2], attempts[1::2], strict=True):
        area = height * width * (spec.scale[0] + share * (spec.scale[1] - spec.scale[0]))
        ratio = math.exp(low + aspect * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(top * (height - h + 1)), int(left * (width - w + 1)), h, w)
    ratio = min(max(width / height, spec.ratio[0]), spec.ratio[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    w, h = max(w, 1), max(h, 1)
    return Box((height - h) // 2, (width - w) // 2, h, w)


def central_box(height: int, width: int, spec: ViewSpec) -> Box:
    """The largest central box of the view's aspect, less the margin that `crop_pct` leaves.

    To cut and resize this box is to resize the short side to size / crop_pct and cut the centre, in one step.
    """
    view_height, view_width = spec.height_width
    scale = spec.crop_pct * min(height / view_height, width / view_width)
    h, w = max(1, round(view_height * scale)), max(1, round(view_width * scale))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def boxes(numbers: np.ndarray | None, height: int, width: int, specs: Sequence[ViewSpec]) -> list[Box]:
    """One box for each view of an image: random ones from a row of `draws`, central ones without."""
    views = [spec for spec in specs for _ in range(spec.count)]
    if numbers is None:
        return [central_box(height, width, spec) for spec in views]
    return [random_box(draws, height, width, spec) for draws, spec in zip(numbers, views, strict=True)]


def crop(pixels: np.ndarray, box: Box, spec: ViewSpec) -> Tensor:
    """A box of an image [H, W, C], resized with antialiasing to the view: [C, h, w] of its type, channels last.

    What is not uint8 is resized in float32; integers are rounded and end at the least and greatest of their type.
    """
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # [1, C, H, W], channels last in memory
    image = image[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
    if (box.height, box.width) != spec.height_width:
        kind = image.dtype
        image = image if kind == torch.uint8 else image.to(torch.float32)
        image = image.contiguous(memory_format=torch.channels_last)  # else torch unpacks channels, here and in the copy
        image = F.interpolate(image, size=spec.height_width, mode=spec.interpolation, antialias=True)
        if kind != torch.uint8 and not kind.is_floating_point:
            image = image.round_().clamp_(torch.iinfo(kind).min, torch.iinfo(kind).max)
        image = image.to(kind)
    return image[0]

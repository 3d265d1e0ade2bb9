"""What is done to views on the device, a whole batch at a time: the flip, changes of colour, and normalisation.

The changes of colour and their order are those of DINO (Caron et al., arXiv 2104.14294, `DataAugmentationDINO`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum
from itertools import permutations

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.random import Purpose, uniform
from pretrain.records import Batch
from pretrain.view import adjust
from pretrain.view.spec import RGB_SCALE, Colors, ViewSpec

_ORDERS = np.array(list(permutations(range(4))))  # [24, 4], all orders of a jitter's operations
_BLUR_RADIUS = 3  # of the kernel, in greatest σ
_CHUNK = 2**19  # numbers that are changed at once on a CPU, so that they stay in its cache
_NOT = 4  # sorts those that an operation is not for behind the others

Array = np.ndarray


class Draw(IntEnum):
    """What the random numbers of a recoloured view are for."""

    JITTER = 0
    BRIGHTNESS = 1
    CONTRAST = 2
    SATURATION = 3
    HUE = 4
    ORDER = 5
    GRAYSCALE = 6
    BLUR = 7
    SIGMA = 8
    SOLARIZE = 9
    FLIP = 10  # the one that views without changes of colour are flipped by


def draws(seed: int, g: Tensor, specs: Sequence[ViewSpec]) -> Tensor | None:
    """Random numbers for changes of colour, g [B] → [B, views of all specs, len(Draw)], or None if there are none."""
    if all(spec.colors is None for spec in specs):
        return None
    views = sum(spec.count for spec in specs)
    colors = uniform(seed, Purpose.COLOR, g, views * Draw.FLIP).view(len(g), views, Draw.FLIP)
    return torch.cat([colors, uniform(seed, Purpose.FLIP, g, views)[..., None]], dim=2)


class Prepare(nn.Module):
    """Views as the loader yields them → float32, flipped and recoloured at random, and normalised.

    Args:
        specs: of the views, one for each tensor of a batch.
        augment: whether to flip and recolour at all; evaluation does not.
    """

    def __init__(self, specs: Sequence[ViewSpec], augment: bool = True) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.augment = augment
        for number, spec in enumerate(self.specs):
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
            self.register_buffer(f"scale{number}", 1 / (spec.full_scale * std), persistent=False)
            self.register_buffer(f"shift{number}", -mean / std, persistent=False)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Batch:
        views, first = [], 0
        numbers = self._numbers(batch)
        for index, (view, spec) in enumerate(zip(batch.views, self.specs, strict=True)):
            end = first + spec.count
            scale, shift = self.get_buffer(f"scale{index}"), self.get_buffer(f"shift{index}")
            if numbers is not None and spec.colors is not None:
                own = numbers[:, first:end].transpose(0, 1)
                recolored = recolor(view, own, spec.flip, spec.colors, spec.full_scale)
                views.append(recolored.mul_(spec.full_scale * scale).add_(shift))
            else:
                if view.dtype != torch.uint8:  # torch can do little with 16 bits
                    view = view.to(torch.float32, memory_format=torch.preserve_format)
                if self.augment and spec.flip > 0:
                    flipped = spec.flip > uniform(batch.seed, Purpose.FLIP, batch.g, end)[:, first:].T  # [V, B]
                    view = torch.where(flipped[..., None, None, None], view.flip(-1), view)
                views.append(view.to(torch.float32, memory_format=torch.preserve_format) * scale + shift)
            first = end
        return replace(batch, views=tuple(views))

    def _numbers(self, batch: Batch) -> Tensor | None:
        """The random numbers of changes of colour, on the host; None where nothing is changed."""
        if not self.augment or all(spec.colors is None for spec in self.specs):
            return None
        return draws(batch.seed, batch.g.cpu(), self.specs) if batch.draws is None else batch.draws


def recolor(views: Tensor, numbers: Tensor, flip: float, colors: Colors, full_scale: float = RGB_SCALE) -> Tensor:
    """Flips and recolours views.

    Args:
        views: [V, B, C, h, w] as they leave the loader.
        numbers: [V, B, len(Draw)], on the host.
        flip: probability of a horizontal flip.
        full_scale: the number that becomes 1.

    Returns:
        [V, B, C, h, w] float32; colours are between 0 and 1.
    """
    chances: dict[Draw, float | Sequence[float]] = {Draw.FLIP: flip, Draw.JITTER: colors.jitter}
    chances |= {Draw.GRAYSCALE: colors.grayscale, Draw.BLUR: colors.blur, Draw.SOLARIZE: colors.solarize}
    rows = numbers.numpy()
    happens = {draw: rows[..., draw] < np.array(chance, np.float32).reshape(-1, 1) for draw, chance in chances.items()}
    images, rows = views.flatten(0, 1), rows.reshape(-1, len(Draw))
    done = torch.empty(images.shape, device=images.device)
    size = max(1, _CHUNK // images[0].numel()) if images.device.type == "cpu" else len(images)
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        chosen = {draw: mask.ravel()[part] for draw, mask in happens.items()}
        _recolor(images[part], rows[part], chosen, colors, full_scale, done[part])
    return done.unflatten(0, views.shape[:2])


def _recolor(
    images: Tensor, numbers: Array, chosen: dict[Draw, Array], colors: Colors, full_scale: float, out: Tensor
) -> None:
    """Images [N, C, h, w] → `out`, by numbers [N, len(Draw)] and whether each operation is for them, [N].

    Before each operation images are sorted so that those it is for come first: which they are, the host knows.
    """
    order = np.arange(len(images))
    images = images.to(torch.float32, memory_format=torch.contiguous_format) * (1 / full_scale)  # a copy of floats, too
    for draw, mask in chosen.items():  # in this order
        kind = adjust.place_of_hue(_orders(numbers)) if draw == Draw.JITTER else 0
        sorting = np.where(mask, kind, _NOT)[order].argsort(kind="stable")
        if (sorting[1:] < sorting[:-1]).any():
            images, order = images.index_select(0, _sent(sorting, images.device)), order[sorting]
        if count := int(mask.sum()):
            images[:count] = _OPERATIONS[draw](images[:count], numbers[order[:count]], colors)
    torch.index_select(images, 0, _sent(order.argsort(), images.device), out=out)


def _sent(values: Array, device: torch.device) -> Tensor:
    """What lies on the host, on a device, without waiting for it."""
    return torch.from_numpy(values).to(device, non_blocking=True)


def _flip(images: Tensor, numbers: Array, colors: Colors) -> Tensor:
    return images.flip(-1)


def _jitter(images: Tensor, numbers: Array, colors: Colors) -> Tensor:
    """Factors are uniform in the ranges of torchvision's ColorJitter."""
    strengths = np.array([colors.brightness, colors.contrast, colors.saturation])
    least, greatest = np.append((1 - strengths).clip(0), -colors.hue), np.append(1 + strengths, colors.hue)
    factors = least + numbers[:, Draw.BRIGHTNESS : Draw.HUE + 1] * (greatest - least)
    return adjust.jitter(images, torch.from_numpy(factors), torch.from_numpy(_orders(numbers)))


def _orders(numbers: Array) -> Array:
    """The orders of the operations of jitters."""
    return _ORDERS[(numbers[:, Draw.ORDER] * len(_ORDERS)).astype(np.int64)]


def _grayscale(images: Tensor, numbers: Array, colors: Colors) -> Tensor:
    return adjust.grayscale(images)


def _blur(images: Tensor, numbers: Array, colors: Colors) -> Tensor:
    least, greatest = colors.blur_sigma
    sigma = (least + numbers[:, Draw.SIGMA] * (greatest - least)).astype(np.float32)
    return adjust.blur(images, _sent(sigma, images.device), math.ceil(_BLUR_RADIUS * greatest))


def _solarize(images: Tensor, numbers: Array, colors: Colors) -> Tensor:
    threshold = float(np.float32(colors.solarize_threshold) * np.float32(1 / 255))  # the very number that a pixel is
    return adjust.solarize(images, threshold)


_OPERATIONS: dict[Draw, Callable[[Tensor, Array, Colors], Tensor]] = {
    Draw.FLIP: _flip,
    Draw.JITTER: _jitter,
    Draw.GRAYSCALE: _grayscale,
    Draw.BLUR: _blur,
    Draw.SOLARIZE: _solarize,
}

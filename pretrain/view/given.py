"""Images as people hand them over (paths, Pillow's images, tensors) → views, cut as evaluation cuts samples of shards.

A file is decoded and cut by the very functions that read shards, so that its pixels are the same. Files are decoded by
threads, a batch ahead of the one that is being looked at.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretrain.records import UserError
from pretrain.view import crop
from pretrain.view.array import array_of, decode_array
from pretrain.view.decode import colors_of
from pretrain.view.pixels import DecodeError, Pixels
from pretrain.view.region import decode_for
from pretrain.view.spec import ViewSpec

Given = str | os.PathLike[str] | Image.Image | Tensor  # one image
_KINDS = "a path, an image of Pillow, or a tensor [C, H, W]"


def views(images: Given | Iterable[Given], spec: ViewSpec, size: int) -> Iterator[Tensor]:
    """Central crops [B, C, h, w] of images in their order, at most `size` at a time; of the type `spec.dtype`.

    Args:
        images: one image, or several of any kinds and sizes; of a tensor [N, C, H, W] each is one. Tensors hold the
            numbers of decoded images: colours 0 to 255 in uint8, unless `spec.pixels` names another type.
        spec: of the view.
        size: images of a batch.

    Raises:
        UserError: there are none, or one of them is no image of the kind that `spec` asks for; it is named.
    """
    numbered = enumerate(_each(images))
    with ThreadPoolExecutor(min(size, os.cpu_count() or 1)) as pool:
        waiting: deque[list[Future[Tensor]]] = deque()
        while group := list(islice(numbered, size)):
            waiting.append([_begun(pool, one, f"image {number}", spec) for number, one in group])
            if len(waiting) > 1:
                yield _together(waiting.popleft())
        if not waiting:
            raise UserError("images: there are none; give paths, images of Pillow, or a tensor")
        for last in waiting:
            yield _together(last)


def _each(images: Given | Iterable[Given]) -> Iterable[Given]:
    if isinstance(images, Tensor):
        return images.unbind() if images.ndim == 4 else [images]
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images]
    if not isinstance(images, Iterable) or isinstance(images, np.ndarray | bytes | dict):
        raise UserError(f"images: type {type(images).__name__} is not taken: give {_KINDS}, or a list of these")
    return images


def _begun(pool: ThreadPoolExecutor, one: Given, name: str, spec: ViewSpec) -> Future[Tensor]:
    """Files are read and decoded by the pool. Pillow's images are not: two threads must not load the same one."""
    if isinstance(one, str | os.PathLike):
        return pool.submit(_of_file, Path(one), spec)
    if isinstance(one, Tensor):
        return pool.submit(_cut, _of_tensor(one, name, spec), spec)
    if not isinstance(one, Image.Image):
        raise UserError(f"{name}: type {type(one).__name__} is not taken: give {_KINDS}")
    if not (one.width and one.height):
        raise UserError(f"{name}, {_shown(one)}: it has no pixels")
    try:
        pixels = colors_of(one) if spec.pixels == "rgb" else array_of(one, spec.channels, np.dtype(spec.pixels))
    except DecodeError as failure:
        raise UserError(f"{name}, {_shown(one)}: {failure}") from None
    return pool.submit(_cut, pixels, spec)


def _together(group: list[Future[Tensor]]) -> Tensor:
    return torch.stack([one.result() for one in group])


def _of_file(path: Path, spec: ViewSpec) -> Tensor:
    try:
        try:
            data = path.read_bytes()
        except ValueError as failure:  # a zero byte in the name
            raise UserError(f"{str(path)!r} cannot be read: {failure}") from None
        if spec.pixels != "rgb":
            return _cut(decode_array(data, spec.channels, np.dtype(spec.pixels)), spec)
        pixels, (box,) = decode_for(data, lambda height, width: [crop.central_box(height, width, spec)])
        return crop.crop(pixels, box, spec)
    except OSError as failure:
        advice = "; give the files in it" if path.is_dir() else ""
        raise UserError(f"`{path}` cannot be read: {failure.strerror or failure}{advice}") from None
    except DecodeError as failure:
        raise UserError(f"`{path}` is no image that can be decoded: {failure}") from None


def _of_tensor(one: Tensor, name: str, spec: ViewSpec) -> Pixels:
    if one.ndim != 3 or one.shape[0] != spec.channels or min(one.shape) < 1:
        raise UserError(
            f"{name}: a tensor of shape {tuple(one.shape)} is none of shape [{spec.channels}, H, W]; several images "
            f"are [N, {spec.channels}, H, W], with channels before rows"
        )
    if one.dtype != spec.dtype:
        raise UserError(
            f"{name}: a tensor of {one.dtype} is not taken: {spec.dtype} holds decoded images, which are cut and "
            "normalised here, and one tensor [N, C, H, W] of floats those that are normalised already"
        )
    return np.ascontiguousarray(one.detach().cpu().permute(1, 2, 0).numpy())


def _cut(pixels: Pixels, spec: ViewSpec) -> Tensor:
    return crop.crop(pixels, crop.central_box(pixels.shape[0], pixels.shape[1], spec), spec)


def _shown(image: Image.Image) -> str:
    """Which of Pillow's images this is: the file that it was opened from, if there is one."""
    name = getattr(image, "filename", "")
    return f"`{name}`" if name else f"{image.width}×{image.height} of mode {image.mode}"

"""No more pixels than the crops of an image need: a rectangle of a JPEG, or all of it at half, a quarter or an eighth.

A rectangle is decoded where the extension in `native/` is installed. Its pixels are those of the whole image, bit for
bit, so that nothing but speed depends on it. Scaled decoding (libjpeg's smaller inverse DCTs) is another low-pass than
the resize from full size, and is done only on request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import simplejpeg

from pretrain.view.crop import Box
from pretrain.view.decode import decode, size_of_upright_jpeg
from pretrain.view.pixels import Pixels

log = logging.getLogger(__name__)

LEAST_TO_SCALE = 1_000_000  # pixels of an image; in smaller ones there is little to save
_WHOLE = 0.9  # share of an image from which on all of it is decoded
_FACTORS = (8, 4, 2)  # those with an inverse DCT made for them; others take longer than full size

Boxes = Callable[[int, int], list[Box]]


def _extension() -> Any:
    try:
        import pretrain_region
    except ModuleNotFoundError:
        return None
    except ImportError as failure:  # its libjpeg is gone, or it was built for another Python
        log.warning("pretrain_region cannot be loaded (%s), images are decoded whole: pip install ./native", failure)
        return None
    return pretrain_region


extension = _extension()


def decode_for(
    data: bytes | memoryview, boxes_of: Boxes, views: Sequence[tuple[int, int]] | None = None
) -> tuple[Pixels, list[Box]]:
    """Bytes of an image file → pixels that hold all boxes of it, and where in them the boxes lie.

    Args:
        data: the file.
        boxes_of: the boxes of an image of (height, width); called with the size of the whole image.
        views: (height, width) of the view that is made of each box, if the image may be decoded at a smaller scale.

    Raises:
        DecodeError: truncated, damaged, too large, or no image at all.
    """
    size = size_of_upright_jpeg(data) if extension is not None or views is not None else None
    boxes = [] if size is None else boxes_of(*size)
    if size is not None:
        factor = 1 if views is None else scale_factor(size, boxes, views)
        found = _scaled(data, size, boxes, factor) if factor > 1 else _region(data, size, boxes)
        if found is not None:
            return found
    pixels = decode(data)
    return pixels, boxes if pixels.shape[:2] == size else boxes_of(*pixels.shape[:2])


def scale_factor(size: tuple[int, int], boxes: Sequence[Box], views: Sequence[tuple[int, int]]) -> int:
    """By how much an image can be decoded smaller so that every box still is no smaller than its view."""
    if size[0] * size[1] < LEAST_TO_SCALE:
        return 1
    for factor in _FACTORS:
        smaller = [scaled_box(box, factor) for box in boxes]
        if all(b.height >= h and b.width >= w for b, (h, w) in zip(smaller, views, strict=True)):
            return factor
    return 1


def scaled_box(box: Box, factor: int) -> Box:
    """The box in an image that is so many times smaller: each edge at the nearest pixel, half a pixel off at most."""
    top, left, bottom, right = (
        (2 * edge + factor) // (2 * factor) for edge in (box.top, box.left, box.top + box.height, box.left + box.width)
    )
    return Box(top, left, bottom - top, right - left)


def _scaled(
    data: bytes | memoryview, size: tuple[int, int], boxes: Sequence[Box], factor: int
) -> tuple[Pixels, list[Box]] | None:
    height, width = (-(-side // factor) for side in size)
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=height, min_width=width)
    except (ValueError, KeyError):  # damaged: `decode` tells how badly
        return None
    assert pixels.shape == (height, width, 3)
    return pixels, [scaled_box(box, factor) for box in boxes]


def _region(data: bytes | memoryview, size: tuple[int, int], boxes: Sequence[Box]) -> tuple[Pixels, list[Box]] | None:
    """None where the extension is missing or refuses the file, and where there is little to be saved."""
    top, left = min(box.top for box in boxes), min(box.left for box in boxes)
    height = max(box.top + box.height for box in boxes) - top
    width = max(box.left + box.width for box in boxes) - left
    if extension is None or height * width > _WHOLE * size[0] * size[1]:
        return None
    found = extension.decode(data, top, left, height, width)
    if found is None:
        return None
    buffer, first, columns = found  # whole blocks, hence more columns than were asked for
    pixels = np.frombuffer(buffer, np.uint8).reshape(height, columns, 3)[:, left - first :][:, :width]
    return pixels, [box._replace(top=box.top - top, left=box.left - left) for box in boxes]

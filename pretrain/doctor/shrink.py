"""An image made smaller: its short side to a given length, as JPEG.

Pixels are those that a run decodes (`pretrain/view/decode.py`): the noted orientation is applied and a colour profile
is not, so EXIF and profile go. The resize is the crops' own, torch's antialiased uint8 bicubic.
"""

from __future__ import annotations

import io
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image

from pretrain.view.array import loses_bits
from pretrain.view.decode import DecodeError, decode

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # the others, of 16 bits say, would lose something
_JPEGS = ("jpg", "jpeg")
_LONGEST = 65_500  # pixels of a side of a JPEG, as libjpeg writes them


class Shrunk(NamedTuple):
    """An image member: what became of it, its extension and its bytes."""

    how: Literal["resized", "small", "other"]
    extension: str
    data: bytes


def shrink(extension: str, data: bytes, short_side: int, quality: int) -> Shrunk:
    """An image whose short side has at most `short_side` pixels; one that has stays as it is, byte by byte.

    What cannot be decoded, has more than 8 bits a channel, is an array, or is too long for a JPEG, stays as it is too.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode, size, deep = image.mode, image.size, loses_bits(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return Shrunk("other", extension, data)
    if mode not in _MODES or deep:
        return Shrunk("other", extension, data)
    if min(size) <= short_side:
        return Shrunk("small", extension, data)
    try:
        pixels = decode(data)
    except DecodeError:
        return Shrunk("other", extension, data)
    pixels = resized(pixels, short_side)
    if max(pixels.shape) > _LONGEST:
        return Shrunk("other", extension, data)
    grey = mode in ("1", "L")
    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels[..., :1] if grey else pixels),
        quality=quality,
        colorspace="GRAY" if grey else "RGB",
        colorsubsampling="Gray" if grey else "420",
    )
    first, _, last = extension.rpartition(".")
    kept = extension if last in _JPEGS else f"{first}.jpg".lstrip(".")
    return Shrunk("resized", kept, encoded)


def resized(pixels: np.ndarray, short_side: int) -> np.ndarray:
    """[H, W, 3] uint8 → [h, w, 3] of the same aspect, to the pixel, with the shorter of h and w as given."""
    height, width = pixels.shape[:2]
    scale = short_side / min(height, width)
    size = tuple(short_side if side == min(height, width) else round(side * scale) for side in (height, width))
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # [1, 3, H, W], channels last in memory
    return F.interpolate(image, size=size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()

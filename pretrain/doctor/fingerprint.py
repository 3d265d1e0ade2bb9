"""What of an image is compared with others: two hashes that find copies, and two that find images that look the same.

The perceptual hash is the signs of the 63 lowest frequencies of the grey image's cosine transform at 32×32 pixels
(Zauner, Implementation and benchmarking of perceptual image hash functions, 2010, takes 64 in a square and their
median). It names candidates; a colour thumbnail then decides (`near.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pretrain.doctor.image import pixels_of
from pretrain.view.decode import DecodeError

THUMBNAIL = 16  # pixels of its side
_SIDE = 32
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_TIMES = np.arange(_SIDE)
_COSINES = np.cos(np.pi * (2 * _TIMES[None] + 1) * _TIMES[:, None] / (2 * _SIDE)).astype(np.float32)
_LOWEST = sorted(
    ((row, column) for row in range(11) for column in range(11) if row + column), key=lambda at: (sum(at), at)
)[:63]
_ROWS, _COLUMNS = map(list, zip(*_LOWEST, strict=True))


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of an image's bytes and of its pixels (b"" where they cannot be decoded), the 63 signs as a number, and a
    thumbnail [16, 16, 3] (None where it is no uint8 RGB image)."""

    content: bytes
    pixels: bytes
    signs: int = 0
    thumbnail: NDArray[np.uint8] | None = None


def fingerprint(data: bytes) -> Fingerprint:
    """Of the bytes of an image member."""
    content = hashlib.sha256(data).digest()
    try:
        pixels = pixels_of(data)
    except DecodeError:
        return Fingerprint(content, b"")
    whole = hashlib.sha256(repr((pixels.shape, pixels.dtype.str)).encode())
    whole.update(np.ascontiguousarray(pixels).data)
    if pixels.dtype != np.uint8 or pixels.shape[2:] != (3,):
        return Fingerprint(content, whole.digest())
    small = _small(pixels)
    cells = small.reshape(THUMBNAIL, _SIDE // THUMBNAIL, THUMBNAIL, _SIDE // THUMBNAIL, 3)
    return Fingerprint(content, whole.digest(), signs(small), cells.mean((1, 3)).round().astype(np.uint8))


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[H, W, 3] → [32, 32, 3], antialiased."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return (
        F.interpolate(image, size=(_SIDE, _SIDE), mode="bilinear", antialias=True)[0].permute(1, 2, 0).float().numpy()
    )


def signs(small: NDArray[np.float32]) -> int:
    """[32, 32, 3] → the signs of the 63 lowest frequencies but the constant one, the lowest in the highest bit."""
    frequencies = (_COSINES @ (small @ _LUMA) @ _COSINES.T)[_ROWS, _COLUMNS]
    return int.from_bytes(np.packbits(frequencies > 0, bitorder="big").tobytes(), "big")

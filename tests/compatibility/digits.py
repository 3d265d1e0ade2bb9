"""Shards of scikit-learn's handwritten digits whose every byte is decided here.

A run remembers the SHA-256 of its shards. For a run of an older version to go on with shards that a test makes, these
must have the same bytes on every machine. So images are uncompressed BMPs: encoders of PNG differ between releases.
"""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

_PARTS = {"train": (60, 40, 28), "val": (64,)}  # samples of each shard


def write_digits(folder: Path) -> None:
    """Writes `train-*.tar` and `val-*.tar` with labels, of the first digits in scikit-learn's order."""
    digits, number = load_digits(), 0
    folder.mkdir(parents=True)
    for part, counts in _PARTS.items():
        for shard, count in enumerate(counts):
            with tarfile.open(folder / f"{part}-{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                for key in range(number, number + count):
                    _add(tar, f"{key:04d}.bmp", _bmp(digits.images[key]))
                    _add(tar, f"{key:04d}.cls", str(digits.target[key]).encode())
            number += count


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # of nobody, at the time 0
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _bmp(digit: np.ndarray[Any, Any]) -> bytes:
    """A digit [8, 8] of 17 shades as an image [16, 16] of 24 bits a pixel."""
    gray = (digit.astype(np.uint16) * 255 // 16).astype(np.uint8)
    pixels = gray.repeat(2, axis=0).repeat(2, axis=1)
    height, width = pixels.shape
    rows = pixels[::-1, :, None].repeat(3, axis=2).tobytes()  # a BMP begins with the lowest row
    file = struct.pack("<2sIHHI", b"BM", 54 + len(rows), 0, 0, 54)
    image = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(rows), 2835, 2835, 0, 0)
    return file + image + rows

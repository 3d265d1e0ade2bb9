"""Small shards made by the tests: each image's colour says which sample it is."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def image_bytes(number: int, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    """An image of one colour, (number // 256, number % 256, 0)."""
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    pixels[:] = (number // 256, number % 256, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar with these members."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, counts: Sequence[int], labels: bool = True) -> list[str]:
    """Shards of so many samples; sample i of all has key and colour i and label i % 10."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, number = [], 0
    for shard, count in enumerate(counts):
        members = []
        for _ in range(count):
            members.append((f"{number:05d}.png", image_bytes(number)))
            if labels:
                members.append((f"{number:05d}.cls", str(number % 10).encode()))
            number += 1
        paths.append(str(write_tar(folder / f"s-{shard:06d}.tar", members)))
    return paths

"""The reader's memory: within the bound that the documentation states, and no more after many epochs than after one."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from pretrain.data.module import ShardData
from pretrain.data.stream.loader import READERS
from pretrain.data.stream.order import Shuffle
from pretrain.view.spec import ViewSpec
from tests.data.shards import write_shards, write_tar

VIEW = ViewSpec(64)
BATCH, THREADS, PREFETCH = 16, 2, 2
SHUFFLE = Shuffle(streams=2, run_length=2, run_window=8, window=8)
SLACK = 40  # MB: what the interpreter and torch's libraries allocate when they first decode a large image


def resident(folder: Path, epochs: int, num_samples: int) -> list[float]:
    """MB that are the reader's alone, after each of so many epochs."""
    data = ShardData(str(folder), num_workers=THREADS, prefetch=PREFETCH, shuffle=SHUFFLE, index_dir=str(folder / "i"))
    batches, values = iter(data.batches(0, 0, BATCH, [VIEW])), []
    for _ in range(epochs):
        for _ in itertools.islice(batches, num_samples // BATCH):
            pass
        (reader,) = READERS
        status = Path(f"/proc/{reader.pid}/status").read_text()
        values.append(int(status.split("RssAnon:")[1].split()[0]) / 1024)
    batches.close()  # type: ignore[attr-defined]
    return values


def test_memory_is_flat_over_epochs_and_within_its_bound(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    members, sizes = [], []
    for number in range(48):
        height, width = (int(side) for side in draw.integers(200, 900, 2))
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "JPEG", quality=90)
        members.append((f"{number:05d}.jpg", file.getvalue()))
        sizes.append(3 * height * width)
    (tmp_path / "large").mkdir()
    write_tar(tmp_path / "large" / "s-000000.tar", members)
    write_shards(tmp_path / "small", [48])
    base = min(resident(tmp_path / "small", 1, 48))
    after = resident(tmp_path / "large", 6, 48)
    held = 2 * SHUFFLE.streams * SHUFFLE.window * sum(len(data) for _, data in members) / len(members)
    bound = (held + 2 * THREADS * max(sizes)) / 1e6
    assert max(after) - base < bound + SLACK, (base, after, bound)
    assert after[-1] - after[2] < 12, after

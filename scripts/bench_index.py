"""Times the index of many shards: how fast it is built, in how much memory, and how long it takes to open.

    python scripts/bench_index.py shards=10000 processes=[0,4] out=index.json

Writes small shards of noise to a temporary folder and builds their index there, once for each entry of `processes`
(0: threads of one process). `scanned` are shards/s and the processor time of it all; `memory` is in MB: by how much
the largest resident set of this process grew, and that of the largest of its helpers (Linux). `opened` are
milliseconds, best and median of `rounds`: the first time, by the sidecars' headers, then by the list's table, by the
index beside shards, and what it takes to send an index to another process. `processor` beside them is the least
processor time, for machines that others use too.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from pretrain.config.arguments import script
from pretrain.data.shard import crew, listing
from pretrain.data.shard.index import open_index, write_index
from pretrain.data.shard.sidecar import scan
from pretrain.files import replace_file
from pretrain.records import UserError


@dataclass(frozen=True)
class Arguments:
    shards: int = 10_000
    samples: int = 10  # of a shard
    image_bytes: int = 600
    processes: list[str] = field(default_factory=lambda: ["0", "4"])
    rounds: int = 15
    folder: str | None = None  # where the temporary folder is made
    out: str | None = None


def main(a: Arguments) -> None:
    if min(a.shards, a.samples, a.image_bytes, a.rounds) < 1 or not all(word.isdecimal() for word in a.processes):
        raise UserError("shards, samples, image_bytes and rounds must be at least 1, and processes a list of numbers")
    with tempfile.TemporaryDirectory(dir=a.folder) as name:
        urls = write(Path(name, "shards"), a)
        built = {f"processes={word}": build(urls, Path(name, "built"), int(word)) for word in a.processes}
        result = {"scanned": built, "opened": openings(urls, Path(name), a.rounds)}
    result["run"] = asdict(a) | {"python": platform.python_version(), "cores": os.cpu_count()}
    print(json.dumps(result, indent=1))
    if a.out is not None:
        replace_file(Path(a.out), json.dumps(result, indent=1).encode())


def write(folder: Path, a: Arguments) -> list[str]:
    """Shards of noise that is called png: only its place is looked at."""
    folder.mkdir()
    noise = np.random.default_rng(0).bytes(a.image_bytes)

    def one(number: int) -> str:
        path = folder / f"train-{number:06d}.tar"
        with webdataset.TarWriter(str(path), encoder=False, mtime=0) as tar:
            for sample in range(a.samples):
                tar.write({"__key__": f"{number:06d}{sample:06d}", "png": noise, "cls": b"3"})
        return str(path)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, range(a.shards)))


def build(urls: Sequence[str], folder: Path, processes: int) -> dict[str, Any]:
    """One build from nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    before, start, memory = os.times(), time.perf_counter(), peak(os.getpid())
    with Watch() as watch:
        crew.scan_all(listing.sidecars(urls, folder), processes=processes)
    seconds, after = time.perf_counter() - start, os.times()
    names = ("user", "system", "children_user", "children_system")
    processor = sum(getattr(after, name) - getattr(before, name) for name in names)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "shards_per_second": round(len(urls) / seconds, 1),
        "processor_ms_a_shard": round(1000 * processor / len(urls), 3),
        "memory": {"grown": peak(os.getpid()) - memory, "helper": watch.most},
        "bytes_a_shard": round(size / len(urls)),
    }


def peak(process: int) -> int:
    """The largest resident set that a process has had, in MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


class Watch:
    """Looks at the memory of this process's children while a block runs."""

    def __enter__(self) -> Watch:
        self.most = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.1):
            for child in multiprocessing.active_children():
                with contextlib.suppress(OSError):
                    self.most = max(self.most, peak(child.pid or 0))


def openings(urls: Sequence[str], folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Times to open an index that is there, over the one that was built last."""
    cache = folder / "built"
    index = open_index(urls, str(cache))

    def first() -> None:
        shutil.rmtree(cache / "lists")
        open_index(urls, str(cache))

    sent = pickle.dumps(index)
    result = {
        "by_headers": timed(first, rounds),
        "by_table": timed(lambda: open_index(urls, str(cache)), rounds),
        "to_another_process": timed(lambda: pickle.loads(pickle.dumps(index)), rounds) | {"bytes": len(sent)},
    }
    shards = [scan(url, Path(f"{url}.idx")) for url in urls]
    write_index(Path(urls[0]).parent, shards)
    return result | {"beside": timed(lambda: open_index(urls, str(folder / "unused")), rounds)}


def timed(call: Callable[[], object], rounds: int) -> dict[str, float]:
    """Milliseconds of a call."""
    seconds, processor = [], []
    for _ in range(rounds):
        start, used = time.perf_counter(), time.process_time()
        call()
        seconds.append(1000 * (time.perf_counter() - start))
        processor.append(1000 * (time.process_time() - used))
    values = {"best": min(seconds), "median": statistics.median(seconds), "processor": min(processor)}
    return {name: round(value, 2) for name, value in values.items()}


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

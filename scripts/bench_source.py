"""Times reading shards from a server that answers late, with and without a cache, against a local disk, in one run.

    python scripts/bench_source.py data=SHARDS latency=0.1 copies=50 out=source.json

A server of this machine serves the shards, `copies` times under other names so that there are as many as the order
wants to mix, and waits `latency` seconds before each answer. `local` is an epoch of the same files from disk, `remote`
one from the server, and `as_local` one from the server with as few threads as for a disk, which ask no further ahead;
`first` and `second` are two epochs of a reader that keeps copies in a cache. `rate` are the images a second that the
loader makes MAE's view of, `supply` the samples a second that arrive if they are not decoded, each once the first batch
is there; `first_batch` the seconds until it is, `requests` those that the server was asked, a sample. Indexes are made
beforehand, without the wait. Server and reader share the cores.
"""

from __future__ import annotations

import http.server
import json
import multiprocessing
import os
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pretrain.config.arguments import script
from pretrain.data.opening import open_shards
from pretrain.data.shard.index import Index
from pretrain.data.store import source
from pretrain.data.stream.order import Order, Shuffle
from pretrain.data.stream.reader import BatchStream
from pretrain.data.stream.windows import Numbers, Windows
from pretrain.records import UserError
from pretrain.view.spec import ViewSpec

MAE = (ViewSpec(224, scale=(0.2, 1.0)),)


@dataclass(frozen=True)
class Arguments:
    data: str
    latency: float = 0.1
    copies: int = 50
    batch: int = 64
    workers: int = 2
    out: str | None = None


# ── the server ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ranges of files, late, and counts; `/requests` tells and resets the count, `/latency/1` sets the wait."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    folder: Path
    latency = 0.0
    requests = 0

    def do_GET(self) -> None:
        kind, server = self.path.split("/")[1], type(self)
        if kind in ("requests", "latency"):
            told, server.requests = server.requests, 0
            if kind == "latency":
                server.latency = float(self.path.split("/")[2])
            self._answer(200, str(told).encode())
            return
        server.requests += 1  # threads may miss one another's count by one, which does not matter here
        time.sleep(self.latency)
        with open(self.folder / kind, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            wanted = self.headers.get("Range")
            start, stop = (int(word) for word in wanted.removeprefix("bytes=").split("-")) if wanted else (0, size - 1)
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(stop + 1 - start))
            self.send_header("Content-Range", f"bytes {start}-{stop}/{size}")
            self.end_headers()
            self.connection.sendfile(file, start, stop + 1 - start)

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A reader that ends while it is being served is no news."""


def _serve(folder: Path, told: Connection) -> None:
    with Server(("127.0.0.1", 0), type("H", (Handler,), {"folder": folder})) as server:
        told.send(server.server_port)
        server.serve_forever()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server of the folder, in a process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(folder, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.kill()
        process.join()


def ask(address: str) -> int:
    """What the server answers: how many requests there were since it was last asked."""
    with urllib.request.urlopen(address, timeout=60) as response:
        return int(response.read())


# ── what is timed ────────────────────────────────────────────────────────────────────────────────────────────────────


class AsLocal(BatchStream):
    """Reads from a server as from a disk: with few threads, and asking no further ahead."""

    @property
    def remote(self) -> bool:
        return False


def stream_of(index: Index, a: Arguments, epochs: int = 1, kind: type[BatchStream] = BatchStream) -> BatchStream:
    order = Order(index.counts, 0, Shuffle())
    return kind(index, order, Numbers(0, 1, a.batch, epochs * index.num_samples), MAE, threads=a.workers)


def rate(stream: BatchStream) -> Iterator[int]:
    """The sizes of the whole loader's batches."""
    return (len(batch) for batch in stream)


def supply(stream: BatchStream) -> Iterator[int]:
    """Those of batches whose samples are only fetched, in the loader's order."""
    with ThreadPoolExecutor(stream.readers) as readers:
        windows = Windows(stream.index, stream.order, stream.numbers, readers)
        for gs in windows.ahead(stream.numbers.batches(), stream.reach):
            for g in gs:
                windows.take(g)
            yield len(gs)


def epochs_of(sizes: Iterator[int], epoch: int, count: Callable[[], int]) -> Iterator[dict[str, float]]:
    """Each epoch's seconds until its first batch, samples a second after that, and requests a sample."""
    while True:
        start = time.perf_counter()
        if not (size := next(sizes, 0)):
            return
        first, seen = time.perf_counter(), 0
        while size and seen + size < epoch:
            seen += size
            size = next(sizes, 0)
        seconds = time.perf_counter() - first
        yield {"first_batch": first - start, "rate": seen / seconds, "requests": count() / epoch}


def main(arguments: Arguments) -> None:
    a = arguments
    refused = [f"{name} must be at least 1" for name in ("copies", "batch", "workers") if getattr(a, name) < 1]
    if a.latency < 0:
        refused.append("latency must not be negative")
    if refused:
        raise UserError("; ".join(refused))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        result = compare(a, folder, copied(a, folder / "shards"))
    show(result)
    if a.out is not None:
        Path(a.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def copied(a: Arguments, folder: Path) -> list[str]:
    """The names of the shards' copies."""
    folder.mkdir()
    names: list[str] = []
    for shard in open_shards(a.data, prefix="").shards:
        if not source.is_local(shard.url):
            raise UserError(f"data={a.data} is not on a local disk")
        for copy in range(a.copies):
            names.append(f"{copy:04d}-{len(names):06d}.tar")
            shutil.copy(shard.url, folder / names[-1])
    return sorted(names)


def compare(a: Arguments, folder: Path, names: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with serving(folder / "shards") as server, tqdm(total=10, desc="epochs", disable=None) as bar:
        local = open_shards(str(folder / "shards"), str(folder / "index"), prefix="")
        remote = open_shards([f"{server}/{name}" for name in names], str(folder / "index"), prefix="")
        if local.num_samples <= a.batch:
            raise UserError(
                f"{local.num_samples} samples are no two batches of {a.batch}: raise copies, or lower batch"
            )
        ask(f"{server}/latency/{a.latency}")
        for work in (supply, rate):
            cached = Index(remote.shards, source.access_of(None, str(folder / f"{work.__name__}-cache"), "1TB"))
            for index, epochs in (
                (local, ["local"]),
                (remote, ["as_local"]),
                (remote, ["remote"]),
                (cached, ["first", "second"]),
            ):
                ask(f"{server}/requests")
                kind = AsLocal if epochs == ["as_local"] else BatchStream
                sizes = work(stream_of(index, a, len(epochs), kind))
                timed = epochs_of(sizes, index.num_samples, lambda: ask(f"{server}/requests"))
                for name, found in zip(epochs, timed, strict=True):
                    result.setdefault(name, {})[work.__name__] = found
                    bar.update()
        stream = stream_of(remote, a)
        result["run"] = {name: value for name, value in vars(a).items() if name not in ("data", "out")}
        result["run"] |= {"shards": len(names), "samples": remote.num_samples, "torch": torch.__version__}
        result["run"] |= {"readers": stream.readers, "batches_ahead": stream.reach}
    return result


def show(result: dict[str, Any]) -> None:
    local = result["local"]
    for name in ("local", "as_local", "remote", "first", "second"):
        whole, bare = result[name]["rate"], result[name]["supply"]
        print(
            f"{name:9s} rate {whole['rate']:5.0f} images/s ({whole['rate'] / local['rate']['rate']:.2f} of local)   "
            f"supply {bare['rate']:6.0f} samples/s   first batch {whole['first_batch']:5.2f} s   "
            f"{whole['requests']:.3f} requests a sample"
        )


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

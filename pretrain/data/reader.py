"""Samples of the order, read run by run, decoded by threads, and put together as batches.

One reader serves one device. It walks its own numbers g in order; the first g of a window asks for the bytes of all
of the window's samples that this reader will need, neighbours in one range read, and they are held compressed until
they are used. Decoding and resizing release Python's lock, so threads scale. Memory: streams × window × mean bytes
of a sample (twice that while windows overlap), and `ahead` batches of pixels.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from pretrain.data.index import Index
from pretrain.data.order import SampleOrder
from pretrain.data.ring import Ring, empty_views
from pretrain.data.sample import IMAGES
from pretrain.data.sidecar import Part
from pretrain.data.source import Reader, is_remote
from pretrain.records import Batch, Replaced
from pretrain.view import color, crop
from pretrain.view.array import decode_array
from pretrain.view.pixels import DecodeError, Pixels
from pretrain.view.region import decode_for
from pretrain.view.spec import ViewSpec

_IO_THREADS = 8
_REMOTE_THREADS = 64  # that read from a network: they do nothing but wait
_GAP = 4  # a range read goes on over members that it does not need if there are fewer than this
_REPLACEMENTS = 16  # broken samples in a row before a shard list is given up


class BrokenDataError(ValueError):
    """So many samples cannot be decoded that the data must be wrong."""


@dataclass(frozen=True)
class Numbers:
    """Which samples a reader fetches: start, start + step, …, below `stop`, in batches of `batch`."""

    start: int
    step: int
    batch: int
    stop: int | None = None

    def has(self, g: int) -> bool:
        below = self.stop is None or g < self.stop
        return below and g >= self.start and (g - self.start) % self.step == 0

    def batches(self) -> Iterator[range]:
        first = self.start
        while self.stop is None or first < self.stop:
            end = first + self.batch * self.step
            yield range(first, end if self.stop is None else min(end, self.stop), self.step)
            first = end


class Windows:
    """The compressed bytes of samples, fetched a window at a time and let go one by one."""

    def __init__(self, index: Index, order: SampleOrder, numbers: Numbers, executor: Executor) -> None:
        self.index, self.order, self.numbers = index, order, numbers
        self.reader = Reader(index.access)
        self._executor = executor
        self._lock = threading.Lock()
        self._asked: dict[tuple[int, int, int], int] = {}  # window → samples of it still to come
        self._samples: dict[int, tuple[int, int, Future[dict[int, bytes]]]] = {}  # g → shard, member, bytes of the run

    def ahead(self, batches: Iterable[range], reach: int) -> Iterator[range]:
        """The batches, each once what it and the `reach` after it need has been asked for."""
        asked: deque[range] = deque()
        for gs in batches:
            for g in gs:
                self.ask(g)
            asked.append(gs)
            if len(asked) > reach:
                yield asked.popleft()
        yield from asked

    def ask(self, g: int) -> None:
        """Starts reading the window of g, if that has not been done. Call in the order of g."""
        epoch, stream, offset = self.order.place(g)
        window, inside = self.order.window_at(stream, offset)
        key = (epoch, stream, window)
        if key not in self._asked:
            self._asked[key] = self._fetch(epoch, stream, window, inside)
        self._asked[key] -= 1
        if not self._asked[key]:
            del self._asked[key]

    def take(self, g: int) -> tuple[int, int, dict[str, bytes]]:
        """(shard, member, extension → bytes) of sample g, which was asked for; waits until they are here."""
        with self._lock:
            shard, member, run = self._samples.pop(g)
        data = run.result()
        parts = self.index.parts(shard, member)
        return shard, member, {part.extension: data.pop(part.start) for part in parts}

    def read(self, shard: int, member: int) -> dict[str, bytes]:
        """The bytes of any one sample, read now."""
        parts = self.index.parts(shard, member)
        data = self._read_run(shard, parts)
        return {part.extension: data[part.start] for part in parts}

    def _fetch(self, epoch: int, stream: int, window: int, inside: int) -> int:
        """Starts reading what this reader needs of a window from place `inside` on; returns how many samples."""
        samples = self.order.window(epoch, stream, window)
        visits = self.order.numbers(epoch, stream, window)
        wanted = [
            (int(samples.shards[place]), int(samples.members[place]), visits[place])
            for place in range(inside, len(visits))
            if self.numbers.has(visits[place])
        ]
        for run in neighbours(sorted(wanted)):
            shard = run[0][0]
            parts = [part for _, member, _ in run for part in self.index.parts(shard, member)]
            future = self._executor.submit(self._read_run, shard, parts)
            with self._lock:
                self._samples.update({number: (shard, member, future) for _, member, number in run})
        return len(wanted)

    def _read_run(self, shard: int, parts: Sequence[Part]) -> dict[int, bytes]:
        """One range read for all parts: start of each → its bytes."""
        where = self.index.shards[shard]
        start, stop = min(part.start for part in parts), max(part.stop for part in parts)
        data = memoryview(self.reader.read(where.url, start, stop, where.size))
        return {part.start: bytes(data[part.start - start : part.stop - start]) for part in parts}


def neighbours(samples: Sequence[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Splits sorted (shard, member, g) where the next member is further away than reading through pays."""
    run: list[tuple[int, int, int]] = []
    for sample in samples:
        if run and (sample[0] != run[-1][0] or sample[1] - run[-1][1] > _GAP):
            yield run
            run = []
        run.append(sample)
    if run:
        yield run


@dataclass
class BatchStream(IterableDataset[Batch]):
    """Batches of views in the order of g, without end unless `numbers.stop` is given.

    Args:
        index, order: of the shards.
        numbers: which g this reader fetches.
        specs: the views of every sample.
        random: whether crops are random; if not, there is one central crop a view.
        threads: that decode; 0 means none: everything happens when a batch is asked for.
        ahead: batches that are being decoded at once.
        ring: whose slots are filled, if the batches go to another process; each then leaves by `ring.pack`.
        scaled: whether large JPEGs may be decoded at a smaller scale.
    """

    index: Index
    order: SampleOrder
    numbers: Numbers
    specs: tuple[ViewSpec, ...]
    random: bool = True
    threads: int = 0
    ahead: int = 2
    ring: Ring | None = None
    scaled: bool = False

    def __iter__(self) -> Iterator[Batch]:
        with ThreadPoolExecutor(self.readers) as readers, _pool(self.threads) as pool:
            windows = Windows(self.index, self.order, self.numbers, readers if self.threads else Inline())
            pending: deque[Callable[[], Batch]] = deque()
            batches = windows.ahead(self.numbers.batches(), self.reach)
            for gs in islice(batches, self.ahead - 1 if self.threads else 0):
                pending.append(self._submit(gs, windows, pool))
            try:
                for gs in batches:
                    pending.append(self._submit(gs, windows, pool))
                    yield pending.popleft()()
                while pending:
                    yield pending.popleft()()
            finally:
                windows.reader.stop()
                for executor in (pool, readers):
                    executor.shutdown(wait=True, cancel_futures=True)
                windows.reader.close()

    @property
    def remote(self) -> bool:
        return any(is_remote(shard.url) for shard in self.index.shards)

    @property
    def readers(self) -> int:
        """How many threads read."""
        return _REMOTE_THREADS if self.remote else _IO_THREADS

    @property
    def reach(self) -> int:
        """How many batches more than are being decoded are asked for, so that a network's delay is over when they are.

        Half of a window in all, so that no stream holds more than the two windows that the bound on memory allows.
        """
        if not self.remote or not self.threads:
            return 0
        batch = self.numbers.batch * self.numbers.step
        return max(0, self.order.held // (2 * batch) - self.ahead)

    def _submit(self, gs: range, windows: Windows, pool: Executor) -> Callable[[], Batch]:
        """Starts work on a batch; the result waits for it."""
        numbers = torch.tensor(gs)
        views = empty_views(self.specs, len(gs)) if self.ring is None else self.ring.views(len(gs))
        labels = torch.full((len(gs),), -1)
        draws = crop.draws(self.order.seed, numbers, self.specs) if self.random else None
        colors = color.draws(self.order.seed, numbers, self.specs) if self.random else None
        keys = [""] * len(gs)
        replaced: list[Replaced] = []

        def work(places: range) -> None:
            for i in places:
                sample = self._sample(gs[i], windows, replaced, None if draws is None else draws[i])
                keys[i] = sample.key
                labels[i] = sample.label
                self._cut(sample, [view[:, i] for view in views])

        size = max(1, min(16, -(-len(gs) // max(1, self.threads))))
        tasks = [pool.submit(work, range(i, min(i + size, len(gs)))) for i in range(0, len(gs), size)]

        def result() -> Batch:
            for task in tasks:
                task.result()
            bad = sorted(replaced, key=lambda one: one.g)
            return Batch(views, numbers, labels, keys, self.order.seed, bad, colors)

        return result

    def _sample(self, g: int, windows: Windows, replaced: list[Replaced], draws: np.ndarray | None) -> _Sample:
        """Sample g, or the one that stands in for it if it cannot be decoded: which one depends on (seed, g) alone."""
        shard, member, parts = windows.take(g)
        for attempt in range(_REPLACEMENTS):
            try:
                return _Sample(self.index.key(shard, member), _label(parts), *self._decode(parts, draws))
            except DecodeError as failure:
                name, key = self.index.shards[shard].name, self.index.key(shard, member)
                bad = Replaced(g, name, key, str(failure), failure.kind)
            replaced.append(bad)
            shard, member = self.order.substitute(g, attempt)
            parts = windows.read(shard, member)
        raise BrokenDataError(
            f"{_REPLACEMENTS} samples in a row cannot be decoded, last `{bad.key}` of `{bad.shard}`: {bad.cause}"
        )

    def _decode(self, parts: dict[str, bytes], draws: np.ndarray | None) -> tuple[Pixels, list[crop.Box]]:
        """The pixels that the views of a sample need, and the box of each view in them.

        Of several images in a sample it is the first of `IMAGES`, and where arrays are wanted the last.
        """
        images = [parts[extension] for extension in IMAGES if extension in parts]
        if self.specs[0].pixels == "rgb":
            views = [spec.height_width for spec in self.specs for _ in range(spec.count)] if self.scaled else None
            return decode_for(images[0], lambda height, width: crop.boxes(draws, height, width, self.specs), views)
        pixels = decode_array(images[-1], self.specs[0].channels, np.dtype(self.specs[0].pixels))
        return pixels, crop.boxes(draws, pixels.shape[0], pixels.shape[1], self.specs)

    def _cut(self, sample: _Sample, places: Sequence[Tensor]) -> None:
        """Writes all views of an image to their places, [V, C, h, w] a specification."""
        boxes = iter(sample.boxes)
        for spec, place in zip(self.specs, places, strict=True):
            for number in range(spec.count):
                place[number].copy_(crop.crop(sample.pixels, next(boxes), spec))


@dataclass
class _Sample:
    key: str
    label: int
    pixels: Pixels
    boxes: list[crop.Box]  # of the views, in these pixels


def _label(parts: dict[str, bytes]) -> int:
    """The class number, −1 where there is none that is a number."""
    text = parts.get("cls", b"").strip()
    return int(text) if re.fullmatch(rb"\d{1,9}", text) else -1


class Inline(Executor):
    """Does what is submitted at once, in the caller's thread."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def _pool(threads: int) -> Executor:
    return ThreadPoolExecutor(threads) if threads else Inline()

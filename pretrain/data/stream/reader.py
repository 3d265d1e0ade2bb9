"""Samples of the order, decoded by threads and put together as batches.

One reader serves one device. Decoding and resizing release Python's lock, so threads scale. Memory: the windows'
(`windows.py`), and `ahead` batches of pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from pretrain.data.shard.index import Index
from pretrain.data.shard.label import Labels
from pretrain.data.shard.sample import IMAGES
from pretrain.data.shard.sidecar import Part
from pretrain.data.store.source import is_remote
from pretrain.data.stream.order import SampleOrder
from pretrain.data.stream.ring import Ring, empty_views
from pretrain.data.stream.windows import Inline, Numbers, Windows
from pretrain.records import Batch, Replaced
from pretrain.view import color, crop
from pretrain.view.array import decode_array
from pretrain.view.pixels import DecodeError, Pixels
from pretrain.view.region import decode_for
from pretrain.view.spec import ViewSpec

_IO_THREADS = 8
_REMOTE_THREADS = 64  # that read from a network: they do nothing but wait
_REPLACEMENTS = 16  # broken samples in a row before a shard list is given up


class BrokenDataError(ValueError):
    """So many samples cannot be decoded that the data must be wrong."""


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
        labels: where labels are.
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
    labels: Labels = field(default_factory=Labels)

    def __iter__(self) -> Iterator[Batch]:
        with ThreadPoolExecutor(self.readers) as readers, _pool(self.threads) as pool:
            executor: Executor = readers if self.threads else Inline()
            windows = Windows(self.index, self.order, self.numbers, executor, self._needed)
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
                return _Sample(self.index.key(shard, member), self.labels.read(parts), *self._decode(parts, draws))
            except DecodeError as failure:
                name, key = self.index.names[shard], self.index.key(shard, member)
                bad = Replaced(g, name, key, str(failure), failure.kind)
            replaced.append(bad)
            shard, member = self.order.substitute(g, attempt)
            parts = windows.read(shard, member)
        raise BrokenDataError(
            f"{_REPLACEMENTS} samples in a row cannot be decoded, last `{bad.key}` of `{bad.shard}`: {bad.cause}"
        )

    def _needed(self, parts: Sequence[Part]) -> list[Part]:
        """Of a sample's members the image and what holds the label.

        Of several images it is the first of `IMAGES`, and where arrays are wanted the last.
        """
        images = sorted((part for part in parts if part.extension in IMAGES), key=lambda one: IMAGES.index(one[0]))
        image = images[0 if self.specs[0].pixels == "rgb" else -1]
        return [part for part in parts if part is image or part.extension == self.labels.extension]

    def _decode(self, parts: dict[str, bytes], draws: np.ndarray | None) -> tuple[Pixels, list[crop.Box]]:
        """The pixels that the views of a sample need, and the box of each view in them."""
        (data,) = (parts[extension] for extension in IMAGES if extension in parts)
        if self.specs[0].pixels == "rgb":
            views = [spec.height_width for spec in self.specs for _ in range(spec.count)] if self.scaled else None
            return decode_for(data, lambda height, width: crop.boxes(draws, height, width, self.specs), views)
        pixels = decode_array(data, self.specs[0].channels, np.dtype(self.specs[0].pixels))
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


def _pool(threads: int) -> Executor:
    return ThreadPoolExecutor(threads) if threads else Inline()

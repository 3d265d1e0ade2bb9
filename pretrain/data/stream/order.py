"""Which sample is number g: a pure function of (seed, g) and the sizes of the shards.

An epoch permutes the shards and lays them end to end. That line of N samples is *cut* into S streams of equal length;
place p of the epoch is stream p mod S, offset ⌊p / S⌋, so readers stay sequential while a batch draws from S places.
Inside a stream two permutations act in fixed windows: first whole *runs* of neighbours (each one range read), then the
samples of a window (held in memory). Nothing has a history, so any g can be entered directly, by any reader.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from pretrain.random import Purpose, permutation, words
from pretrain.records import Problem, refuse

Ints = np.ndarray


@dataclass(frozen=True)
class Shuffle:
    """How thoroughly an epoch is mixed, and what that costs in memory and range reads.

    Args:
        streams: into how many equal parts an epoch is cut (fewer, where they would be shorter than a window); a batch
            takes its samples from all in turn. Readers are sequential when the number of ranks divides it.
        run_length: neighbours that are always read together, in one range read.
        run_window: samples of a stream within which runs change places.
        window: samples of a stream that are held in memory, compressed, and shuffled.
    """

    streams: int = 64
    run_length: int = 8
    run_window: int = 65536
    window: int = 128

    def __post_init__(self) -> None:
        refuse(self, self.problems(**vars(self)))

    @staticmethod
    def problems(streams: int, run_length: int, run_window: int, window: int, **_: object) -> Iterator[Problem]:
        for name, value in {"streams": streams, "run_length": run_length, "window": window}.items():
            if value < 1:
                yield name, "must be at least 1"
        if run_length >= 1 and (run_window < run_length or run_window % run_length):
            yield "run_window", f"must be a positive multiple of `run_length` (={run_length})"


class Window(NamedTuple):
    """The samples of one window of one stream in the order of their visit: `shards` and `members`, [n] each."""

    shards: Ints
    members: Ints


class SampleOrder(Protocol):
    """What a reader asks an order: that of one data set (`Order`), or of several (`mixture.Mixture`)."""

    seed: int
    num_samples: int

    @property
    def held(self) -> int:
        """Samples of all open windows."""

    def place(self, g: int) -> tuple[int, int, int]:
        """(epoch, stream, offset inside the stream) of sample number g."""

    def window_at(self, stream: int, offset: int) -> tuple[int, int]:
        """(window, place inside it) of an offset."""

    def window(self, epoch: int, stream: int, window: int) -> Window:
        """All samples of a window, in the order of their visit."""

    def numbers(self, epoch: int, stream: int, window: int) -> Sequence[int]:
        """The g of each sample of a window, in the order of their visit."""

    def substitute(self, g: int, attempt: int) -> tuple[int, int]:
        """(shard, member) of what stands in for sample g where it, and `attempt` that stood in, cannot be decoded."""


class Order:
    """The order of all epochs over shards of the given sizes.

    Args:
        counts: samples of each shard.
        seed: of the run.
        shuffle: how an epoch is mixed; None leaves the samples as the shards have them.
    """

    def __init__(self, counts: Sequence[int], seed: int, shuffle: Shuffle | None) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.seed = seed
        self.in_order = shuffle is None
        self.shuffle = shuffle or Shuffle(streams=1, run_length=1, run_window=1, window=256)
        self.num_samples = int(self.counts.sum())
        self.streams = max(1, min(self.shuffle.streams, self.num_samples // self.shuffle.window))
        self._layouts: OrderedDict[int, tuple[Ints, Ints]] = OrderedDict()
        self._run_orders: OrderedDict[int, Ints] = OrderedDict()

    @property
    def held(self) -> int:
        """Samples of all open windows."""
        return self.streams * self.shuffle.window

    def place(self, g: int) -> tuple[int, int, int]:
        """(epoch, stream, offset inside the stream) of sample number g."""
        epoch, p = divmod(g, self.num_samples)
        return epoch, p % self.streams, p // self.streams

    def window_at(self, stream: int, offset: int) -> tuple[int, int]:
        """(window, place inside it) of an offset. First windows differ in length, so that not all end at once."""
        first, size = self._first_window(stream), self.shuffle.window
        if offset < first:
            return 0, offset
        window, inside = divmod(offset - first, size)
        return window + 1, inside

    def window(self, epoch: int, stream: int, window: int) -> Window:
        """All samples of a window, in the order of their visit."""
        start, size = self._stream(stream)
        begin, end = self._bounds(stream, window)
        number = ((epoch * self.streams + stream) << 24) + window
        slots = begin + self._permute(Purpose.SAMPLES, number, end - begin)
        return self._samples(epoch, start + self._unrun(epoch, stream, slots, size))

    def numbers(self, epoch: int, stream: int, window: int) -> range:
        """The g of each sample of a window, in the order of their visit."""
        begin, end = self._bounds(stream, window)
        first = epoch * self.num_samples + stream
        return range(first + begin * self.streams, first + end * self.streams, self.streams)

    def substitute(self, g: int, attempt: int) -> tuple[int, int]:
        """(shard, member) of what stands in for sample g where it, and `attempt` that stood in, cannot be decoded."""
        draw = words(self.seed, Purpose.REPLACEMENT, torch.tensor([g]), attempt + 1)[0, attempt]
        number, ends = int(draw) % self.num_samples, np.cumsum(self.counts)
        shard = int(np.searchsorted(ends, number, side="right"))
        return shard, number - int(ends[shard] - self.counts[shard])

    def locate(self, g: int) -> tuple[int, int]:
        """(shard, member) of sample number g."""
        epoch, stream, offset = self.place(g)
        window, inside = self.window_at(stream, offset)
        samples = self.window(epoch, stream, window)
        return int(samples.shards[inside]), int(samples.members[inside])

    def _first_window(self, stream: int) -> int:
        return max(1, self.shuffle.window * (stream + 1) // self.streams)

    def _bounds(self, stream: int, window: int) -> tuple[int, int]:
        """(first offset, end) of a window in its stream."""
        first, length = self._first_window(stream), self.shuffle.window
        begin = 0 if window == 0 else first + (window - 1) * length
        return begin, min(self._stream(stream)[1], first + window * length)

    def _stream(self, stream: int) -> tuple[int, int]:
        """(start on the epoch's line, length) of a stream."""
        length, longer = divmod(self.num_samples, self.streams)
        return stream * length + min(stream, longer), length + (stream < longer)

    def _unrun(self, epoch: int, stream: int, slots: Ints, size: int) -> Ints:
        """Where in the stream the samples lie that visit `slots`, once the runs have changed places."""
        length = self.shuffle.run_length
        if self.in_order:
            return slots
        runs, per_window = (size // length, self.shuffle.run_window // length)  # the odd samples at the end stay there
        run = slots // length
        result = slots.copy()
        for window in np.unique(run[run < runs] // per_window):
            first = window * per_window
            order = first + self._run_order(epoch, stream, int(window), min(per_window, runs - first))
            here = (run < runs) & (run // per_window == window)
            result[here] = order[run[here] - first] * length + slots[here] % length
        return result

    def _run_order(self, epoch: int, stream: int, window: int, runs: int) -> Ints:
        """The order of the runs of a run window; that of the last windows of all streams is remembered."""
        number = ((epoch * self.streams + stream) << 24) + window
        if number not in self._run_orders:
            self._run_orders[number] = self._permute(Purpose.RUNS, number, runs)
            while len(self._run_orders) > 2 * self.streams:
                self._run_orders.popitem(last=False)
        return self._run_orders[number]

    def _samples(self, epoch: int, places: Ints) -> Window:
        """The samples at places on the epoch's line."""
        shards, ends = self._layout(epoch)
        at = np.searchsorted(ends, places, side="right")
        return Window(shards[at], places - (ends[at] - self.counts[shards[at]]))

    def _layout(self, epoch: int) -> tuple[Ints, Ints]:
        """The epoch's order of shards, and where each ends on the line."""
        if epoch not in self._layouts:
            shards = self._permute(Purpose.SHARDS, epoch, len(self.counts))
            self._layouts[epoch] = (shards, np.cumsum(self.counts[shards]))
            while len(self._layouts) > 2:
                self._layouts.popitem(last=False)
        return self._layouts[epoch]

    def _permute(self, purpose: Purpose, number: int, size: int) -> Ints:
        if self.in_order:
            return np.arange(size)
        return permutation(self.seed, purpose, number, size).numpy()

"""The compressed bytes of samples, read ahead a window at a time.

A reader walks its own numbers g in order; the first g of a window asks for the bytes of all of the window's samples
that this reader will need, neighbours in one range read, and they are held compressed until they are used. Memory:
streams × window × mean bytes of a sample, twice that while windows overlap.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from queue import PriorityQueue
from typing import Any

from pretrain.data.shard.index import Index
from pretrain.data.shard.sidecar import Part
from pretrain.data.store.source import Reader
from pretrain.data.stream.order import SampleOrder

_GAP = 4  # a range read goes on over members that it does not need if there are fewer than this

# The first g of a run of neighbours, its shard, its members, and where its bytes go. No two runs have a g in common.
_Run = tuple[int, int, Sequence[Part], Future[dict[int, bytes]]]


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

    def __init__(
        self,
        index: Index,
        order: SampleOrder,
        numbers: Numbers,
        executor: Executor,
        needed: Callable[[Sequence[Part]], list[Part]] = list,
    ) -> None:
        self.index, self.order, self.numbers = index, order, numbers
        self._needed = needed
        self.reader = Reader(index.access)
        self._executor = executor
        self._lock = threading.Lock()
        self._urgent: PriorityQueue[_Run] = PriorityQueue()
        self._asked: dict[tuple[int, int, int], int] = {}  # window → samples of it still to come
        self._samples: dict[int, tuple[int, int, Future[dict[int, bytes]]]] = {}  # g → shard, member, bytes of the run

    def ahead(self, batches: Iterable[range], reach: int) -> Iterator[range]:
        """The batches, each once what it and the `reach` after it need has been asked for; the first waits for none."""
        asked: deque[range] = deque()
        allowed = 0
        for gs in batches:
            for g in gs:
                self.ask(g)
            asked.append(gs)
            if len(asked) > allowed:
                yield asked.popleft()
                allowed = min(reach, allowed + 2)
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
        parts = self._parts(shard, member)
        return shard, member, {part.extension: data.pop(part.start) for part in parts}

    def read(self, shard: int, member: int) -> dict[str, bytes]:
        """The bytes of any one sample, read now."""
        parts = self._parts(shard, member)
        data = self._read_run(shard, parts)
        return {part.extension: data[part.start] for part in parts}

    def _parts(self, shard: int, member: int) -> list[Part]:
        """The members of a sample that anybody looks at; no others are held."""
        return self._needed(self.index.parts(shard, member))

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
            parts = [part for _, member, _ in run for part in self._parts(shard, member)]
            future: Future[dict[int, bytes]] = Future()
            with self._lock:
                self._samples.update({number: (shard, member, future) for _, member, number in run})
            self._urgent.put((min(number for _, _, number in run), shard, parts, future))
            self._executor.submit(self._read_most_urgent)
        return len(wanted)

    def _read_most_urgent(self) -> None:
        """Reads the run whose first sample is needed first, of all that nobody reads yet: a batch of many windows need
        not wait for the whole of each."""
        _, shard, parts, future = self._urgent.get_nowait()
        try:
            future.set_result(self._read_run(shard, parts))
        except BaseException as failure:  # as executors do: it is whoever waits for the bytes that is told
            future.set_exception(failure)

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


class Inline(Executor):
    """Does what is submitted at once, in the caller's thread."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future

"""The loader that feeds one device: a reader process with a pool of decoding threads, and what becomes of its failures.

Batches reach the trainer through shared memory (`ring.py`), ready to be used.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import multiprocessing.process
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from pretrain.data.shard.label import UnknownClassError
from pretrain.data.store.source import ReadError
from pretrain.data.stream.reader import BatchStream, BrokenDataError
from pretrain.data.stream.report import BadSamples
from pretrain.data.stream.ring import Parcel, Ring
from pretrain.launch.process import spawning
from pretrain.records import Batch, UserError

READERS: set[multiprocessing.process.BaseProcess] = set()  # those that live

_HELD = 3  # batches that the trainer holds: the last one, this one, and one that is being copied to pinned memory


class Loader:
    """An iterable over a stream of batches that a reader process prepares.

    Args:
        stream: of the batches.
        prefetch: batches that wait, ready.
        max_bad_fraction: share of samples that may fail to decode.
        background: whether there is such a process, unless the stream has no threads either.
        bad: the record that samples are counted in; a new one unless given.

    Raises, while iterating:
        UserError: data cannot be read, or too many samples cannot be decoded.
    """

    def __init__(
        self,
        stream: BatchStream,
        prefetch: int = 2,
        max_bad_fraction: float = 0.01,
        background: bool = True,
        bad: BadSamples | None = None,
    ) -> None:
        self.stream = stream
        self.prefetch = prefetch
        self.max_bad_fraction = max_bad_fraction
        self.background = background and stream.threads > 0
        self.bad = BadSamples() if bad is None else bad

    def __iter__(self) -> Iterator[Batch]:
        with spawning():
            batches = iter(self._start())
        readers = getattr(batches, "_workers", [])
        READERS.update(readers)
        try:
            while (item := self._next(batches, readers)) is not None:
                if isinstance(item, str):
                    raise UserError(item)
                batch = item.batch() if isinstance(item, Parcel) else item
                del item
                self.bad.add(len(batch), batch.replaced)
                if self.bad.too_many(self.max_bad_fraction):
                    raise UserError(f"{self.bad}: more than data.max_bad_fraction={self.max_bad_fraction} allows")
                yield batch
                del batch  # else its slot in the ring would stay taken until the next one is here
        finally:
            getattr(batches, "_shutdown_workers", lambda: None)()  # now: a traceback may keep the iterator alive
            del batches
            for reader in readers:
                if reader.is_alive():  # it hangs on a stalled disk or server
                    reader.kill()
                READERS.discard(reader)

    @staticmethod
    def _next(
        batches: Iterator[Batch | Parcel | str], readers: Sequence[multiprocessing.process.BaseProcess]
    ) -> Batch | Parcel | str | None:
        """What comes next, None at the end."""
        try:
            return next(batches, None)
        except RuntimeError as failure:
            sentence = death_of_reader(failure, readers)
            if sentence is None:
                raise
            raise UserError(sentence) from None

    def _start(self) -> DataLoader[Any]:
        """One reader process with slots for all batches that can be under way, or none."""
        pin = torch.cuda.is_available()
        if not self.background:
            return DataLoader(_Guarded(self.stream), batch_size=None, pin_memory=pin)
        under_way = self.stream.ahead + self.prefetch + _HELD
        ring = Ring(under_way, self.stream.specs, self.stream.numbers.batch)
        return DataLoader(
            _Guarded(replace(self.stream, ring=ring)),
            batch_size=None,
            num_workers=1,
            prefetch_factor=self.prefetch,
            pin_memory=pin,
            multiprocessing_context=multiprocessing.get_context("spawn"),
            worker_init_fn=_end_with_trainer,
        )


class _Guarded(IterableDataset[Batch | Parcel | str]):
    """The stream, with its failures as sentences: an exception would reach the user as a worker's traceback."""

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Batch | Parcel | str]:
        ring = self.stream.ring
        if ring is not None:
            _use_one_heap()
        try:
            for batch in self.stream:
                yield batch if ring is None else ring.pack(batch)
        except (ReadError, BrokenDataError, UnknownClassError, UserError) as failure:
            yield str(failure)


def death_of_reader(failure: RuntimeError, readers: Sequence[multiprocessing.process.BaseProcess] = ()) -> str | None:
    """The sentence for a reader process that is gone, None if this failure tells of something else.

    torch tells of it wherever the trainer is just then, by these words alone: what fails for another reason while a
    reader happens to be dead keeps its own traceback.
    """
    said = re.search(r"DataLoader worker[^.\n]*", str(failure))  # in a callback of torch's among other words
    if said is None:
        return None
    codes = [f"exit code {reader.exitcode}" for reader in readers if not reader.is_alive()]
    return (
        f"the reader process died ({(codes or [said[0].strip()])[0]}). If the machine ran out of memory, lower "
        "data.shuffle.window, data.shuffle.streams or data.prefetch; else start again by the same command"
    )


def _end_with_trainer(_: int) -> None:
    """Lets a reader end when its trainer is gone. torch looks whether a reader has another parent than at its start,
    and so never ends one whose trainer was killed while that start was under way, which takes seconds."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None

    def watch() -> None:
        trainer.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _use_one_heap() -> None:
    """glibc keeps a heap for every thread, and each would grow until it fits the largest images side by side."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-8, 1)  # M_ARENA_MAX


@atexit.register
def _kill_readers() -> None:
    """Readers are deaf to SIGTERM, by which multiprocessing would end those that an exception has left behind."""
    for reader in READERS:
        reader.kill()

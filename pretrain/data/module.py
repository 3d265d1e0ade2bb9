"""Shards in, batches out: the data of a run, and the loader that feeds one device.

A single reader process with a pool of decoding threads serves a device (`reader.py`); batches reach the trainer through
shared memory. Where a run stands in its data is one number, the samples it has seen.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import multiprocessing.process
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from pretrain.data import skip as skip_lists
from pretrain.data import source
from pretrain.data.index import Index, count_known, open_index
from pretrain.data.order import Order, Shuffle
from pretrain.data.reader import BatchStream, BrokenDataError, Numbers
from pretrain.process import spawning
from pretrain.records import Batch, Problem, Replaced, UserError
from pretrain.view.spec import ViewSpec

log = logging.getLogger(__name__)

Patterns = str | Sequence[str]

_LEAST_TO_JUDGE = 1000  # samples before the share of bad ones means anything
_SUBSET_WINDOW = 256  # samples of a random subset that are held compressed, and read in the order of the shards
_NAMED = 10  # bad samples that the log names one by one
_READERS: set[multiprocessing.process.BaseProcess] = set()


class ShardData:
    """The training shards of a run, and its validation shards if there are any.

    Args:
        train, val: patterns of shards (see `source.expand`). `val` may be None.
        num_samples: how many there are in an epoch, for planning alone: the index overrules it.
        shuffle: how an epoch is mixed.
        num_workers: threads that decode in the device's reader process; 0 reads in the training process itself.
        prefetch: batches that wait, ready, for the device.
        val_samples: how many samples of `val` an evaluation looks at, at most.
        index_dir: where an index is built for shards that come without one; None is a cache folder.
        allow_pipe: whether `pipe:` commands, which run in a shell, are allowed.
        max_bad_fraction: share of samples that may fail to decode before the run stops.
        skip: lists of samples of `train` that are left out, as `scripts/shards.py` writes them.
    """

    def __init__(
        self,
        train: Patterns | None,
        val: Patterns | None = None,
        num_samples: int | None = None,
        shuffle: Shuffle | None = None,
        num_workers: int = 4,
        prefetch: int = 2,
        val_samples: int = 1024,
        index_dir: str | None = None,
        allow_pipe: bool = False,
        max_bad_fraction: float = 0.01,
        skip: Patterns | None = None,
    ) -> None:
        self.num_workers = num_workers
        self.prefetch = prefetch
        self.val_samples = val_samples
        self.max_bad_fraction = max_bad_fraction
        self.train = open_shards(train, index_dir, allow_pipe, skip=skip)
        self.shuffle = fitted(shuffle or Shuffle(), self.train)
        self.val = None if val is None else open_shards(val, index_dir, allow_pipe)

    @staticmethod
    def problems(
        train: Patterns | None,
        val: Patterns | None,
        num_workers: int,
        prefetch: int,
        val_samples: int,
        allow_pipe: bool,
        max_bad_fraction: float,
        skip: Patterns | None = None,
        **_: object,
    ) -> Iterator[Problem]:
        if train is None:
            yield (
                "train",
                "is missing: name the training shards by data.train=… or the variable PRETRAIN_TRAIN_SHARDS",
            )
        for name, patterns in {"train": train, "val": val}.items():
            if patterns is not None:
                yield from ((name, mistake) for mistake in source.expand(patterns, allow_pipe)[1])
        yield from (("skip", mistake) for mistake in skip_lists.mistakes(skip))
        for name, value, least in (
            ("num_workers", num_workers, 0),
            ("prefetch", prefetch, 1),
            ("val_samples", val_samples, 1),
        ):
            if value < least:
                yield name, f"must be at least {least}"
        if not 0 <= max_bad_fraction <= 1:
            yield "max_bad_fraction", "must be a share between 0 and 1"

    @property
    def num_samples(self) -> int:
        return self.train.num_samples

    def identity(self) -> dict[str, Any]:
        """What decides which sample is number g, beside the seed: another value is another order."""
        shards = [
            f"{shard.name} {count} {shard.sha256[:16]}"
            for shard, count in zip(self.train.shards, self.train.counts, strict=True)
        ]
        return {"digest": self.train.digest, "shards": shards, "shuffle": asdict(self.shuffle)}

    def batches(
        self, seed: int, start: int, batch: int, views: Sequence[ViewSpec], rank: int = 0, world: int = 1
    ) -> Loader:
        """Batches of training samples for one rank, without end, from sample number `start` on."""
        order = Order(self.train.counts, seed, self.shuffle)
        numbers = Numbers(start + rank, world, batch)
        stream = BatchStream(self.train, order, numbers, tuple(views), threads=self.num_workers)
        return Loader(stream, self.prefetch, self.max_bad_fraction)

    def val_batches(self, seed: int, batch: int, views: Sequence[ViewSpec]) -> Loader:
        """The same batches of validation samples every time, with the crops of training."""
        assert self.val is not None
        return self._fixed(self.val, seed, min(self.val_samples, self.val.num_samples), batch, views)

    def val_subset(self, seed: int, count: int, batch: int, views: Sequence[ViewSpec]) -> Loader:
        """At most so many validation samples, any of them, the same ones every time: each once, and cut centrally.

        They are decoded by threads of this process: to start a reader for so few would take longer.
        """
        assert self.val is not None
        whole = Shuffle(streams=1, run_length=1, run_window=self.val.num_samples, window=_SUBSET_WINDOW)
        numbers = Numbers(0, 1, batch, min(count, self.val.num_samples))
        order = Order(self.val.counts, seed, whole)
        stream = BatchStream(self.val, order, numbers, tuple(views), random=False, threads=self.num_workers)
        return Loader(stream, self.prefetch, 1.0, background=False)

    def examples(self, seed: int, count: int, views: Sequence[ViewSpec]) -> Loader:
        """One batch of so many samples, the same every time: of `val`, or else the first of training."""
        return self._fixed(self.val or self.train, seed, count, count, views)

    def _fixed(self, index: Index, seed: int, stop: int, batch: int, views: Sequence[ViewSpec]) -> Loader:
        order = Order(index.counts, seed, self.shuffle)
        return Loader(BatchStream(index, order, Numbers(0, 1, batch, stop), tuple(views)), self.prefetch, 1.0)


def fitted(shuffle: Shuffle, index: Index) -> Shuffle:
    """The shuffle as it is, or for `pipe:` shards one that is in few of them at a time.

    They can only be read whole, and 64 are kept: 16 streams whose runs change places within about one shard's samples
    are in at most 48. With the default they would be read again and again.
    """
    if not any(shard.url.startswith("pipe:") for shard in index.shards):
        return shuffle
    longest = max(1, index.num_samples // len(index.shards) // shuffle.run_length) * shuffle.run_length
    return replace(shuffle, streams=min(shuffle.streams, 16), run_window=min(shuffle.run_window, longest))


def open_shards(
    patterns: Patterns | None,
    index_dir: str | None = None,
    allow_pipe: bool = False,
    prefix: str = "data.",
    skip: Patterns | None = None,
) -> Index:
    """The index of the shards that patterns stand for, less what skip lists leave out; `prefix` as for `source.expand`.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    shards, mistakes = source.expand(patterns or [], allow_pipe, prefix)
    if mistakes or not shards:
        raise UserError("\n".join(mistakes) or "no shards are named")
    index = open_index(shards, index_dir, prefix, skip)
    if not any(shard.count for shard in index.shards):
        raise UserError(f"`{patterns}`: there is no image in any of the {len(shards)} shards")
    if not index.num_samples:
        raise UserError(f"{prefix}skip={skip}: it leaves out every sample of `{patterns}`")
    return index


def known_size(patterns: Patterns | None, index_dir: str | None = None, skip: Patterns | None = None) -> int | None:
    """How many samples shards have, if an index of all of them is there; no shard is read to find out."""
    shards, mistakes = source.expand(patterns or [], allow_pipe=True)
    try:
        return None if mistakes or not shards else count_known(shards, index_dir, skip)
    except UserError:  # a skip list that cannot be read
        return None


class Loader:
    """An iterable over a stream of batches that a reader process prepares.

    Args:
        stream: of the batches.
        prefetch: batches that wait, ready.
        max_bad_fraction: share of samples that may fail to decode.
        background: whether there is such a process, unless the stream has no threads either.

    Raises, while iterating:
        UserError: data cannot be read, or too many samples cannot be decoded.
    """

    def __init__(
        self, stream: BatchStream, prefetch: int = 2, max_bad_fraction: float = 0.01, background: bool = True
    ) -> None:
        self.stream = stream
        self.max_bad_fraction = max_bad_fraction
        self.bad: Counter[str] = Counter()  # by shard
        background = background and stream.threads > 0
        self._loader = DataLoader(
            _Guarded(stream),
            batch_size=None,
            num_workers=int(background),
            prefetch_factor=prefetch if background else None,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context=multiprocessing.get_context("spawn") if background else None,
        )

    def __iter__(self) -> Iterator[Batch]:
        seen = 0
        with spawning():
            batches = iter(self._loader)
        readers = getattr(batches, "_workers", [])
        _READERS.update(readers)
        try:
            for item in batches:
                if isinstance(item, str):
                    raise UserError(item)
                seen += len(item)
                self._count(item.replaced, seen)
                yield item
        finally:
            del batches  # ends the reader, or gives up after some seconds
            for reader in readers:
                if reader.is_alive():  # it hangs on a stalled disk or server
                    reader.kill()
                _READERS.discard(reader)

    def _count(self, replaced: Iterable[Replaced], seen: int) -> None:
        for bad in replaced:
            self.bad[bad.shard] += 1
            if self.bad.total() <= _NAMED:
                log.warning(
                    "sample `%s` of `%s` cannot be decoded (%s): another one stands in", bad.key, bad.shard, bad.cause
                )
        if self.bad.total() > self.max_bad_fraction * max(seen, _LEAST_TO_JUDGE):
            worst, count = self.bad.most_common(1)[0]
            raise UserError(
                f"{self.bad.total()} of {seen} samples cannot be decoded, more than data.max_bad_fraction="
                f"{self.max_bad_fraction} allows; the worst shard is `{worst}` with {count}"
            )


class _Guarded(IterableDataset[Batch | str]):
    """The stream, with its failures as sentences: an exception would reach the user as a worker's traceback."""

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Batch | str]:
        try:
            yield from self.stream
        except (source.ReadError, BrokenDataError) as failure:
            yield str(failure)


@atexit.register
def _kill_readers() -> None:
    """Readers are deaf to SIGTERM, by which multiprocessing would end those that an exception has left behind."""
    for reader in _READERS:
        reader.kill()

"""Shards in, batches out: the data of a run, and the loader that feeds one device.

A single reader process with a pool of decoding threads serves a device (`reader.py`); batches reach the trainer through
shared memory. Where a run stands in its data is one number, the samples it has seen.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from pretrain.data.opening import NamedPatterns, Patterns, mixture_problems, named, open_shards, open_training
from pretrain.data.shard import skip as skip_lists
from pretrain.data.shard.index import Index
from pretrain.data.shard.label import Labels, mistake
from pretrain.data.store import cache, source
from pretrain.data.stream.loader import Loader
from pretrain.data.stream.order import Order, SampleOrder, Shuffle
from pretrain.data.stream.reader import BatchStream
from pretrain.data.stream.report import BadSamples
from pretrain.data.stream.windows import Numbers
from pretrain.data.training import fitted
from pretrain.records import Problem
from pretrain.view import region
from pretrain.view.spec import ViewSpec

log = logging.getLogger(__name__)

_SUBSET_WINDOW = 256  # samples of a random subset that are held compressed, and read in the order of the shards


class ShardData:
    """The training shards of a run, and its validation shards if there are any.

    Args:
        train, val: patterns of shards (see `source.expand`). `val` may be None. `train` may name several data sets,
            each with patterns of its own.
        sources: the weight of each data set that `train` names; only their proportions count.
        num_samples: how many there are in an epoch, for planning alone: the index overrules it.
        shuffle: how an epoch is mixed.
        num_workers: threads that decode in the device's reader process; 0 reads in the training process itself.
        prefetch: batches that wait, ready, for the device.
        val_samples: how many samples of `val` an evaluation looks at, at most.
        storage_options: for the drivers of object stores, as their own documents name them.
        cache_dir: where copies of remote shards are kept; None keeps none.
        cache_size: bytes that they may have, or words like 200GB.
        index_dir: where an index is built for shards that come without one; None is a cache folder.
        allow_pipe: whether `pipe:` commands, which run in a shell, are allowed.
        max_bad_fraction: share of samples that may fail to decode before the run stops.
        scaled_decode: whether JPEGs of a million pixels are decoded at 1/2, 1/4 or 1/8 where no view needs more.
        labels: where labels are, which probes alone look at: `cls`, `json:KEY` or `none` (see `label.py`).
        skip: lists of samples of `train` that are left out, as `pretrain shards` writes them.

    Attributes:
        bad, bad_in_evaluation: the record of samples that could not be decoded.
    """

    def __init__(
        self,
        train: Patterns | NamedPatterns | None,
        val: Patterns | None = None,
        sources: dict[str, float] | None = None,
        num_samples: int | None = None,
        shuffle: Shuffle | None = None,
        num_workers: int = 4,
        prefetch: int = 2,
        val_samples: int = 1024,
        storage_options: dict[str, Any] | None = None,
        cache_dir: str | None = None,
        cache_size: int | str = "100GB",
        index_dir: str | None = None,
        allow_pipe: bool = False,
        max_bad_fraction: float = 0.01,
        scaled_decode: bool = False,
        labels: str | None = "cls",
        skip: Patterns | None = None,
    ) -> None:
        self.num_workers = num_workers
        self.prefetch = prefetch
        self.val_samples = val_samples
        self.max_bad_fraction = max_bad_fraction
        self.bad, self.bad_in_evaluation = BadSamples(), BadSamples("evaluation goes on without it", once=True)
        access = source.access_of(storage_options, cache_dir, cache_size)
        self.scaled_decode = scaled_decode
        self.training = open_training(train, sources, index_dir, allow_pipe, access=access, skip=skip)
        self.train = self.training.index
        self.shuffle = fitted(shuffle or Shuffle(), self.train)
        self.val = None if val is None else open_shards(val, index_dir, allow_pipe, access=access)
        self.labels = Labels.of(labels, self.train.shards, strict=False)  # no objective of ours looks at them
        self.val_labels = Labels.of(labels, self.val.shards if self.val else ())

    @staticmethod
    def problems(
        train: Patterns | NamedPatterns | None,
        val: Patterns | None,
        sources: dict[str, float] | None,
        num_workers: int,
        prefetch: int,
        val_samples: int,
        storage_options: dict[str, Any] | None,
        cache_dir: str | None,
        cache_size: int | str,
        allow_pipe: bool,
        max_bad_fraction: float,
        labels: str | None,
        skip: Patterns | None = None,
        **_: object,
    ) -> Iterator[Problem]:
        if not train:
            yield (
                "train",
                "is missing: name the training shards by data.train=… or the variable PRETRAIN_TRAIN_SHARDS",
            )
        access = source.access_of(storage_options)
        yield from mixture_problems(train, sources)
        for argument, name, patterns in (*(("train", *one) for one in named(train).items()), ("val", "", val)):
            mistakes = [] if patterns is None else source.expand(patterns, allow_pipe, access=access)[1]
            yield from ((argument, f"{name}: {mistake}" if name else mistake) for mistake in mistakes)
        yield from (("skip", mistake) for mistake in skip_lists.mistakes(skip))
        yield from cache.problems(cache_dir, cache_size)
        for name, value, least in (
            ("num_workers", num_workers, 0),
            ("prefetch", prefetch, 1),
            ("val_samples", val_samples, 1),
        ):
            if value < least:
                yield name, f"must be at least {least}"
        if not 0 <= max_bad_fraction <= 1:
            yield "max_bad_fraction", "must be a share between 0 and 1"
        if wrong := mistake(labels):
            yield "labels", wrong

    @property
    def num_samples(self) -> int:
        return self.train.num_samples

    def identity(self) -> dict[str, Any]:
        """What decides which sample is number g and its pixels, beside the seed: another value is another run."""
        scaled = {"scaled_decode": True} if self.scaled_decode else {}
        return self.training.identity(self.shuffle) | scaled

    def batches(
        self, seed: int, start: int, batch: int, views: Sequence[ViewSpec], rank: int = 0, world: int = 1
    ) -> Loader:
        """Batches of training samples for one rank, without end, from sample number `start` on."""
        order = self.training.order(seed, self.shuffle)
        numbers = Numbers(start + rank, world, batch)
        if region.extension is not None:
            log.info("JPEGs are decoded only where crops need them, by pretrain_region")
        stream = self._stream(self.train, order, numbers, views, threads=self.num_workers)
        return Loader(stream, self.prefetch, self.max_bad_fraction, bad=self.bad)

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
        stream = self._stream(self.val, order, numbers, views, random=False, threads=self.num_workers, scaled=False)
        return Loader(stream, self.prefetch, 1.0, background=False, bad=self.bad_in_evaluation)

    def examples(self, seed: int, count: int, views: Sequence[ViewSpec]) -> Loader:
        """One batch of so many samples, the same every time: of `val`, or else the first of training."""
        return self._fixed(self.val or self.train, seed, count, count, views)

    def _fixed(self, index: Index, seed: int, stop: int, batch: int, views: Sequence[ViewSpec]) -> Loader:
        order = Order(index.counts, seed, self.shuffle)
        stream = self._stream(index, order, Numbers(0, 1, batch, stop), views)
        return Loader(stream, self.prefetch, 1.0, bad=self.bad_in_evaluation)

    def _stream(
        self, index: Index, order: SampleOrder, numbers: Numbers, views: Sequence[ViewSpec], **how: Any
    ) -> BatchStream:
        labels = self.val_labels if index is self.val else self.labels
        return BatchStream(index, order, numbers, tuple(views), labels=labels, **{"scaled": self.scaled_decode} | how)

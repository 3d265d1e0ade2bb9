"""Which sample of which data set is number g, where several are mixed by weight: a pure function of (seed, g).

Samples are dealt in *hands* of eight consecutive g, each from one source. A block of hands has a fixed number of places
for every source; they are spread evenly over the block and moved a little at random, in every block anew. So how many
hands a source was dealt before any other is closed-form: g is sample number r of its source, and the source's own
`Order`, with epochs and a seed of its own, says which that is.

Why hands: ranks take the g in turn. Up to eight ranks (or any divisor of eight) all see the same mix in every step, and
each reads streams of its own from one end to the other, as without a mixture.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pretrain.data.stream.order import Ints, Order, Shuffle, Window
from pretrain.random import Purpose, uniform, words
from pretrain.records import Problem

HAND = 8
_BLOCKS = (1_000, 10_000, 100_000)  # hands that a block may have
_FEW = 10  # places below which the next larger block is taken, so that rounding moves no share by more than 5 %
_KEPT = 64_000  # hands whose patterns are remembered, at least four blocks


def problems(names: Sequence[str], weights: Mapping[str, object] | None) -> Iterator[Problem]:
    """What is wrong with the names of several data sets (`train`) and their weights (`sources`)."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][\w-]*", name):
            yield "train", f"`{name}` is no name: use letters, digits, - and _"
    weights = {} if weights is None and len(names) == 1 else weights
    if weights is None:
        yield "sources", f"is missing: give a weight to each of {', '.join(names)}"
        return
    if missing := [name for name in names if name not in weights and len(names) > 1]:
        yield "sources", f"has no weight for {', '.join(missing)}"
    if unknown := [name for name in weights if name not in names]:
        yield "sources", f"{', '.join(unknown)}: data.train names no such data set, but {', '.join(names)}"
    yield from weight_problems(weights)


def weight_problems(weights: Mapping[str, object]) -> Iterator[Problem]:
    """What is wrong with weights by themselves."""
    good: dict[str, float] = {}
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            advice = "; to leave it out, name it neither here nor in data.train" if weight == 0 else ""
            yield "sources", f"the weight of {name} (={weight}) must be a positive number{advice}"
        else:
            good[name] = weight
    if len(good) == len(weights):
        for name, share in _shares(good).items():
            if share < 1 / _BLOCKS[-1]:
                yield "sources", f"the share of {name} ({share:.1e}) is below the least that can be dealt, 1e-05"


def places(weights: Mapping[str, float]) -> dict[str, int]:
    """How many hands of a block each source is dealt, by name and in the order of names: largest remainders."""
    shares = _shares(weights)
    size = next((size for size in _BLOCKS if min(shares.values()) * size >= _FEW), _BLOCKS[-1])
    exact = {name: share * size for name, share in shares.items()}
    result = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: result[name] - exact[name])
    for name in by_remainder[: size - sum(result.values())]:
        result[name] += 1
    return result


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(weights.values())
    return {name: weights[name] / total for name in sorted(weights)}


def portion(shuffle: Shuffle, share: float) -> Shuffle:
    """The part of a shuffle's streams, and so of its memory, that a source with such a share gets; whole hands."""
    streams = max(1, round(shuffle.streams * share))
    return replace(shuffle, streams=streams - streams % HAND if streams > HAND else streams)


def seed_of(seed: int, source: int) -> int:
    """The seed of a source's own order: equal sources do not run in step."""
    low, high = words(seed, Purpose.SOURCE, torch.tensor([source]), 2)[0].tolist()
    return int(low | high << 32)


@dataclass(frozen=True)
class _Block:
    """A block's pattern: the source of each hand, the how-manyth of its source it is, and the places of each source."""

    sources: Ints
    ranks: Ints
    places: list[Ints]


class Mixture:
    """The order of samples of several data sets, whose shards are numbered end to end.

    Args:
        orders: of each source, by themselves.
        places: hands of a block that each is dealt.
        seed: of the run.
    """

    def __init__(self, orders: Sequence[Order], places: Sequence[int], seed: int) -> None:
        self.orders = list(orders)
        self.places = np.asarray(places, dtype=np.int64)
        self.seed = seed
        self.num_samples = sum(order.num_samples for order in orders)
        self.hands = int(self.places.sum())  # of a block
        self._source_of = [source for source, order in enumerate(orders) for _ in range(order.streams)]  # by stream
        self._streams = _before([order.streams for order in orders])
        self._shards = _before([len(order.counts) for order in orders])
        self._blocks: OrderedDict[int, _Block] = OrderedDict()

    @property
    def held(self) -> int:
        """Samples of all open windows."""
        return sum(order.held for order in self.orders)

    def source(self, g: int) -> tuple[int, int]:
        """(source, number among the samples of that source) of sample number g."""
        hand, inside = divmod(g, HAND)
        number, place = divmod(hand, self.hands)
        block = self._block(number)
        source = int(block.sources[place])
        return source, (number * int(self.places[source]) + int(block.ranks[place])) * HAND + inside

    def place(self, g: int) -> tuple[int, int, int]:
        """(epoch of its source, stream, offset inside the stream) of sample number g; streams are numbered through."""
        source, rank = self.source(g)
        epoch, stream, offset = self.orders[source].place(rank)
        return epoch, self._streams[source] + stream, offset

    def window_at(self, stream: int, offset: int) -> tuple[int, int]:
        """(window, place inside it) of an offset."""
        source = self._source_of[stream]
        return self.orders[source].window_at(stream - self._streams[source], offset)

    def window(self, epoch: int, stream: int, window: int) -> Window:
        """All samples of a window, in the order of their visit."""
        source = self._source_of[stream]
        samples = self.orders[source].window(epoch, stream - self._streams[source], window)
        return Window(samples.shards + self._shards[source], samples.members)

    def numbers(self, epoch: int, stream: int, window: int) -> list[int]:
        """The g of each sample of a window, in the order of their visit."""
        source = self._source_of[stream]
        ranks = np.asarray(self.orders[source].numbers(epoch, stream - self._streams[source], window))
        hands, inside = np.divmod(ranks, HAND)
        blocks, nth = np.divmod(hands, self.places[source])
        result = np.empty_like(ranks)
        for number in np.unique(blocks):
            here = blocks == number
            place = self._block(int(number)).places[source][nth[here]]
            result[here] = (number * self.hands + place) * HAND + inside[here]
        numbers: list[int] = result.tolist()
        return numbers

    def substitute(self, g: int, attempt: int) -> tuple[int, int]:
        """(shard, member) of what stands in for sample g, one of the same source."""
        source = self.source(g)[0]
        shard, member = self.orders[source].substitute(g, attempt)
        return self._shards[source] + shard, member

    def locate(self, g: int) -> tuple[int, int]:
        """(shard, member) of sample number g."""
        source, rank = self.source(g)
        shard, member = self.orders[source].locate(rank)
        return self._shards[source] + shard, member

    def _block(self, number: int) -> _Block:
        """The pattern of a block: hand k of a source's n is due at (k + u) / n of it, u random in [0, 1)."""
        if number not in self._blocks:
            sources = np.repeat(np.arange(len(self.places)), self.places)
            ranks = np.concatenate([np.arange(count) for count in self.places])
            moved = uniform(self.seed, Purpose.MIXTURE, torch.tensor([number]), self.hands)[0].numpy()
            order = np.argsort((ranks + moved.astype(np.float64)) / self.places[sources], kind="stable")
            dealt = sources[order]
            own = [np.flatnonzero(dealt == source).astype(np.int32) for source in range(len(self.places))]
            self._blocks[number] = _Block(dealt.astype(np.int32), ranks[order].astype(np.int32), own)
            while len(self._blocks) > max(4, _KEPT // self.hands):
                self._blocks.popitem(last=False)
        return self._blocks[number]


def _before(counts: Sequence[int]) -> list[int]:
    """The sum of all counts before each."""
    return [sum(counts[:number]) for number in range(len(counts))]

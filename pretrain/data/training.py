"""The training shards of a run: one data set, or several that are mixed by weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from pretrain.data.shard.index import Index
from pretrain.data.stream import mixture
from pretrain.data.stream.order import Order, SampleOrder, Shuffle
from pretrain.records import SourceShare


class TrainingShards:
    """All shards end to end, and the order that goes through them.

    A mixture of one data set is that data set: the same order, whatever its name and weight.

    Args:
        indexes: of the data sets, by name; "" is the name of a single one.
        weights: of each, by name. Not looked at where there is only one.
    """

    def __init__(self, indexes: Mapping[str, Index], weights: Mapping[str, float]) -> None:
        alone = len(indexes) == 1
        self.places = dict.fromkeys(indexes, 1) if alone else mixture.places(weights)
        self.parts = {name: indexes[name] for name in self.places}
        self.index = Index.joined(list(self.parts.values()))

    def order(self, seed: int, shuffle: Shuffle) -> SampleOrder:
        """The order of all epochs."""
        if len(self.parts) == 1:
            return Order(self.index.counts, seed, shuffle)
        shares = {name: share.share for name, share in self.shares.items()}
        orders = [
            Order(part.counts, mixture.seed_of(seed, number), fitted(mixture.portion(shuffle, shares[name]), part))
            for number, (name, part) in enumerate(self.parts.items())
        ]
        return mixture.Mixture(orders, list(self.places.values()), seed)

    @property
    def shares(self) -> dict[str, SourceShare]:
        """What part of all samples each source has, and how many samples it has, by name; empty without a mixture."""
        if len(self.parts) == 1:
            return {}
        return source_shares(self.places, {name: part.num_samples for name, part in self.parts.items()})

    def identity(self, shuffle: Shuffle) -> dict[str, Any]:
        """What decides which sample is number g, beside the seed: another value is another order."""
        same = {"digest": self.index.digest, "shuffle": asdict(shuffle)}
        if len(self.parts) == 1:
            return same | {"shards": _rows(self.index)}
        hands = sum(self.places.values())
        sources = {
            name: {"weight": f"{self.places[name]} of {hands}", "digest": part.digest, "shards": _rows(part)}
            for name, part in self.parts.items()
        }
        return same | {"sources": sources}


def source_shares(places: Mapping[str, int], sizes: Mapping[str, int | None]) -> dict[str, SourceShare]:
    """What part of all samples each source has, and how many samples it has if that is known."""
    hands = sum(places.values())
    return {name: SourceShare(count / hands, sizes.get(name)) for name, count in places.items()}


def fitted(shuffle: Shuffle, index: Index) -> Shuffle:
    """The shuffle as it is, or for `pipe:` shards one that is in few of them at a time.

    They can only be read whole, and 64 are kept: 16 streams whose runs change places within about one shard's samples
    are in at most 48. With the default they would be read again and again.
    """
    if not any(shard.url.startswith("pipe:") for shard in index.shards):
        return shuffle
    longest = max(1, index.num_samples // len(index.shards) // shuffle.run_length) * shuffle.run_length
    return replace(shuffle, streams=min(shuffle.streams, 16), run_window=min(shuffle.run_window, longest))


def _rows(index: Index) -> list[str]:
    return [
        f"{shard.name} {count} {shard.sha256[:16]}" for shard, count in zip(index.shards, index.counts, strict=True)
    ]

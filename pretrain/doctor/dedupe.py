"""Finds samples that are there twice: the same bytes, the same pixels, or images that look the same.

The first of each is kept, and those of `val` before all: a training sample that is also in `val` is left out. What is
left out looks the same as one that is kept, or is an exact copy of such a sample: no chain of likenesses leads away
from what stays. Images that were resized, saved again with less quality, or had their colours changed a little look the
same; mirrored, cut or turned ones do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pretrain.data.shard.index import Index
from pretrain.data.shard.skip import Skipped
from pretrain.doctor.fingerprint import THUMBNAIL, Fingerprint, fingerprint
from pretrain.doctor.near import pairs
from pretrain.doctor.parallel import ordered
from pretrain.doctor.sample import Samples, refuse_none
from pretrain.records import UserError

How = Literal["same bytes", "same pixels", "looks the same"]


@dataclass(frozen=True)
class Copy:
    """A training sample that is left out, for another that stays; both by (index, shard, member), 0 being `val`."""

    sample: tuple[int, int, int]
    original: tuple[int, int, int]
    how: How
    apart: float = 0.0


@dataclass
class Duplicates:
    """What was found, of how many samples; `unreadable` of them could be compared by their bytes alone."""

    samples: int
    unreadable: int
    copies: list[Copy] = field(default_factory=list)

    def lines(self) -> list[str]:
        """How many there are of each kind."""
        rows = []
        for where, words in ((0, "of samples of val"), (1, "among themselves")):
            kinds = Counter(copy.how for copy in self.copies if copy.original[0] == where)
            what = ", ".join(f"{count} {how}" for how, count in kinds.most_common()) or "none"
            rows.append(f"{kinds.total()} copies {words}: {what}")
        left = f"; {self.unreadable} cannot be decoded" if self.unreadable else ""
        return [*rows, f"{len(self.copies)} of {self.samples} training samples are left out{left}"]


def dedupe(train: Index, val: Index | None, workers: int, distance: float) -> Duplicates:
    """Compares all samples of `train`, and of `val` if it is given, with a progress bar.

    Args:
        train: of the samples that may be left out.
        val: of those that never are.
        workers: threads that decode.
        distance: up to which two images look the same (`near.apart`); 0 finds the same bytes and pixels alone.

    Raises:
        UserError: there is no sample in `train`; two of its shards hold the same bytes, so that a skip list cannot tell
            them apart.
    """
    refuse_none(train)
    _refuse_equal_shards(train)
    samples = {where: Samples(index) for where, index in enumerate((val, train)) if index is not None}
    places = [(where, *place) for where, one in samples.items() for place in one.places()]
    table = _Table(len(places))

    def work(place: tuple[int, int, int]) -> Fingerprint:
        where, shard, member = place
        part = samples[where].image(shard, member)
        return fingerprint(samples[where].read(shard, part))

    with ThreadPoolExecutor(workers) as pool:
        prints = tqdm(ordered(pool, work, places), total=len(places), desc="comparing", unit="sample")
        for number, one in enumerate(prints):
            table.add(number, one)
    found = _decide(table, len(places) - train.num_samples, distance)
    copies = [Copy(places[number], places[original], how, far) for number, original, how, far in found]
    return Duplicates(train.num_samples, table.unreadable, copies)


def skip_rows(found: Duplicates, train: Index, val: Index | None) -> Iterable[Skipped]:
    """The rows of a skip list."""
    indexes = {1: train} if val is None else {0: val, 1: train}
    for copy in found.copies:
        (_, shard, member), (where, other, twin) = copy.sample, copy.original
        far = f" ({copy.apart:.2f} apart)" if copy.how == "looks the same" else ""
        reason = f"{copy.how} as `{indexes[where].key(other, twin)}` of `{indexes[where].shards[other].name}`{far}"
        one = train.shards[shard]
        yield Skipped(one.sha256, one.name, train.number(shard, member), train.key(shard, member), reason)


def _refuse_equal_shards(train: Index) -> None:
    by_hash = {shard.sha256: shard.url for shard in reversed(train.shards)}
    for shard in train.shards:
        if shard.count and by_hash[shard.sha256] != shard.url:
            raise UserError(
                f"`{shard.url}` holds the same bytes as `{by_hash[shard.sha256]}`: leave one of them out of the list"
            )


class _Table:
    """Fingerprints of samples by their number; `twin` is the first with the same bytes or pixels, or itself."""

    def __init__(self, count: int) -> None:
        self.hashes = np.zeros(count, np.uint64)
        self.thumbnails = np.zeros((count, THUMBNAIL, THUMBNAIL, 3), np.uint8)
        self.comparable = np.zeros(count, bool)
        self.twins: list[tuple[int, How]] = []
        self.unreadable = 0
        self._by_content: dict[bytes, int] = {}
        self._by_pixels: dict[bytes, int] = {}

    def add(self, number: int, one: Fingerprint) -> None:
        self.unreadable += not one.pixels
        twin = self._by_content.setdefault(one.content, number)
        how: How = "same bytes"
        if twin == number and one.pixels:
            twin, how = self._by_pixels.setdefault(one.pixels, number), "same pixels"
        self.twins.append((twin, how))
        if twin == number and one.thumbnail is not None:
            self.hashes[number] = one.signs
            self.thumbnails[number] = one.thumbnail
            self.comparable[number] = True


def _decide(table: _Table, first: int, distance: float) -> list[tuple[int, int, How, float]]:
    """(number, that of the one that stays, how, how far apart) of all from `first` on that are left out."""
    near: dict[int, list[tuple[float, int]]] = {}
    if distance > 0:
        numbers: NDArray[np.int64] = np.flatnonzero(table.comparable)
        for i, j, far in pairs(table.hashes[numbers], table.thumbnails[numbers], distance):
            near.setdefault(int(numbers[j]), []).append((far, int(numbers[i])))
    gone: list[tuple[int, int, How, float]] = []
    stays = [True] * len(table.twins)
    for number, (twin, how) in enumerate(table.twins):
        if number < first:
            continue
        looks = min(((far, other) for far, other in near.get(number, ()) if stays[other]), default=None)
        if twin != number:
            gone.append((number, twin, how, 0.0))
        elif looks is not None:
            gone.append((number, looks[1], "looks the same", looks[0]))
        else:
            continue
        stays[number] = False
    return gone

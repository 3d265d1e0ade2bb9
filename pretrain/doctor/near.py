"""Pairs of images that look the same, among many: candidates by perceptual hash, confirmed by thumbnails.

Two hashes that differ in at most 7 of their bits differ in at most one bit in one of four bands of 16 (7 < 4 × 2). So
for each band, hashes are sorted by it, and each is compared with those whose band is equal or one bit away (Norouzi,
Punjani, Fleet, Fast search in Hamming space with multi-index hashing, arXiv 1307.2982): all pairs are found. For n
hashes that is n log n for sorting, and about 34 n · n / 65536 comparisons where they are spread evenly: half a
billion for a million. Where all are nearly the same, it is n². Memory: 776 bytes an image, and some 200 MB.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BITS = 7  # in which the hashes of a pair may differ
_BANDS = 4
_WIDTH = 16
_AT_ONCE = 1 << 22  # comparisons
_FLOOR = 16.0  # a variance in grey levels² below which contrast is taken for noise

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]


def pairs(hashes: Hashes, thumbnails: NDArray[np.uint8], distance: float) -> Iterator[tuple[int, int, float]]:
    """(i, j, how far apart their thumbnails are) of all pairs i < j that look the same, sorted.

    Args:
        hashes: [n].
        thumbnails: [n, …], of the same images.
        distance: up to which two thumbnails look the same (`apart`).
    """
    first, second = candidates(hashes)
    for start in range(0, len(first), _AT_ONCE // 256):
        i, j = (side[start : start + _AT_ONCE // 256] for side in (first, second))
        far = apart(thumbnails[i], thumbnails[j])
        for place in np.flatnonzero(far <= distance):
            yield int(i[place]), int(j[place]), float(far[place])


def apart(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How far apart thumbnails [n, …] are: the root mean square of their difference, over their contrast.

    0.4 is that of two images of the same brightness and contrast whose correlation is 0.92.
    """
    one, other = (side.reshape(len(side), -1).astype(np.float32) for side in (a, b))
    contrast = (one.var(axis=1) + other.var(axis=1)) / 2
    return np.sqrt(np.square(one - other).mean(axis=1) / (contrast + _FLOOR))


def candidates(hashes: Hashes) -> tuple[Numbers, Numbers]:
    """All pairs i < j whose hashes differ in at most 7 bits, sorted."""
    found = [np.empty((2, 0), np.int64)]
    for band in range(_BANDS):
        values = ((hashes >> np.uint64(_WIDTH * band)) & np.uint64((1 << _WIDTH) - 1)).astype(np.int64)
        order = np.argsort(values, kind="stable")
        found += list(_in_band(hashes[order], values[order], order))
    both = np.concatenate(found, axis=1)
    both = np.unique(np.sort(both, axis=0), axis=1)
    return both[0], both[1]


def _in_band(hashes: Hashes, values: Numbers, order: Numbers) -> Iterator[NDArray[np.int64]]:
    """Pairs [2, k] whose values, sorted, are equal or one bit apart."""
    starts = np.searchsorted(values, np.arange((1 << _WIDTH) + 1))
    places = np.arange(len(values))
    yield from _compare(hashes, order, places, places + 1, starts[values + 1])
    for bit in range(_WIDTH):
        without = places[values & (1 << bit) == 0]
        partner = values[without] | (1 << bit)
        yield from _compare(hashes, order, without, starts[partner], starts[partner + 1])


def _compare(
    hashes: Hashes, order: Numbers, places: Numbers, lows: Numbers, highs: Numbers
) -> Iterator[NDArray[np.int64]]:
    """Compares each place with all from its low to its high, some millions at once."""
    counts = highs - lows
    ends = np.cumsum(counts)
    start = 0
    while start < len(places):
        done = ends[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(ends, done + _AT_ONCE, side="right")))
        some = counts[start:stop]
        left = np.repeat(places[start:stop], some)
        right = np.arange(some.sum()) - np.repeat(ends[start:stop] - some - done - lows[start:stop], some)
        near = np.bitwise_count(hashes[left] ^ hashes[right]) <= BITS
        if near.any():
            yield np.stack([order[left[near]], order[right[near]]])
        start = stop

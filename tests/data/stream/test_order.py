"""The order: every sample exactly once an epoch, at any entry, for any shape of the data."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pretrain.data.stream.order import Order, Shuffle


def random_case(number: int) -> tuple[list[int], Shuffle]:
    draw = random.Random(number)
    counts = [draw.randint(0, 20) for _ in range(draw.randint(1, 9))]
    counts[0] += 1
    run = draw.choice([1, 2, 3, 8])
    return counts, Shuffle(draw.choice([1, 2, 3, 7, 64]), run, run * draw.choice([1, 2, 5]), draw.choice([1, 2, 5, 16]))


@pytest.mark.parametrize("number", range(40))
def test_every_sample_comes_exactly_once_an_epoch(number: int) -> None:
    counts, shuffle = random_case(number)
    order = Order(counts, seed=number, shuffle=shuffle)
    everything = [(shard, member) for shard, count in enumerate(counts) for member in range(count)]
    for epoch in range(2):
        start = epoch * order.num_samples
        assert sorted(order.locate(start + p) for p in range(order.num_samples)) == everything


def test_it_is_a_function_of_seed_and_g_alone() -> None:
    counts, shuffle = [10, 7, 1, 30], Shuffle(3, 2, 4, 5)
    forward = [Order(counts, 1, shuffle).locate(g) for g in range(200)]
    again = Order(counts, 1, shuffle)
    assert [again.locate(g) for g in reversed(range(200))] == forward[::-1]
    assert [Order(counts, 2, shuffle).locate(g) for g in range(48)] != forward[:48]
    assert forward[:48] != forward[48:96]  # epochs differ


def test_places_are_cut_into_streams_as_documented() -> None:
    order = Order([23], seed=0, shuffle=Shuffle(4, 1, 1, 1))
    assert [order._stream(stream) for stream in range(4)] == [(0, 6), (6, 6), (12, 6), (18, 5)]
    assert order.place(23 + 6) == (1, 2, 1)


def test_short_epochs_have_fewer_streams() -> None:
    assert Order([200], 0, Shuffle(streams=64, window=128)).streams == 1
    assert Order([8000], 0, Shuffle(streams=64, window=128)).streams == 62
    assert Order([10**6], 0, Shuffle(streams=64, window=128)).streams == 64


def test_runs_stay_together_until_the_window_mixes_them() -> None:
    order = Order([64], seed=0, shuffle=Shuffle(streams=1, run_length=4, run_window=64, window=1))
    members = np.array([order.locate(g)[1] for g in range(64)]).reshape(16, 4)
    assert (members % 4 == np.arange(4)).all()
    assert (members[:, 0] // 4 != np.arange(16)).any()


def test_windows_do_not_all_end_at_once() -> None:
    order = Order([64 * 64], seed=0, shuffle=Shuffle(streams=8, run_length=1, run_window=64, window=64))
    assert len({order._first_window(stream) for stream in range(8)}) == 8


def test_shards_sorted_by_class_are_mixed_within_a_batch() -> None:
    """The worst case people have: one class a shard. Batches must look like the whole."""
    order = Order([500] * 16, seed=0, shuffle=Shuffle())
    for batch in range(0, 8000 - 256, 5 * 256):
        shards = np.bincount([order.locate(g)[0] for g in range(batch, batch + 256)], minlength=16)
        assert shards.max() < 60  # 16 expected
        assert (shards > 0).sum() >= 12


def test_unshuffled_order_is_the_shards_own() -> None:
    order = Order([3, 0, 2], seed=0, shuffle=None)
    assert [order.locate(g) for g in range(5)] == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"streams": 0}, "`streams` must be at least 1"),
        ({"run_length": 8, "run_window": 12}, "`run_window` must be a pos"),
    ],
)
def test_impossible_shuffles_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shuffle(**arguments)

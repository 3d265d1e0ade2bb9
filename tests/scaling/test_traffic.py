"""What travels and what is held, against numbers worked out by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from pretrain.scaling.profile import Group
from pretrain.scaling.traffic import BUCKET, Collective, Held, Layout, Spread, held, padded, traffic

# a block of 5 × 4 weights and 5 biases that runs once, and around it 3 trained numbers and a frozen table of 2 × 2
BLOCK = Group("block", True, ((5, 4), (5,)), ((5, 4), (5,)), forward=1, backward=1)
ROOT = Group("", False, ((1, 3), (2, 2)), ((1, 3),), forward=1, backward=0)
# as the block, without a gradient: a teacher's
TEACHER = Group("teacher", True, ((5, 4), (5,)), (), forward=1, backward=0)


def test_rows_are_filled_up_to_a_multiple_of_the_ranks() -> None:
    assert padded([(5, 4), (5,)], 1) == 25
    assert padded([(5, 4), (5,)], 2) == 6 * 4 + 6
    assert padded([(1, 3)], 64) == 64 * 3  # a single row costs as many as there are ranks
    assert padded([(64, 3)], 64) == 64 * 3


def test_ddp_sums_trained_gradients_once_a_step_in_float32() -> None:
    moved = traffic([BLOCK, ROOT, TEACHER], Spread("ddp", nodes=3, devices=2))
    assert list(moved.of_step(4)) == [Collective("all_reduce", 4 * (25 + 3), 3, 2)]
    assert moved.last[0].sent == pytest.approx(2 * 5 / 6 * 112)


def test_full_sharding_gathers_and_parts_over_all_ranks_for_every_micro_batch() -> None:
    moved = traffic([BLOCK, ROOT], Spread("full", nodes=3, devices=2))
    block, root = Collective("all_gather", 2 * 30, 3, 2), Collective("all_gather", 4 * (6 * 3 + 6 * 2), 3, 2)
    parted = [Collective("reduce_scatter", 4 * 30, 3, 2), Collective("reduce_scatter", 4 * 18, 3, 2)]
    assert moved.forward == (block, root)  # blocks in bfloat16, what is around them as it is stored
    assert moved.backward == (block, parted[0], parted[1])  # the root is kept
    assert moved.last == ()
    assert Counter(moved.of_step(2)) == Counter({block: 4, root: 2, parted[0]: 2, parted[1]: 2})
    assert block.sent == pytest.approx(5 / 6 * 60)


def test_hybrid_sharding_crosses_nodes_once_a_step_with_parts_of_gradients() -> None:
    moved = traffic([BLOCK, ROOT], Spread("hybrid", nodes=3, devices=2))
    assert moved.forward == (Collective("all_gather", 60, 1, 2), Collective("all_gather", 4 * (6 + 4), 1, 2))
    assert moved.backward[1:] == (Collective("reduce_scatter", 120, 1, 2), Collective("reduce_scatter", 24, 1, 2))
    assert moved.last == (Collective("all_reduce", 60, 3, 1), Collective("all_reduce", 12, 3, 1))
    assert sum(one.nodes > 1 for one in moved.of_step(5)) == 2
    assert moved.last[0].sent == pytest.approx(2 * 2 / 3 * 60)


def test_a_hybrid_of_one_node_or_of_one_device_a_node_is_full() -> None:
    for nodes, devices in ((1, 4), (4, 1)):
        assert traffic([BLOCK, ROOT], Spread("hybrid", nodes, devices)) == traffic(
            [BLOCK, ROOT], Spread("full", nodes, devices)
        )


def test_a_teacher_is_gathered_and_nothing_else() -> None:
    moved = traffic([TEACHER], Spread("hybrid", nodes=2, devices=2))
    assert moved.forward == (Collective("all_gather", 60, 1, 2),)
    assert moved.backward == moved.last == ()


def test_what_runs_for_two_sizes_of_views_is_gathered_for_each_and_summed_once() -> None:
    twice = Group("block", True, ((4,),), ((4,),), forward=2, backward=2)
    moved = traffic([twice], Spread("full", nodes=1, devices=2))
    assert [one.kind for one in moved.of_step(1)] == [*["all_gather"] * 4, "reduce_scatter"]


def test_types_that_travel_can_be_chosen() -> None:
    moved = traffic([BLOCK], Spread("full", nodes=1, devices=2, gathered=4))
    assert moved.forward == (Collective("all_gather", 4 * 30, 1, 2),)


@pytest.mark.parametrize("layout", ["ddp", "hybrid", "full"])
def test_one_rank_sends_nothing(layout: Layout) -> None:
    assert list(traffic([BLOCK, ROOT], Spread(layout, 1, 1)).of_step(3)) == []


@pytest.mark.parametrize("rows", [1, 1000, 6_553_600, 6_553_601, 20_000_001])
def test_buckets_are_within_ddps_bound_and_hold_everything(rows: int) -> None:
    one = Group("", True, ((rows,),), ((rows,),), 1, 1)
    sizes = [bucket.bytes for bucket in traffic([one], Spread("ddp", 2, 1)).last]
    assert sum(sizes) == 4 * rows
    assert max(sizes) <= BUCKET
    assert len(sizes) == -(-4 * rows // BUCKET)


def test_what_a_rank_holds() -> None:
    """Parameters with the frozen and a teacher's, gradients and two moments of the trained, in float32."""
    groups = [BLOCK, ROOT, TEACHER]
    assert held(groups, Spread("ddp", 3, 2)) == Held(4 * (25 + 7 + 25), 4 * 28, 8 * 28)
    assert held(groups, Spread("hybrid", 3, 2)) == Held(4 * (15 + 3 + 2 + 15), 4 * (15 + 3), 8 * (15 + 3))
    assert held(groups, Spread("full", 3, 2)) == Held(4 * (5 + 3 + 2 + 5), 4 * (5 + 3), 8 * (5 + 3))
    assert held(groups, Spread("full", 3, 2)).total == 4 * 15 + 12 * 8

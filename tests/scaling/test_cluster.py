"""How long collectives and steps take on paper, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pretrain.scaling.cluster import Cluster, Phase, Step, hidden_up_to, scaled, step
from pretrain.scaling.profile import Group, Profile
from pretrain.scaling.traffic import Collective, Spread

# bytes/s and operations/s of round numbers: hops are seconds, so that delays can be told from bytes
CLUSTER = Cluster(devices=4, nvlink=100.0, network=40.0, peak=10.0, utilization=0.5, memory=7.0)
SLOW = replace(CLUSTER, start=1000.0, hop=1.0, network_hop=100.0)
FREE = replace(CLUSTER, start=0.0, hop=0.0, network_hop=0.0)


@pytest.mark.parametrize("kind", ["all_gather", "reduce_scatter"])
def test_a_ring_hops_from_rank_to_rank_and_over_every_border(kind: str) -> None:
    inside = Collective(kind, 400, nodes=1, ranks=4)  # type: ignore[arg-type]
    assert SLOW.seconds(inside) == pytest.approx(1000 + 3 * 1 + 3 / 4 * 400 / 100)
    across = replace(inside, nodes=3)  # 11 hops, 2 of them over borders; the network is the slower link
    assert SLOW.seconds(across) == pytest.approx(1000 + 9 * 1 + 2 * 100 + 11 / 12 * 400 / 40)


def test_ranks_that_are_alone_in_their_nodes_share_the_adapters() -> None:
    """Each of the four has a quarter of 40 bytes/s; together they are as fast as one ring through all ranks."""
    assert FREE.seconds(Collective("reduce_scatter", 100, nodes=2, ranks=1)) == pytest.approx(1 / 2 * 100 / 10)


def test_a_sum_takes_the_ring_for_much_and_the_tree_for_little() -> None:
    """Twice the hops and bytes of a gathering; a tree has few hops, twice the bytes and 0.92 of the bandwidth."""
    little = Collective("all_reduce", 40, nodes=16, ranks=4)
    assert SLOW.seconds(little) == pytest.approx(1000 + 2 * (3 * 1 + 4 * 100) + 2 * 40 / (0.92 * 40))
    much = replace(little, bytes=4_000_000)
    ring = 1000 + 2 * (63 - 15) + 2 * 15 * 100 + 2 * 63 / 64 * 4_000_000 / 40
    assert SLOW.seconds(much) == pytest.approx(ring)


def test_bytes_that_leave_a_node() -> None:
    ring = Collective("all_gather", 800, nodes=2, ranks=4)
    assert FREE.leaving(ring) == pytest.approx(7 / 8 * 800)  # a ring crosses the border once
    assert FREE.leaving(replace(ring, nodes=1)) == 0
    assert FREE.leaving(Collective("all_reduce", 200, nodes=2, ranks=1)) == pytest.approx(4 * 2 / 2 * 200)


def profile_of(rows: int, forward: int = 10, backward: int = 20) -> Profile:
    return Profile((Group("block", True, ((rows,),), ((rows,),), 1, 1),), forward, backward, recomputed=5)


def test_a_step_adds_up() -> None:
    """Full sharding on one node: gathers of 2·80 bytes, a part of 4·80; 3 samples of 10 and 20 operations, 5 a second;
    AdamW moves 7 numbers of 4 bytes for each of 20 rows at 7 bytes/s."""
    one = step(profile_of(80), Spread("full", 1, 4), FREE, micro_batch=3, accumulation=2)
    gather, part = 3 / 4 * 160 / 100, 3 / 4 * 320 / 100
    assert one.phases == (Phase(6, gather), Phase(12, pytest.approx(gather + part))) * 2
    assert one.hidden
    assert (one.compute, one.update) == (36, pytest.approx(80))
    assert one.seconds == pytest.approx(36 + 80)
    assert one.sent == pytest.approx(2 * 3 / 4 * (160 + 160 + 320))
    assert one.leaving == 0


def test_recomputation_is_part_of_the_backward_pass() -> None:
    plain, again = (step(profile_of(80), Spread("full", 1, 4), FREE, 3, 1, again) for again in (False, True))
    assert [phase.compute for phase in plain.phases] == [6, 12]
    assert [phase.compute for phase in again.phases] == [6, 12 + 3]


def test_ddp_sums_beside_the_last_backward_pass_alone() -> None:
    one = step(profile_of(80), Spread("ddp", 2, 4), FREE, micro_batch=1, accumulation=3)
    assert [phase.communication > 0 for phase in one.phases] == [False] * 5 + [True]
    assert one.phases[-1].communication == pytest.approx(2 * 7 / 8 * 320 / 40)
    assert not one.hidden
    assert one.seconds == pytest.approx(3 * 2 + 2 * 4 + 14 + one.update)


def test_inside_and_between_nodes_is_at_the_same_time() -> None:
    one = step(profile_of(80), Spread("hybrid", 2, 4), FREE, micro_batch=1, accumulation=1)
    inside = 3 / 4 * (160 + 320) / 100
    between = 2 * 1 / 2 * 80 / 10
    assert one.phases[1].communication == pytest.approx(max(inside, between))
    quick = replace(FREE, network=4e6)
    assert step(profile_of(80), Spread("hybrid", 2, 4), quick, 1, 1).phases[1].communication == pytest.approx(inside)


def test_a_batch_is_divided_as_a_run_divides_it_and_no_other_number_of_nodes_is_looked_at() -> None:
    steps = dict(scaled(profile_of(80), Spread("ddp", 1, 4), FREE, batch=48, largest=5))
    assert {nodes: (one.micro_batch, one.accumulation) for nodes, one in steps.items()} == {
        1: (4, 3),
        2: (3, 2),
        3: (4, 1),
        4: (3, 1),
        6: (2, 1),
        12: (1, 1),
    }


def test_the_limit_is_the_last_number_of_nodes_before_the_first_that_waits() -> None:
    def made(compute: float) -> Step:
        return Step(1, 1, 0, 0, (Phase(compute, 1.0),), 0.0)

    assert hidden_up_to([(1, made(3)), (2, made(1)), (4, made(0.9)), (8, made(2))]) == 2
    assert hidden_up_to([(1, made(0.5)), (2, made(2))]) == 0

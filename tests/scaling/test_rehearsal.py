"""64 ranks on one machine: what torch's FSDP and DDP are heard to send is what was computed, to the byte.

Nothing is tolerated: the filling up of parameters that have fewer rows than there are ranks, or no multiple of them, is
part of the formula. Two things are torch's own and are named where they happen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from pretrain.scaling.rehearsal import Rehearsal, rehearse
from pretrain.scaling.traffic import Collective, Layout, Spread, held, traffic
from tests.scaling.test_profile import DINO, MAE, by_name, profile_of, small

HIERA = ["+experiment=mae_hiera_tiny", "encoder.img_size=64", "encoder.embed_dim=8", "encoder.stages=[1,1,1,1]"]
HIERA += ["objective.decoder.depth=1", "objective.decoder.embed_dim=16", "objective.decoder.num_heads=2"]
HIERA += ["objective.view.size=64"]


@pytest.fixture(autouse=True)
def _no_ranks_are_left() -> Iterator[None]:
    yield
    assert not dist.is_initialized()


def both(
    overrides: list[str], spread: Spread, times: int, again: bool = False
) -> tuple[Rehearsal, Counter[Collective]]:
    """What a rank is heard to send, and what it was expected to."""
    found = profile_of(*overrides)
    heard = rehearse(small(overrides)[0], spread, 2, times, again)
    assert heard.held == held(found.groups, spread)
    return heard, Counter(traffic(found.groups, spread).of_step(times))


@pytest.mark.parametrize(
    ("overrides", "layout"), [(MAE, "hybrid"), (MAE, "full"), (HIERA, "full")], ids=["vit-hybrid", "vit", "hiera"]
)
def test_a_masked_autoencoder_sends_what_was_computed(overrides: list[str], layout: Layout) -> None:
    heard, expected = both(overrides, Spread(layout, nodes=8, devices=8), times=2)
    assert Counter(heard.collectives) == expected


@pytest.mark.parametrize("overrides", [MAE, DINO], ids=["mae", "dino"])
def test_ddp_sums_all_gradients_once_a_step(overrides: list[str]) -> None:
    """In the first step DDP has one bucket, whatever its bound: the number of buckets is not compared."""
    heard, expected = both(overrides, Spread("ddp", nodes=8, devices=8), times=3)
    assert [one.kind for one in heard.collectives] == ["all_reduce"]
    assert sum(one.bytes for one in heard.collectives) == sum(one.bytes for one in expected.elements())
    assert {(one.nodes, one.ranks) for one in heard.collectives} == {(8, 8)}


@pytest.mark.parametrize("layout", ["hybrid", "full"])
def test_dino_sends_what_was_computed_and_once_the_teachers_head(layout: Layout) -> None:
    """torch fetches early what ran before, in the forward pass: for the student's first block that is the teacher's
    head, which the backward pass has no use for."""
    spread = Spread(layout, nodes=8, devices=8)
    heard, expected = both(DINO, spread, times=1)
    head = traffic([by_name(profile_of(*DINO))["teacher.head.mlp"]], spread).forward
    assert Counter(heard.collectives) - expected == Counter(head)
    assert expected - Counter(heard.collectives) == Counter()


def test_hybrid_dino_that_accumulates_sums_its_blocks_twice() -> None:
    """While sums wait for the last micro-batch, torch 2.15 sums a block after each pass, zeros after the first.

    2.11 does not.
    """
    spread = Spread("hybrid", nodes=8, devices=8)
    heard, expected = both(DINO, spread, times=2)
    groups = by_name(profile_of(*DINO))
    head = traffic([groups["teacher.head.mlp"]], spread).forward
    blocks = traffic([group for name, group in groups.items() if name.startswith("student.encoder.blocks")], spread)
    sums = [one for one in blocks.backward if one.kind == "reduce_scatter"] + list(blocks.last)
    surplus = Counter(heard.collectives) - expected
    assert surplus in (Counter([*head, *head, *sums]), Counter([*head, *head]))


def test_numbers_can_be_gathered_as_they_are_stored() -> None:
    heard, expected = both(MAE, Spread("full", nodes=2, devices=3, gathered=4), times=1)
    assert Counter(heard.collectives) == expected


def test_what_runs_again_is_not_gathered_again() -> None:
    heard, expected = both(MAE, Spread("hybrid", nodes=8, devices=8), times=2, again=True)
    assert Counter(heard.collectives) == expected


def test_a_single_node_is_no_hybrid() -> None:
    heard, expected = both(MAE, Spread("hybrid", nodes=1, devices=8), times=2)
    assert Counter(heard.collectives) == expected
    assert {one.nodes for one in heard.collectives} == {1}

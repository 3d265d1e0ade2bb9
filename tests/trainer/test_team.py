"""What ranks tell each other, in one process with made-up answers; real ones are in `test_ranks.py`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pretrain.launch.world import World, meeting_point
from pretrain.records import UserError
from pretrain.trainer import team
from pretrain.trainer.team import Team, ToldError, code_version, digests, lost_peers

FACTS = {"the code": "a1", "the configuration": {"base_lr": 0.1, "seed": 0}, "the shards": {"digest": "d"}}


class Told(Team):
    """A rank that hears what others with such facts would say."""

    def __init__(self, rank: int, others: list[dict[str, Any]]) -> None:
        super().__init__(World())
        self.rank = rank
        self.texts = [{name: json.dumps(one, sort_keys=True) for name, one in facts.items()} for facts in others]

    def gather(self, value: Any) -> list[Any]:
        return [digests(one) if isinstance(value, dict) else one["the shards"] for one in self.texts]


@pytest.mark.parametrize("rank", [0, 1])
def test_another_index_on_one_rank_is_named(rank: int) -> None:
    """By rank 0; the others leave without a word."""
    others = [FACTS, FACTS, FACTS | {"the shards": {"digest": "e"}}]
    with pytest.raises(UserError, match=r"the shards of rank 2 is not that of rank 0.*Ranks that differ: 2") as refusal:
        Told(rank, others).agree(others[rank])
    assert isinstance(refusal.value, ToldError) == (rank != 0)


def test_the_same_facts_are_agreed_on() -> None:
    Told(0, [FACTS, FACTS]).agree(FACTS)


def test_the_code_version_is_that_of_the_files() -> None:
    assert code_version() == code_version()
    assert len(code_version()) == 16


def test_other_failures_are_not_taken_for_a_lost_peer() -> None:
    assert lost_peers(RuntimeError("CUDA error: an illegal memory access")) is None
    assert lost_peers(RuntimeError("Connection closed by peer")) is None  # there is no group


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("[pair.cc:534] Connection closed by peer [10.0.0.7]:1234", "another rank is gone"),
        ("Failed to recv, got 0 bytes. Connection was likely closed. gloo", "another rank is gone"),
        ("NCCL error ...\nncclRemoteError: A call failed possibly due to a network error", "another rank is gone"),
        (
            "[unbound_buffer.cc:81] gloo: Timed out waiting 1800000ms for recv operation",
            "it hangs, or the network does",
        ),
        ("NCCL error in: x.cpp\nLast error: Cuda failure 2 'out of memory'", None),
        ("gloo: Unable to find address for: ib7", None),
    ],
)
def test_only_what_comes_of_other_ranks_is_blamed_on_them(
    monkeypatch: pytest.MonkeyPatch, said: str, shown: str | None
) -> None:
    """Anything else is shown as it is, whole."""
    monkeypatch.setattr(team.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(team, "_LAST_WORD", 0)
    sentence = lost_peers(RuntimeError(said))
    assert (shown is None) == (sentence is None)
    assert shown is None or shown in str(sentence)


STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8"}


@pytest.mark.parametrize(
    ("environ", "world"),
    [
        ({}, World()),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, World()),  # a shell of an allocation
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, World()),  # srun --pty
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, World(5, 8, 1, 4, "Slurm")),
        (
            STEP | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            World(1, 2, 1, 2, "torchrun"),
        ),
    ],
)
def test_where_a_process_is(environ: dict[str, str], world: World) -> None:
    assert World.of(environ) == world


def test_machines_with_other_numbers_of_tasks_are_refused() -> None:
    with pytest.raises(UserError, match=r"placed 5,3 tasks .* --ntasks-per-node"):
        World.of(STEP | {"SLURM_STEP_TASKS_PER_NODE": "5,3"})


def test_where_ranks_meet() -> None:
    assert meeting_point({"MASTER_ADDR": "a", "MASTER_PORT": "7"}) == ("a", 7)
    first = meeting_point({"MASTER_ADDR": "a", "SLURM_JOB_ID": "12"})
    again = meeting_point({"MASTER_ADDR": "a", "SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1"})
    assert first[1] != again[1]
    with pytest.raises(UserError, match="MASTER_ADDR= MASTER_PORT=:"):
        meeting_point({})

"""One rank has a fault, and all do the right thing, soon."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from pretrain.proof import first_difference
from pretrain.trainer import checkpoint
from tests import ranks
from tests.faults import planted
from tests.job import DINO, Job
from tests.program import pretrain

ROOT = Path(__file__).parents[2]
KINDS = {"mae": [], "dino": DINO}


@pytest.mark.parametrize(("strategy", "kind"), [("ddp", "dino"), pytest.param("fsdp", "mae", marks=pytest.mark.full)])
def test_images_that_are_not_finite_on_one_rank_are_skipped_by_all(job: Job, strategy: str, kind: str) -> None:
    """A run that meets them at its third step ends as one that stopped before it, but for its counters."""
    words = [*KINDS[kind], f"trainer={strategy}", "stop_after_steps=3", "max_steps=12"]
    ranks.run(job, 2, *words, *planted("broken", rank=1, step=2))
    rows = job.rows()
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1]
    assert rows[-1]["loss"] is None
    newest = checkpoint.newest(job.out / "checkpoints")
    assert newest is not None
    skipped = checkpoint.load(newest)
    assert skipped["samples_seen"] == 24

    incident = json.loads((job.out / "incidents/step_00000003/incident.json").read_text())
    assert sorted(g for batch in incident["g"] for g in batch) == list(range(16, 24))  # of both ranks
    recorded = torch.load(job.out / "incidents/step_00000003/state.pt", weights_only=True)

    before = Job(job.tmp)
    before.out = job.tmp / "before"
    ranks.run(before, 2, *words[:-2], "stop_after_steps=2", words[-1])
    newest = checkpoint.newest(before.out / "checkpoints")
    assert newest is not None
    for name, value in checkpoint.load(newest)["objective"].items():
        assert torch.equal(skipped["objective"][name], value), name
        assert torch.equal(recorded[name], value), name


def test_as_many_in_a_row_stop_all_ranks_and_nothing_is_saved(job: Job) -> None:
    other = ranks.Ranks(job, 2, "trainer=fsdp", "checkpoint.every_steps=1", *planted("broken", rank=1, step=2, count=9))
    said = other.finish()
    assert other.codes == [1, 1], said
    assert "3 steps in a row were skipped" in said[0]
    newest = checkpoint.newest(job.out / "checkpoints")
    assert newest is not None
    state = checkpoint.load(newest)
    assert all(value.isfinite().all() for value in state["objective"].values())


@pytest.mark.parametrize(
    ("kind", "words", "sentence"),
    [
        ("killed", ["data.num_workers=0"], "another rank is gone"),
        ("raises", ["data.num_workers=0"], "another rank is gone"),
        ("reader", ["data.num_workers=1"], "another rank is gone"),
    ],
)
def test_a_rank_that_dies_takes_the_others_along(job: Job, kind: str, words: list[str], sentence: str) -> None:
    """Within a minute, far below the 30 that ranks wait for each other, and with its own words."""
    other = ranks.Ranks(job, 2, "trainer=ddp", "max_steps=1000", *words, *planted(kind, rank=1, step=3))  # type: ignore[arg-type]
    own = "".join(other.programs[1].communicate())
    died = time.monotonic()
    said = "".join(other.programs[0].communicate())
    assert time.monotonic() - died < 60
    assert other.codes[0] == 1
    assert sentence in said or "rank 1 is gone, and the run ends" in said
    assert "Traceback" not in said
    if kind == "reader":
        assert "rank 1: the reader process died" in own
        assert "Traceback" not in own


def test_what_is_being_written_when_a_rank_fails_is_there_afterwards(job: Job) -> None:
    words = ["trainer=fsdp", "checkpoint.every_steps=4", "max_steps=1000", *planted("raises_saving", rank=1, step=4)]
    other = ranks.Ranks(job, 2, *words)
    said = other.finish()
    assert other.codes == [1, 1], said
    assert checkpoint.newest(job.out / "checkpoints") == job.out / "checkpoints/step_00000004"
    assert "rank 1:\n" in said[1]
    assert "ZeroDivisionError: planted" in said[1]


def test_what_kills_a_rank_is_said_by_itself(job: Job) -> None:
    """By the launcher where it cannot: one command starts two ranks and ends with the first failure's code."""
    words = job.overrides("trainer=ddp", "accelerator=cpu", "devices=2", "max_steps=1000", *planted("killed", 1, 3))
    ended = pretrain(*words, cwd=ROOT)
    assert ended.returncode == 128 + 9
    assert "rank 1 was killed by SIGKILL" in ended.stderr


def test_a_run_that_hangs_ends_with_the_stacks_of_all_ranks(job: Job) -> None:
    words = ["callbacks.watchdog.least_minutes=0.3", "callbacks.watchdog.factor=1"]
    other = ranks.Ranks(job, 2, "trainer=ddp", "max_steps=1000", *words, *planted("hangs", rank=1, step=3))
    said = other.finish()
    assert 70 in other.codes
    assert "nothing has moved for" in "".join(said)
    stacks = [(job.out / f"stacks/rank_{rank:05d}.txt").read_text() for rank in range(2)]
    assert "faults.py" in stacks[1]  # where it hangs
    assert "faults.py" not in stacks[0]


@pytest.mark.parametrize("asynchronous", ["true", pytest.param("false", marks=pytest.mark.full)])
def test_one_ranks_full_disk_leaves_the_checkpoint_before_and_training_goes_on(job: Job, asynchronous: str) -> None:
    """The second of three saves fails on rank 1 alone, and no part of it stays; the last one, too, ends the run."""
    words = ["trainer=fsdp", "checkpoint.every_steps=2", "max_steps=6", f"checkpoint.asynchronous={asynchronous}"]
    other = ranks.Ranks(job, 2, *words, *planted("full", rank=1, step=3))
    said = other.finish()
    assert other.codes == [1, 1], said
    assert "no checkpoint of step 4: rank 1: " in said[0]
    assert "no checkpoint of step 6, the last: rank 1: " in said[0]
    names = sorted(path.name for path in (job.out / "checkpoints").iterdir())
    assert names == ["latest", "step_00000002"]
    assert [row["step"] for row in job.rows()] == [1, 2, 3, 4, 5, 6]
    ranks.run(job, 2, *words)
    assert checkpoint.newest(job.out / "checkpoints") == job.out / "checkpoints/step_00000006"


def test_a_rank_killed_in_the_middle_of_a_save_leaves_the_checkpoint_before(job: Job) -> None:
    words = ["trainer=fsdp", "checkpoint.every_steps=2", "max_steps=6"]
    other = ranks.Ranks(job, 2, *words, *planted("killed_saving", rank=1, step=3))
    other.finish()
    assert other.codes == [1, -9]
    assert checkpoint.newest(job.out / "checkpoints") == job.out / "checkpoints/step_00000002"
    ranks.run(job, 2, *words)

    whole = Job(job.tmp)
    whole.out = job.tmp / "whole"
    ranks.run(whole, 2, *words)
    assert first_difference(job.out, whole.out) == ""

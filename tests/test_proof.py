"""Runs that are killed end as if nothing had happened; and the proof of it notices when they do not."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from pretrain import proof
from pretrain.trainer import checkpoint
from tests.forked import forked
from tests.job import DINO, Job
from tests.scripts import run_script

SCHEDULES = [  # kind, ranks, threads of each start, kills, seed
    ("mae", "fsdp", 2, (2, 0), 2, 0),
    ("dino", "ddp", 2, (1, 2), 1, 1),
]
LONG = [
    (kind, strategy, ranks, threads, 10, seed)
    for seed, (kind, strategy, ranks, threads) in enumerate(
        [
            ("mae", "cpu", 1, (0,)),
            ("mae", "cpu", 1, (2, 0)),
            ("dino", "cpu", 1, (2,)),
            ("mae", "ddp", 3, (0,)),
            ("dino", "fsdp", 2, (2, 0)),
        ]
    )
]


@pytest.mark.parametrize(
    ("kind", "strategy", "ranks", "threads", "kills", "seed"),
    [*SCHEDULES, *(pytest.param(*one, marks=pytest.mark.full) for one in LONG)],
)
def test_killed_at_random_moments_it_ends_with_the_same_bits(
    job: Job, kind: str, strategy: str, ranks: int, threads: tuple[int, ...], kills: int, seed: int
) -> None:
    """All processes at once, at any moment of a step, a save, an evaluation, with several micro-batches a step and new
    epochs among them; each start with another number of threads.
    """
    killing, different = killed(job, kind, strategy, ranks, threads, kills, seed)
    assert different == ""
    assert len(killing.lost_steps) == kills
    assert max(killing.lost_steps) <= 2 * 3  # a checkpoint is written every third step, while training goes on


def killed(
    job: Job, kind: str, strategy: str, ranks: int, threads: tuple[int, ...], kills: int, seed: int
) -> tuple[proof.Killing, str]:
    """A run that is killed so often, and how it differs from one in one go."""
    words = [
        *(DINO if kind == "dino" else []),
        f"trainer={strategy}",
        "accelerator=cpu",
        f"global_batch_size={4 * ranks if ranks > 1 else 8}",  # two micro-batches a step, or four
        "max_micro_batch_size=2",
        "checkpoint.every_steps=3",
        "callbacks.health.every_steps=4",
        "callbacks.health.samples=16",
        f"max_steps={8 * kills}",
    ]
    kept = [
        word for word in job.overrides(*words) if not word.startswith(("output_dir=", "callbacks.log.", "data.num"))
    ]
    trial = proof.Trial(kept, 8 * kills, job.tmp, forked(ranks))
    whole = trial.run("whole", [f"data.num_workers={threads[0]}"])
    killing = trial.run_killed("killed", kills, seed, [[f"data.num_workers={count}"] for count in threads])
    return killing, proof.first_difference(whole, job.tmp / "killed")


@pytest.fixture
def two(job: Job, tmp_path: Path) -> tuple[Path, Path]:
    """A run and its copy."""
    job.run("callbacks.ledger.enabled=true", "max_steps=3")
    shutil.copytree(job.out, tmp_path / "copy", symlinks=True)
    return job.out, tmp_path / "copy"


def test_whatever_differs_is_named(two: tuple[Path, Path]) -> None:
    one, other = two
    assert proof.first_difference(one, other) == ""

    newest = checkpoint.newest(other / "checkpoints")
    assert newest is not None
    state = checkpoint.load(newest)
    moments = state["optimizer"]["state"][0]["exp_avg"].clone()
    moments.view(-1)[0] = torch.nextafter(moments.view(-1)[0], torch.tensor(1.0))
    state["optimizer"]["state"][0]["exp_avg"] = moments
    shutil.rmtree(newest)
    checkpoint.save(other / "checkpoints", 3, state, keep_last=2)
    assert proof.first_difference(one, other) == "optimizer.state.0.exp_avg: the tensors differ"

    ledger = other / "ledger/rank_00000.jsonl"
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    rows[1]["keys"][0] = "another"
    ledger.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert proof.first_difference(one, other) == "step 2: its samples are not the same"

    journal = other / "metrics.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    rows[2]["loss"] += 1e-7
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert proof.first_difference(one, other).startswith("step 3: the loss is ")


def test_all_that_a_run_has_started_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks, too, which have sessions of their own."""
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\nsetsid sleep 1000 &\necho $$ $! > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pids\nwait\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    run = proof.Fresh(["max_steps=1"], tmp_path / "log")
    while not (tmp_path / "pids").exists():
        assert run.poll() is None
        time.sleep(0.01)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(map(proof._runs, pids))
    run.kill()
    assert not any(map(proof._runs, pids))
    assert run.poll() == -signal.SIGKILL
    run.kill()  # of one that has ended nothing is killed, whose number may be another's by now


def test_the_script_ends_with_one_word(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof.Trial.__init__, "__defaults__", (forked(1),))
    kept = [word for word in job.overrides() if not word.startswith(("output_dir=", "callbacks.log.", "max_steps"))]
    folder = job.tmp / "kept"
    result = run_script("verify_resume", *kept, "steps=6", "kills=1", f"keep={folder}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "identical"
    assert {path.name for path in folder.iterdir()} >= {"whole", "again", "killed"}


def test_what_cannot_be_proven_is_refused(job: Job, tmp_path: Path) -> None:
    words = [word for word in job.overrides() if not word.startswith(("callbacks.log.", "max_steps"))]
    (tmp_path / "there").mkdir()
    result = run_script("verify_resume", *words, "max_minutes=3", "steps=1", f"keep={tmp_path / 'there'}")
    assert result.returncode == 1
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == [
        "steps=1 kills=3",
        f"keep={tmp_path / 'there'}",
        "max_minutes=3",
        f"output_dir='{job.out}'",
    ]

"""Several ranks stop, save and keep time alike, at the same step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import OmegaConf

from pretrain.trainer.clock import Clock
from pretrain.trainer.lifecycle import Stop
from pretrain.trainer.state import RunState
from tests import ranks
from tests.job import Job
from tests.program import Program
from tests.test_main import pretrain


class Pair:
    """Two ranks, of which the other one has nothing to say."""

    rank, size, leads = 0, 2, True

    def greatest(self, values: list[float]) -> Callable[[], list[float]]:
        return lambda: values


def stop_of(state: RunState, is_due: Callable[[], bool] = lambda: False, **words: float) -> Stop:
    clock = Clock(state, total_steps=100, epochs=1, samples_per_step=1, **words)  # type: ignore[arg-type]
    team: Any = Pair()
    return Stop(clock, count_first_step=True, team=team, is_due=is_due)


def test_an_alarm_that_stops_the_run_stops_all_ranks_at_one_step(job: Job) -> None:
    every = ("callbacks.health.every_steps=1", "callbacks.health.warmup_steps=0", "callbacks.health.samples=16")
    words = [*every, "callbacks.health.patience=2", "callbacks.health.action=stop", "max_steps=50"]
    other = ranks.Ranks(job, 2, "trainer=fsdp", *words)
    said = other.finish()
    assert other.codes == [3, 3], said
    last = job.rows()[-1]["step"]
    assert last < 50
    names = {path.name for path in (job.out / "checkpoints").iterdir()}
    assert names == {"latest", f"step_{last:08d}"}


def test_a_checkpoint_that_is_due_is_written_once() -> None:
    """The answer to the question whether one is due comes a step later, when it has been asked again."""
    state, due = RunState(), [False]
    stop = stop_of(state, is_due=lambda: due[0])
    saved = []
    for step in range(1, 9):
        state.step = step
        due[0] = due[0] or step in (2, 6)
        stop.after_step()
        if state.due:
            saved.append(step)
            due[0] = False
    assert saved == [3, 7]


def test_time_is_rank_0s_from_the_first_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks begin seconds apart, and a schedule that follows the clock would give each another learning rate."""
    state = RunState(seconds=10.0)
    stop = stop_of(state, max_seconds=100.0)
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    try:
        stop.on_train_start()
        stop.on_first_batch()
        now[0] += 30
        stop.clock.advance()
        assert stop.clock.progress.step == 10
        stop.after_step()
        assert stop.clock.progress.step == 10
        stop.after_step()
        assert stop.clock.progress.step == 40
    finally:
        stop.restore()


def test_a_sweep_by_ranks_that_can_meet_but_once_is_refused(job: Job) -> None:
    places = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    program = Program(["--multirun", *job.overrides("base_lr=1e-3,1e-4")], job.tmp, os.environ | places)
    said = "".join(program.communicate())
    assert program.returncode == 1
    assert said.startswith("--multirun: torchrun started 2 processes")
    assert not job.out.exists()


@pytest.mark.full
def test_a_sweep_of_runs_of_several_ranks_makes_all_of_them(job: Job) -> None:
    words = ["trainer=ddp", "accelerator=cpu", "devices=2", "base_lr=1e-3,1e-4", "max_steps=2"]
    result = pretrain("--multirun", *job.overrides(*words), cwd=job.tmp)
    assert result.returncode == 0, result.stderr
    rates = [OmegaConf.load(job.out / str(number) / "config.yaml").base_lr for number in range(2)]
    assert rates == [1e-3, 1e-4]

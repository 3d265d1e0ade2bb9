"""The clock: integers by steps, wall-clock by minutes."""

from __future__ import annotations

import time

import pytest

from pretrain.records import Progress
from pretrain.trainer.clock import Clock
from pretrain.trainer.state import RunState


def test_by_steps() -> None:
    state = RunState()
    clock = Clock(state, total_steps=3, epochs=2, samples_per_step=8)
    seen = []
    while not clock.end:
        seen.append(clock.progress)
        clock.advance()
    assert seen == [Progress(0, 3, 2), Progress(1, 3, 2), Progress(2, 3, 2)]
    assert [one.epoch for one in seen] == [0, 0, 1]
    assert (state.step, state.samples_seen) == (3, 24)
    assert clock.end == "all 3 steps are done"


def test_by_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    state = RunState(seconds=30.0)  # of an earlier process
    clock = Clock(state, total_steps=1000, epochs=100, samples_per_step=8, max_seconds=60)
    clock.start()
    assert clock.progress.step == 500
    now[0] += 15
    assert clock.progress.step == 500  # it moves at step boundaries alone
    clock.advance()
    assert (clock.progress.step, state.step) == (750, 1)
    assert not clock.end
    now[0] += 16
    clock.advance()
    assert clock.end == "max_minutes=1 are over"
    assert clock.progress.step == 1000


def test_stop_after_steps_leaves_the_schedule() -> None:
    clock = Clock(RunState(step=5), 100, 10, 8, stop_after_steps=5)
    assert clock.end == "stop_after_steps=5 is reached"
    assert clock.progress.total_steps == 100


def test_it_stands_where_the_run_stands_before_it_starts() -> None:
    """The first step after a restart is made before the clock starts, where it compiles."""
    assert Clock(RunState(step=5), 100, 10, 8).progress.step == 5
    assert Clock(RunState(step=5, seconds=30), 100, 10, 8, max_seconds=60).progress.step == 50

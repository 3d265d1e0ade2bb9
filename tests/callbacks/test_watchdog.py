"""What the watchdog takes for a hang, and what not. That it ends one is tested with real ranks."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.callbacks import watchdog
from pretrain.callbacks.watchdog import EXIT_CODE, Watchdog
from pretrain.trainer.state import RunState


def watchdog_of(folder: Path) -> Watchdog:
    context: Any = SimpleNamespace(folder=folder, rank=0, ranks=1, state=RunState(step=7))
    one = Watchdog(context, factor=50, least_minutes=10)
    one._steps.append(1.0)
    return one


def looks(one: Watchdog, monkeypatch: pytest.MonkeyPatch, *pauses: float) -> float | None:
    """After how many seconds it barks, when it looks after these pauses; None if it does not."""
    now, left, barked = [1000.0], list(pauses), []

    def wait(_: float) -> bool:
        if not left or barked:
            return True
        now[0] += left.pop(0)
        return False

    one.context.state.moved = now[0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(one, "_end", SimpleNamespace(wait=wait))
    monkeypatch.setattr(one, "_bark", barked.append)
    one._watch()
    return barked[0] if barked else None


def test_nothing_for_ten_minutes_is_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks(watchdog_of(tmp_path), monkeypatch, *[10.0] * 100) == 610


def test_a_save_may_take_six_times_as_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = watchdog_of(tmp_path)
    with one.context.state.set_aside("saving"):
        assert looks(one, monkeypatch, *[10.0] * 1000) == 3610
    moved = one.context.state.moved
    assert one.limit == 600
    assert moved == time.monotonic()  # to have saved is a move


def test_so_may_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = watchdog_of(tmp_path)
    one._steps.clear()
    assert looks(one, monkeypatch, *[10.0] * 1000) == 3610


def test_several_ranks_have_less_than_they_wait_for_each_other(tmp_path: Path) -> None:
    """Or a collective would give up first, and nobody would know where."""
    one = watchdog_of(tmp_path)
    one.context.ranks, one.context.patience = 2, 1800.0
    assert one.limit == 600
    one._steps.clear()
    assert one.limit == 27 * 60


def test_time_in_which_the_process_was_stopped_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Suspended for a day, and then again what it was."""
    assert looks(watchdog_of(tmp_path), monkeypatch, 10.0, 86_400.0, *[10.0] * 50) is None


def test_a_full_disk_does_not_keep_it_from_ending_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    done = threading.Event()

    def leave(code: int) -> None:
        codes.append(code)
        done.set()

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(watchdog, "_OTHERS", 0.05)
    (tmp_path / "stacks").write_text("a file where the folder should be")
    watchdog_of(tmp_path)._bark(700.0)
    assert done.wait(120)
    assert codes == [EXIT_CODE]
    assert "test_watchdog.py" in capfd.readouterr().err  # the stacks

"""The account of a run's wall-clock, over restarts."""

from __future__ import annotations

import json
import logging
import time

import pytest

from pretrain.callbacks import goodput
from pretrain.callbacks.goodput import Account, line, shares
from pretrain.trainer.state import RunState
from tests.job import Job


def test_shares_add_up_and_redone_steps_are_lost() -> None:
    """Of 100 s 60 count as training, with 3 of waiting, 4 of evaluating and 1 of saving; 8 were done again."""
    state = RunState(seconds=60.0, spent={"waiting": 3.0, "evaluating": 4.0, "saving": 1.0})
    account = Account(1000.0, 1100.0, seconds=60.0, starting=10.0, lost=8.0, stopped=20.0, starts=2)
    found = shares(account, state)
    assert {name: round(share, 6) for name, share in found.items()} == {
        "trained": 0.52,
        "waiting": 0.03,
        "evaluating": 0.04,
        "saving": 0.01,
        "starting": 0.1,
        "lost": 0.08,
        "not running": 0.2,
        "other": 0.02,
    }
    assert line(account, state).startswith("goodput: 52.0% of 0:01:40 trained (2 starts); waiting 3.0%")


def test_it_goes_on_over_restarts(job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Stopped at step 4 and started again from a checkpoint of step 2, an hour after it was last heard of."""
    job.run("stop_after_steps=2")
    saved = json.loads((job.out / "goodput.json").read_text())
    now = time.time()
    monkeypatch.setattr(goodput, "process_start", lambda: now)
    later = saved | {"updated": now - 3600, "seconds": saved["seconds"] + 30, "first_start": now - 4000}
    (job.out / "goodput.json").write_text(json.dumps(later))
    with caplog.at_level(logging.INFO):
        job.run("max_steps=12")
    account = Account(**json.loads((job.out / "goodput.json").read_text()))
    assert account.starts == 2
    assert account.stopped == pytest.approx(3600, abs=1)
    assert account.lost == pytest.approx(30, abs=0.5)
    assert "goodput: " in caplog.text
    assert 0 < job.rows()[-1]["goodput"] < 0.1

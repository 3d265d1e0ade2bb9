"""`pretrain.train`: the command in a process that lives on, which it leaves as it found it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra import version
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

import pretrain
from pretrain import build, training
from pretrain.launch import local
from pretrain.records import UserError
from pretrain.trainer.lifecycle import Stop
from tests.job import Job

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def state_of_process() -> list[Any]:
    """What is not ours to change."""
    loggers = [logging.getLogger(name) for name in (None, "pretrain", "lightning.pytorch", "lightning.fabric")]
    logs = [(list(one.handlers), one.level, one.propagate, list(one.filters)) for one in loggers]
    found = GlobalHydra.instance().hydra if GlobalHydra().is_initialized() else None
    return [logs, [signal.getsignal(one) for one in NUMBERS], list(warnings.filters), found, version.getbase()]


def train(job: Job, *extra: str) -> training.Trained:
    """However it ends, the process is as it was."""
    words = [word for word in job.overrides(*extra) if not word.startswith("+experiment")]
    before = state_of_process()
    try:
        return pretrain.train("mae_digits", words)
    finally:
        assert state_of_process() == before


def test_it_trains_shows_its_lines_and_can_be_called_again(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a notebook: nobody has set logging up
    result = train(job, "max_steps=3")
    assert (result.folder, result.step, result.finished, result.reason) == (job.out, 3, True, "all 3 steps are done")
    assert result.metrics == job.rows()[-1]
    lines = capsys.readouterr().out.splitlines()
    for line in ("global batch 8 = 1 device × 8 samples × 1 accumulated", f"{job.out}: step 3, all 3 steps are done"):
        assert lines.count(line) == 1, lines
    assert not [line for line in lines if "GPU available" in line or "Tip" in line]
    again = train(job, "max_steps=3")
    assert (again.step, again.finished, again.metrics) == (3, True, result.metrics)
    assert f"{job.out} is finished: all 3 steps are done" in capsys.readouterr().out.splitlines()
    assert pretrain.load(result.folder).features(torch.zeros(2, 3, 8, 8)).shape == (2, 24)


def test_the_users_own_logging_shows_each_line_once(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    assert logging.getLogger("pretrain").getEffectiveLevel() == logging.WARNING
    train(job, "max_steps=1")
    assert [one.getMessage() for one in caplog.records].count(f"{job.out}: step 1, all 1 steps are done") == 1


def test_the_losses_are_those_of_the_command(job: Job, tmp_path: Path) -> None:
    train(job, "max_steps=3")
    other = Job(tmp_path / "other")
    other.shards = job.shards
    other.run("max_steps=3")
    assert job.losses() == other.losses()


def test_all_mistakes_are_said_at_once(job: Job) -> None:
    with pytest.raises(UserError) as failure:
        train(job, "encoder.depht=3", "base_lr=-1", "max_steps=0")
    said = str(failure.value)
    assert "encoder.depht=3: there is no such key; did you mean encoder.depth?" in said
    assert "base_lr=-1" in said
    assert "max_steps=0: must be positive" in said
    assert not job.out.exists()
    with pytest.raises(UserError, match="no_such: there is no such option; one of "):
        pretrain.train("no_such", ["trainer=cpu", "data.train=x.tar"])
    with pytest.raises(UserError, match=r"overrides=trainer=cpu: must be a list"):
        pretrain.train("mae_digits", "trainer=cpu")
    with pytest.raises(UserError, match="`--multirun` is not understood"):
        train(job, "--multirun")


def ask(monkeypatch: pytest.MonkeyPatch, at_step: int, *numbers: signal.Signals) -> None:
    """Signals that come while a step is done."""
    real: Callable[..., None] = Stop.after_step

    def asked(self: Stop, *rest: Any) -> None:
        if self.clock.state.step == at_step:
            for number in numbers:
                os.kill(os.getpid(), number)
        real(self, *rest)

    monkeypatch.setattr(Stop, "after_step", asked)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_saves_and_returns(job: Job, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    with monkeypatch.context() as patch:
        ask(patch, 2, number)
        stopped = train(job, "max_steps=4")
    assert (stopped.step, stopped.finished, stopped.reason) == (2, False, f"received {number.name}")
    assert train(job, "max_steps=4").step == 4
    assert len(job.losses()) == 4


def test_a_second_ctrl_c_ends_it_and_the_folder_is_free(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        ask(patch, 2, signal.SIGINT, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(job, "max_steps=4", "checkpoint.every_steps=1")
    assert train(job, "max_steps=4", "checkpoint.every_steps=1").step == 4


def test_what_fails_before_training_leaves_the_folder_free(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "_trainer", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:  # as a notebook keeps the last traceback
            train(job, "max_steps=1")
    assert train(job, "max_steps=1").finished
    assert kept.value is not None


def test_it_trains_in_a_thread_of_its_own(job: Job) -> None:
    """Where Python lets nobody listen to signals."""
    results: list[training.Trained] = []
    thread = threading.Thread(target=lambda: results.append(train(job, "max_steps=2")))
    thread.start()
    thread.join()
    assert [one.step for one in results] == [2]


def test_a_composition_of_the_user_goes_on(job: Job, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.yaml").write_text("a: 1\n")
    with hydra.initialize_config_dir(str(tmp_path / "mine"), version_base="1.2"):
        before = state_of_process()
        train(job, "max_steps=1")
        assert state_of_process() == before
        assert hydra.compose("own", overrides=["a=2"]) == {"a": 2}


def test_a_recipe_that_was_edited_meanwhile_is_read_again(job: Job, tmp_path: Path) -> None:
    recipe = tmp_path / "conf" / "experiment" / "mine.yaml"
    recipe.parent.mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - mae_digits\n  - _self_\nmax_steps: "
    words = [word for word in job.overrides() if not word.startswith(("+experiment", "max_steps"))]
    words.append(f"hydra.searchpath=[file://{recipe.parents[1]}]")
    for steps in (1, 2):
        recipe.write_text(f"{text}{steps}\n")
        result = pretrain.train("mine", words)
        assert result.step == steps
        shutil.rmtree(job.out)


@pytest.mark.parametrize(
    ("code", "finished", "reason"),
    [(0, True, "all steps are done"), (130, False, "received SIGINT"), (3, False, "an alarm"), (1, False, "")],
)
def test_several_devices_are_given_processes_of_their_own(
    job: Job, monkeypatch: pytest.MonkeyPatch, code: int, finished: bool, reason: str
) -> None:
    started: list[Any] = []

    def start(count: int, words: list[str]) -> int:
        started.append((count, words))
        return code

    monkeypatch.setattr(local, "start", start)
    words = ["trainer=ddp", "accelerator=cpu", "devices=2", f"data.train={job.shards}/s-{{000000..000003}}.tar"]
    words = [word for word in job.overrides(*words) if not word.startswith(("+experiment", "trainer.precision"))]
    if code == 1:
        with pytest.raises(RuntimeError, match="training ended with exit code 1"):
            pretrain.train("mae_digits", words)
    else:
        result = pretrain.train("mae_digits", words)
        assert (result.finished, result.reason, result.step) == (finished, reason, 0)
    ((count, given),) = started
    assert count == 2
    assert given[0] == "+experiment=mae_digits"
    assert any(word.startswith("data.train='") for word in given)


def test_ranks_that_were_started_are_refused(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match="torchrun started 2 processes"):
        train(job)


def test_it_takes_no_experiment_for_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[DictConfig] = []
    monkeypatch.setattr(training, "_here", lambda cfg: (seen.append(cfg), (True, "done"))[1])
    (tmp_path / "x.tar").write_bytes(b"")
    pretrain.train(None, ["trainer=cpu", f"data.train={tmp_path}/x.tar", f"output_dir={tmp_path}/r"])
    assert seen[0].name == "pretrain"

"""Alarms come when they should, once, and end a run where that is asked for; looking changes nothing."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.config.check import check
from pretrain.config.overrides import composed
from pretrain.objective.mae import MAE
from pretrain.records import StepOutput
from pretrain.trainer import checkpoint
from tests.data.shards import write_tar
from tests.job import Job

EVERY_STEP = ("callbacks.health.every_steps=1", "callbacks.health.warmup_steps=0", "callbacks.health.samples=16")
HEALTHY = {"feature_std": 0.5, "effective_rank": 9.0, "prediction_std": 0.5}
COLLAPSED = {
    "rank": HEALTHY | {"effective_rank": 1.0},
    "constant": HEALTHY | {"prediction_std": 0.0},
}


def sick(monkeypatch: pytest.MonkeyPatch, kind: str, *checks: int) -> None:
    """Makes the objective show a kind of collapse at these checks, counted from 1."""
    done: list[int] = []

    def health(*_: object) -> dict[str, torch.Tensor]:
        done.append(1)
        values = COLLAPSED[kind] if len(done) in checks else HEALTHY
        return {name: torch.tensor(value) for name, value in values.items()}

    monkeypatch.setattr(MAE, "health", health)


def texture(seed: int) -> bytes:
    """A PNG of smooth random colours."""
    coarse = np.random.default_rng(seed).integers(256, size=(3, 3, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((8, 8), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def alarms(caplog: pytest.LogCaptureFixture) -> list[str]:
    """`STEP KIND` of each."""
    lines = [record.getMessage() for record in caplog.records if "alarm, " in record.getMessage()]
    return [f"{line.split()[1].rstrip(':')} {line.split('alarm, ')[1].partition(':')[0]}" for line in lines]


@pytest.mark.parametrize("kind", COLLAPSED)
@pytest.mark.parametrize("patience", [1, 3])
def test_a_collapse_is_an_alarm_after_so_many_checks_and_is_said_once(
    job: Job, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str, patience: int
) -> None:
    sick(monkeypatch, kind, *range(4, 99))
    run = job.run(*EVERY_STEP, f"callbacks.health.patience={patience}")
    assert alarms(caplog) == [f"{3 + patience} {kind}"]
    assert run.state.step == 12
    assert run.state.alarm == ""


def test_a_check_without_collapse_ends_the_streak(
    job: Job, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick(monkeypatch, "rank", 1, 2, 4, 5, 6, 8, 9, 10)
    job.run(*EVERY_STEP)
    assert alarms(caplog) == ["6 rank", "10 rank"]


def test_values_that_are_not_finite_are_an_alarm(
    job: Job, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = HEALTHY | {"feature_std": float("nan"), "effective_rank": float("inf")}
    monkeypatch.setattr(MAE, "health", lambda *_: {name: torch.tensor(value) for name, value in broken.items()})
    job.run(*EVERY_STEP)
    assert "step 3: alarm, not finite: feature_std, effective_rank" in caplog.text
    assert caplog.text.count("alarm, ") == 1


def test_streaks_of_two_kinds_are_counted_apart(
    job: Job, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([COLLAPSED["rank"], COLLAPSED["rank"], *[COLLAPSED["rank"] | {"prediction_std": 0.0}] * 2])
    monkeypatch.setattr(MAE, "health", lambda *_: {k: torch.tensor(v) for k, v in next(values, HEALTHY).items()})
    job.run(*EVERY_STEP)
    assert alarms(caplog) == ["3 rank"]


def test_the_beginning_counts_for_nothing(
    job: Job, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sick(monkeypatch, "rank", *range(99))
    job.run(*EVERY_STEP, "callbacks.health.warmup_steps=5")
    assert alarms(caplog) == ["8 rank"]
    assert all("effective_rank" in row for row in job.rows())
    caplog.clear()
    job.out = tmp_path / "other"
    job.run(*EVERY_STEP, "callbacks.health.warmup_steps=null", "max_steps=40")  # 5 % are 2 steps
    assert alarms(caplog) == ["5 rank"]


def test_stop_ends_the_run_with_a_checkpoint_and_its_last_row(
    job: Job, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick(monkeypatch, "constant", *range(99))
    with caplog.at_level(logging.INFO):
        run = job.run(*EVERY_STEP, "callbacks.health.action=stop", "callbacks.log.every_steps=50")
    assert run.state.step == 3
    assert run.state.alarm == "constant"
    assert "step 3, alarm of constant. It is saved" in caplog.text
    assert "usual cures" in caplog.text
    newest = checkpoint.newest(job.out / "checkpoints")
    assert newest is not None
    assert checkpoint.load(newest)["step"] == 3
    assert [(row["step"], row["prediction_std"]) for row in job.rows()] == [(1, 0.0), (2, 0.0), (3, 0.0)]
    assert job.run(*EVERY_STEP, "callbacks.health.action=warn").state.step == 12  # goes on


def test_stop_with_micro_batches_ends_at_a_step(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    sick(monkeypatch, "constant", *range(99))
    run = job.run(*EVERY_STEP, "callbacks.health.action=stop", "max_micro_batch_size=2")
    assert run.state.step == 3
    assert run.state.samples_seen == 24


def test_a_healthy_run_raises_none_and_training_is_not_disturbed(
    job: Job, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    textures = [(f"{i:05d}.png", texture(i)) for i in range(41)]  # the job's own images are of one colour each
    write_tar(tmp_path / "textures.tar", textures)
    job.shards = tmp_path / "textures.tar"
    job.run("callbacks.health=null")
    plain = job.losses()
    assert not any("effective_rank" in row for row in job.rows())
    job.out = tmp_path / "watched"
    job.run(*EVERY_STEP, "callbacks.health.patience=1", "callbacks.health.samples=32")
    assert job.losses() == plain
    assert alarms(caplog) == []
    ranks = [row["effective_rank"] for row in job.rows()]
    assert len(set(ranks)) == 12
    assert all(rank > 2 for rank in ranks)


def test_it_looks_in_evaluation_mode_and_training_goes_on_in_its_own(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    health, forward = MAE.health, MAE.forward

    def looks(self: MAE, *words: Any) -> dict[str, torch.Tensor]:
        seen.append(("health", self.training, torch.is_grad_enabled()))
        return health(self, *words)

    def trains(self: MAE, *words: Any) -> StepOutput:
        seen.append(("step", self.training, torch.is_grad_enabled()))
        return forward(self, *words)

    monkeypatch.setattr(MAE, "health", looks)
    monkeypatch.setattr(MAE, "forward", trains)
    job.run(*EVERY_STEP)
    assert seen == [("step", True, True), ("health", False, False)] * 12


def test_every_n_steps_and_at_the_last(job: Job) -> None:
    job.run("callbacks.health.every_steps=5", "callbacks.health.samples=16")
    assert [row["step"] for row in job.rows() if "feature_std" in row] == [5, 10, 12]


def test_its_time_is_not_training_speed(
    job: Job, monkeypatch: pytest.MonkeyPatch, skip_seconds: Callable[[float], None]
) -> None:
    health = MAE.health
    monkeypatch.setattr(MAE, "health", lambda self, *words: (skip_seconds(1000), health(self, *words))[1])
    job.run("callbacks.log.every_steps=4", "callbacks.health.every_steps=4", *EVERY_STEP[1:], "max_steps=8")
    rates = [row["images_per_second"] for row in job.rows() if row["step"] % 4 == 0]
    assert len(rates) == 2
    assert all(rate > 8 * 4 / 900 for rate in rates)


def test_the_process_says_which_alarm_it_was_by_its_exit_code_and_its_last_line(job: Job) -> None:
    """The job's images are of one colour each, nearly black."""
    process = job.start(*EVERY_STEP, "callbacks.health.patience=2", "callbacks.health.action=stop")
    output, errors = process.communicate()
    assert process.returncode == 3
    assert "step 2: alarm, rank: features of different images hardly differ" in output
    assert "step 2, alarm of rank. It is saved" in output.splitlines()[-1]
    assert "Traceback" not in output + errors


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.health.every_steps=0", "must be at least 1"),
        ("callbacks.health.samples=15", "must be at least 16"),
        ("callbacks.health.patience=0", "must be at least 1"),
        ("callbacks.health.warmup_steps=-1", "must be at least 0"),
        ("callbacks.health.action=halt", "must be one of warn, stop"),
    ],
)
def test_a_wrong_setting_is_said(job: Job, override: str, message: str) -> None:
    lines = check(composed(job.overrides(override)))
    assert len(lines) == 1
    assert override.partition("=")[0] in lines[0]
    assert message in lines[0]


def test_a_run_too_short_to_be_looked_at_is_not_held_up(job: Job) -> None:
    """128 samples of a large model take minutes on a CPU; a trial of two steps should not."""
    job.run("callbacks.health.every_steps=50", f"data.val={job.shards}", "max_steps=2", "epochs=1", "warmup_epochs=0")
    assert not {"feature_std", "knn"} & job.rows()[-1].keys()

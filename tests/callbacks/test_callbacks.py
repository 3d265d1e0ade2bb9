"""Throughput, evaluation, pictures and the progress line, inside a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.callbacks.pictures import draw_curves
from pretrain.trainer.state import RunState
from tests.data.shards import write_shards
from tests.job import Job


def test_speed_leaves_out_what_is_set_aside(skip_seconds: Callable[[float], None]) -> None:
    state = RunState()
    with state.set_aside():
        skip_seconds(1000)
    assert 1000 <= state.aside < 1900


def test_what_a_gpu_has_yet_to_do_is_not_set_aside(
    monkeypatch: pytest.MonkeyPatch, skip_seconds: Callable[[float], None]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    queued = [1000.0]  # seconds
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: skip_seconds(queued.pop()))
    state = RunState()
    with state.set_aside():
        assert queued == []
    assert state.aside < 900


def test_throughput_counts_images_and_waiting(
    job: Job, monkeypatch: pytest.MonkeyPatch, skip_seconds: Callable[[float], None]
) -> None:
    from pretrain.trainer.module import PretrainModule

    illustrate = PretrainModule.illustrate
    slow = lambda self, batch: (skip_seconds(1000), illustrate(self, batch))[1]  # noqa: E731
    monkeypatch.setattr(PretrainModule, "illustrate", slow)
    job.run("callbacks.log.every_steps=4", "callbacks.pictures.every_steps=2")
    for row in job.rows():
        assert 0 <= row["data_wait"] <= 1
        assert row["images_per_second"] > 8 * 4 / 900  # with the pictures' time it would be below
        assert 0.01 < row["peak_memory_gb"] < 50


def test_validation_does_not_disturb_training(job: Job, tmp_path: Path) -> None:
    job.run()
    plain = job.losses()
    write_shards(tmp_path / "val", [9])
    job.out = tmp_path / "with-val"
    job.run(f"data.val={tmp_path / 'val'}", "callbacks.evaluate.every_steps=1", "callbacks.pictures.every_steps=1")
    assert job.losses() == plain
    values = [row["val_loss"] for row in job.rows()]
    assert len(set(values)) == 12
    assert all(np.isfinite(values))


def test_pictures_show_the_same_samples_every_time(job: Job) -> None:
    job.run("callbacks.pictures.every_steps=6", "callbacks.pictures.samples=3")
    first, second = (
        torch.from_numpy(np.asarray(Image.open(path)).copy())
        for path in sorted((job.out / "pictures").glob("reconstruction_*.png"))
    )
    assert first.shape[1] >= 480 - 24  # enlarged, so that a person sees something
    third = first.shape[1] // 3
    assert torch.equal(first[:, : 2 * third], second[:, : 2 * third])  # image and visible part
    assert not torch.equal(first[:, 2 * third :], second[:, 2 * third :])  # what is learned


def test_curves_are_drawn_from_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0, "lr": 0.1}\n{"step": 2, "loss": null, "lr": 0.1}\n'
    )
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert Image.open(tmp_path / "loss.png").width > 400


@pytest.mark.parametrize("terminal", [False, True])
def test_the_progress_line_has_speed_and_time_left(
    job: Job,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    with caplog.at_level(logging.INFO):
        job.run("callbacks.progress.every_seconds=0")
    text = capsys.readouterr().err if terminal else caplog.text
    assert "step 12/12 · loss" in text
    assert "images/s · ETA 0:00:00" in text
    assert ("100%|" in text) is terminal

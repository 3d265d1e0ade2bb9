"""A run of DINO: it goes on to the same bits, whatever the micro-batch, and gives away its teacher."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from pretrain.frozen import load
from pretrain.records import UserError
from pretrain.trainer import checkpoint
from tests.job import DINO, Job
from tests.scripts import run_script


def state(folder: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    saved: dict[str, torch.Tensor] = checkpoint.load(newest)["objective"]
    return saved


def test_it_goes_on_to_the_same_bits(job: Job) -> None:
    """Student, teacher and centre; the schedules of epochs and of steps run on where they were."""
    whole = Job(job.tmp)
    whole.out = job.tmp / "whole"
    settings = [*DINO, "epochs=6", "warmup_epochs=1", "objective.warmup_teacher_temp_epochs=4"]
    settings += ["objective.teacher_temp=0.07", "max_steps=12"]
    whole.run(*settings)
    for _ in range(3):
        job.run(*settings, "stop_after_steps=5")
        job.run(*settings, "data.num_workers=1", "stop_after_steps=9")
    job.run(*settings)
    assert job.losses() == whole.losses()
    ours, theirs = state(job.out), state(whole.out)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert not torch.equal(ours["teacher.encoder.cls_token"], ours["student.encoder.cls_token"])
    assert ours["center"].any()


def test_accumulation_makes_the_same_run(job: Job) -> None:
    """Micro-batches of 2 and of 8: sums in another order, 1e-4 after twelve steps."""
    whole = Job(job.tmp)
    whole.out = job.tmp / "whole"
    whole.run(*DINO)
    job.run(*DINO, "max_micro_batch_size=2")
    for ours, theirs in zip(job.rows(), whole.rows(), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    pairs = zip(state(job.out).values(), state(whole.out).values(), strict=True)
    assert all(torch.allclose(one, other, atol=1e-3) for one, other in pairs)


def test_probes_and_exports_take_the_teacher(job: Job) -> None:
    job.run(*DINO)
    weights = state(job.out)
    for words, name in (("trained", "teacher"), ("student", "student")):
        encoder = load(job.out, words).encoder  # type: ignore[arg-type]
        prefix = f"{name}.encoder."
        expected = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        assert expected.keys() == encoder.state_dict().keys()
        assert all(torch.equal(encoder.state_dict()[key], value) for key, value in expected.items())
    frozen = load(job.out)
    assert (frozen.pool, frozen.view.count, frozen.view.colors) == ("cls", 1, None)
    result = run_script("export", f"checkpoint={job.out}", "format=timm", f"out={job.tmp / 'timm'}")
    assert result.returncode == 0, result.stderr
    again = load(job.tmp / "timm")
    assert torch.equal(again.encoder.state_dict()["cls_token"], weights["teacher.encoder.cls_token"])
    assert json.loads((job.tmp / "timm" / "pretrain.json").read_text())["pool"] == "cls"
    with pytest.raises(UserError, match="an export holds one encoder"):
        load(job.tmp / "timm", "student")
    for arguments, message in (
        (["format=timm", "part=objective"], "timm has no"),
        (["format=hf", "part=objective"], "part=objective"),
    ):
        refused = run_script("export", f"checkpoint={job.out}", *arguments, f"out={job.tmp / 'no'}")
        assert refused.returncode != 0
        assert message in refused.stderr
    whole = run_script("export", f"checkpoint={job.out}", "format=official", "part=objective", f"out={job.tmp / 'all'}")
    assert whole.returncode == 0, whole.stderr
    content = torch.load(job.tmp / "all" / "model.pth", weights_only=True)
    assert torch.equal(content["teacher"]["backbone.cls_token"], weights["teacher.encoder.cls_token"])
    assert torch.equal(
        content["student"]["module.head.last_layer.weight_v"], weights["student.head.last_layer.weight_v"]
    )


def test_an_autoencoder_has_no_student(job: Job) -> None:
    job.run("max_steps=1")
    with pytest.raises(UserError, match="MAE has no teacher"):
        load(job.out, "student")


def test_settings_far_off_are_named_at_the_start(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        job.run(*DINO, "objective.head.prototypes=64")
    assert "objective.head.prototypes=64 for 41 images" in caplog.text


def test_a_collapse_is_named_within_its_patience(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """A teacher without sharpening says nothing of any image; the run stops with a checkpoint."""
    health = ["callbacks.health.every_steps=1", "callbacks.health.warmup_steps=0", "callbacks.health.samples=16"]
    flat = ["objective.teacher_temp=50", "objective.warmup_teacher_temp=50"]
    with caplog.at_level(logging.WARNING):
        run = job.run(*DINO, *flat, *health, "callbacks.health.action=stop")
    assert run.state.step == 3
    assert run.state.alarm == "uniform"
    assert "alarm, uniform: the teacher spreads every image" in caplog.text
    assert checkpoint.newest(job.out / "checkpoints").name == "step_00000003"  # type: ignore[union-attr]

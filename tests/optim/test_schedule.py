"""The schedule equals the official formula at every step of the published recipe."""

from __future__ import annotations

import math

import pytest

from pretrain.optim.schedule import WarmupCosine
from pretrain.records import Progress
from tests.conftest import Golden


def official_lr(epoch: float, lr: float, min_lr: float, warmup_epochs: float, epochs: int) -> float:
    """What util/lr_sched.py of facebookresearch/mae computes for a fractional epoch."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    share = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * share))


@pytest.mark.parametrize(("epochs", "warmup", "per_epoch"), [(800, 40, 312), (1600, 40, 312), (90, 10, 78), (5, 0, 7)])
def test_every_step_equals_the_official_formula(epochs: int, warmup: int, per_epoch: int) -> None:
    schedule = WarmupCosine(peak=2.4e-3, warmup=warmup / epochs)
    for step in range(epochs * per_epoch):
        ours = schedule(Progress(step, epochs * per_epoch, epochs))
        expected = official_lr(step / per_epoch, 2.4e-3, 0.0, warmup, epochs)
        assert abs(ours - expected) <= 1e-12  # two orders of the same float64 operations


def test_a_rescaled_run_has_the_same_shape() -> None:
    schedule = WarmupCosine(peak=1.0, warmup=0.05, final=0.1)
    for share in (0.0, 0.01, 0.05, 0.5):
        assert schedule(Progress(round(1000 * share), 1000, 10)) == pytest.approx(
            schedule(Progress(round(20_000 * share), 20_000, 312))
        )
    assert schedule(Progress(1000, 1000, 10)) == pytest.approx(0.1)


@pytest.mark.parametrize("golden", ["schedules"], indirect=True)
@pytest.mark.parametrize("name", ["lr", "wd", "momentum"])
def test_golden_every_step_of_the_official_dino_schedules(golden: Golden, name: str) -> None:
    config = golden.config[name]
    assert config["start_warmup_value"] == 0
    schedule = WarmupCosine(
        config["base"], config["warmup_epochs"] / config["epochs"], config["final"], peak_twice=True
    )
    steps = config["epochs"] * config["steps_per_epoch"]
    ours = [schedule(Progress(step, steps, config["epochs"])) for step in range(steps)]
    assert ours == pytest.approx(golden[name].tolist(), rel=1e-5, abs=1e-12)  # they were stored as float32

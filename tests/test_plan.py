"""What a run will amount to: the micro-batch rule, the rate, the steps; and the script that says so."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial

import pytest

from pretrain.config.overrides import composed
from pretrain.plan import plan
from pretrain.records import UserError
from tests.scripts import run_script

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("batch", "bound", "devices", "micro", "accumulation"),
    [
        (4096, 256, 1, 256, 16),
        (4096, 256, 64, 64, 1),
        (4096, 100, 1, 64, 64),  # the largest divisor within the bound
        (97, 32, 1, 1, 97),  # a prime
        (90, 32, 3, 30, 1),
        (4, 256, 1, 4, 1),
        (1, 1, 1, 1, 1),
    ],
)
def test_any_global_batch_is_split_evenly(batch: int, bound: int, devices: int, micro: int, accumulation: int) -> None:
    cfg = composed([f"global_batch_size={batch}", f"max_micro_batch_size={bound}"])
    sizes = plan(cfg, 10_000, devices)
    assert (sizes.micro_batch, sizes.accumulation) == (micro, accumulation)
    assert sizes.micro_batch * sizes.accumulation * devices == batch


def test_the_published_recipe_in_numbers() -> None:
    """PRETRAIN.md: effective batch 4096, base lr 1.5e-4, hence lr 2.4e-3; 1,281,167 images, the last batch dropped."""
    sizes = plan(composed(["+experiment=mae_vitl"]), 1_281_167, 64)
    assert sizes.lr == pytest.approx(2.4e-3)
    assert sizes.steps_per_epoch == 312
    assert sizes.total_steps == 800 * 312
    assert sizes.warmup == 40 / 800


def test_max_steps_rescales_and_stop_after_steps_does_not() -> None:
    sizes = plan(composed(["+experiment=mae_vitl", "max_steps=1000", "stop_after_steps=10"]), 1_281_167, 1)
    assert (sizes.total_steps, sizes.warmup, sizes.stop_after_steps) == (1000, 0.05, 10)
    assert "1,000 steps (3.2 epochs), cut after 10" in str(sizes)
    assert "not bit-reproducible" in str(plan(composed(["max_minutes=3"]), 10_000, 1))


def test_what_cannot_be_split_or_filled_is_refused() -> None:
    with pytest.raises(UserError, match="global_batch_size=10: cannot be split over 4 devices; 8 or 12 could"):
        plan(composed(["global_batch_size=10"]), 1000, 4)
    with pytest.raises(UserError, match="there are only 9 images, not enough for one batch"):
        plan(composed(["global_batch_size=10"]), 9, 1)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("PRETRAIN_TRAIN_SHARDS", raising=False)
    return partial(run_script, "plan")


def test_the_script_plans_without_shards_or_hardware(run: Run) -> None:
    result = run("+experiment=mae_vitl", "devices=64")
    assert result.returncode == 0, result.stderr
    assert "global batch 4096 = 64 devices × 64 samples × 1 accumulated" in result.stdout
    assert "1,281,167 samples an epoch, 312 steps an epoch, 249,600 steps (798.0 epochs)" in result.stdout
    assert "329.2 M parameters, 303.1 M in the encoder" in result.stdout  # trained ones: without position tables


def test_the_script_refuses_what_a_run_would_refuse(run: Run) -> None:
    result = run("+experiment=mae_vitl", "devices=3", "encoder.num_heads=7", "encoder.depht=2", "data.val_sample=3")
    assert result.returncode == 1
    assert "encoder.num_heads=7: must divide `embed_dim` (=1024)" in result.stderr
    assert "did you mean encoder.depth?" in result.stderr
    assert "data.val_sample=3: there is no such key" in result.stderr
    assert "data.train" not in result.stderr
    assert "cannot be split over 3 devices" in run("+experiment=mae_vitl", "devices=3").stderr
    assert "num_samples=… is missing" in run("encoder=vit_base").stderr

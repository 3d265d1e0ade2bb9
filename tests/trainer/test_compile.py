"""Compiled blocks make the same run as eager ones."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.job import DINO, HIERA, Job
from tests.trainer.test_run import weights


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("recipe", [[], [*HIERA, "encoder.drop_path=0.3"], DINO], ids=["vit", "hiera", "dino"])
def test_compiled_it_learns_the_same_and_its_checkpoints_are_the_same(job: Job, recipe: list[str]) -> None:
    """Fused kernels sum in another order: losses agree to 1e-4, and a compiled run goes on without compiling."""
    eager = Job(job.tmp)
    eager.out = job.tmp / "eager"
    eager.run(*recipe, "max_steps=12")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):  # none falls back to eager, evaluation included
        val = [f"data.val={job.shards}", "callbacks.evaluate.every_steps=2"]
        job.run(*recipe, *val, "max_steps=12", "stop_after_steps=4", "trainer.compile=true")
    job.run(*recipe, "max_steps=12", "stop_after_steps=8", "trainer.compile=true")
    job.run(*recipe, "max_steps=12")
    assert [row["lr"] for row in job.rows()] == [row["lr"] for row in eager.rows()]
    ours, theirs = job.losses(), eager.losses()
    assert ours.keys() == theirs.keys()
    for step, loss in theirs.items():
        assert float.fromhex(ours[step]) == pytest.approx(float.fromhex(loss), rel=1e-4)
    assert weights(job).keys() == weights(eager).keys()


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_first_compilation_is_not_training_time(job: Job) -> None:
    run = job.run("max_minutes=0.05", "trainer.compile=true", "max_steps=null")
    assert 3 <= run.state.seconds < 4
    assert run.state.step > 10

"""A run with Hiera and drop path: what is drawn for a sample depends on the sample alone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.job import HIERA, Job
from tests.trainer.test_run import same, weights

DROP = [*HIERA, "encoder.drop_path=0.5"]


def test_going_on_gives_the_same_bits(job: Job, tmp_path: Path) -> None:
    job.run(*DROP)
    losses, final = job.losses(), weights(job)
    job.out = tmp_path / "interrupted"
    job.run(*DROP, "stop_after_steps=5")
    job.run(*DROP, "data.num_workers=2")
    assert job.losses() == losses
    assert same(weights(job), final)


def test_drop_path_is_the_same_in_any_micro_batch(job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = {}
    for mode in ("sample", "subset"):
        for bound in (8, 2):
            job.out = tmp_path / f"{mode}{bound}"
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                job.run(*DROP, f"encoder.drop_path_mode={mode}", f"max_micro_batch_size={bound}")
            results[mode, bound] = [row["loss"] for row in job.rows()]
            assert ("depends on the micro-batch" in caplog.text) == (mode == "subset")
    same_losses = pytest.approx(results["sample", 8], rel=1e-4)  # float32 sums in other orders, over 12 steps of AdamW
    assert results["sample", 2] == same_losses
    assert results["subset", 8] != same_losses
    assert results["subset", 2] != pytest.approx(results["subset", 8], rel=1e-4)

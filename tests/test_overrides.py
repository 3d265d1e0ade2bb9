"""Overrides are combined as Hydra does, and composing them changes nothing else."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig

from pretrain.overrides import composed, jobs


def test_a_sweep_is_checked_job_by_job() -> None:
    words = ["+experiment=mae_vitb", "base_lr=1,2", "encoder.depth=3", "encoder.num_heads=4,5"]
    assert jobs(words) == [
        ["+experiment=mae_vitb", f"base_lr={rate}", "encoder.depth=3", f"encoder.num_heads={heads}"]
        for rate in (1, 2)
        for heads in (4, 5)
    ]
    assert jobs(["data.train=[a,b]", "x={"]) == [["data.train=[a,b]", "x={"]]


def test_composing_leaves_no_trace() -> None:
    composed([])
    assert not HydraConfig.initialized()

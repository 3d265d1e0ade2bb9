"""Overrides are combined as Hydra does, and composing them changes nothing else."""

from __future__ import annotations

import pytest
from hydra import compose
from hydra.core.hydra_config import HydraConfig

from pretrain.config import overrides
from pretrain.config.check import judged
from pretrain.config.overrides import composed, jobs


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


def test_a_command_is_composed_once_for_all_who_look_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(overrides, "compose", lambda *words, **named: asked.append(named) or compose(*words, **named))
    overrides._composed.cache_clear()
    judged(["+experiment=mae_digits", "trainer=cpu", "base_lr=0.125"])
    assert [one["overrides"] for one in asked] == [["+experiment=mae_digits", "trainer=cpu", "base_lr=0.125"]]


def test_what_one_changes_in_a_configuration_is_not_the_next_ones() -> None:
    composed(["base_lr=0.25"]).base_lr = 7
    assert composed(["base_lr=0.25"]).base_lr == 0.25

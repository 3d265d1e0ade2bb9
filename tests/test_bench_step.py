"""The benchmark of a step: what it compares with is the same model, and a small run of it says what it found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.assemble import objective_of
from pretrain.config.overrides import composed
from tests.scripts import loaded, run_script

HIERA = ["img_size=32", "embed_dim=8", "stages=[1,1,1,1]", "patch_kernel=3", "patch_stride=1", "patch_padding=1"]
SMALL = ["trainer=cpu", "objective.decoder.embed_dim=48", "objective.decoder.depth=1", "batch=2", "rounds=1"]


@pytest.mark.parametrize(
    ("make", "recipe"),
    [("vit_mae", "mae_vitb"), *(("hiera_mae", f"mae_hiera_{size}") for size in ("tiny", "base_plus"))],
)
def test_transformers_builds_the_same_model(make: str, recipe: str) -> None:
    pytest.importorskip("transformers")
    cfg = composed([f"+experiment={recipe}"])
    with torch.device("meta"):
        baseline: Any = loaded("bench_step")[make](cfg)
    parameters = [
        sum(one.numel() for one in module.parameters() if one.requires_grad) for module in (baseline, objective_of(cfg))
    ]
    assert parameters[0] == parameters[1]


def test_a_hiera_is_compared_with_transformers_alone(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out = tmp_path / "bench.json"
    small = [*SMALL, *(f"encoder.{word}" for word in HIERA), f"out={out}"]
    result = run_script("bench_step", "+experiment=mae_hiera_tiny", *small)
    assert result.returncode == 0, result.stderr
    written = json.loads(out.read_text())
    assert written.keys() == {"pretrain", "transformers", "run"}
    assert written["transformers"]["ratio"]["median"] > 0
    assert (written["run"]["batch"], written["run"]["rounds"]) == (2, 1)

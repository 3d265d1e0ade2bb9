"""DINO on scenes of digits: a healthy run can be told from two that are made to collapse, and it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain import build
from pretrain.config.overrides import composed
from tests.scripts import run_script

NO_CENTRING = ["objective.center_momentum=1"]
NO_TEACHER = ["objective.momentum_teacher=0", "objective.final_momentum_teacher=0"]  # of its own: it is the student


def trained(shards: Path, out: Path, *overrides: str) -> list[dict[str, Any]]:
    """The rows of a run that were measured."""
    data = [f"data.train={shards}/train-*.tar", f"data.val={shards}/val-*.tar", "data.num_samples=null"]
    data += [f"data.index_dir={out.parent / 'index'}", "data.num_workers=0", "callbacks.log.wandb=disabled"]
    cfg = composed(["+experiment=dino_digits", "trainer=cpu", f"output_dir={out}", *data, *overrides])
    build.run_of(cfg).fit()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("teacher_entropy") is not None]


def told(rows: list[dict[str, Any]]) -> float:
    """What the teacher of a run tells of an image at its end, in nats."""
    return float(rows[-1]["teacher_entropy_of_mean"] - rows[-1]["teacher_entropy"])


def drawn(folder: Path, *words: str) -> Path:
    result = run_script("make_digits", f"out={folder}", "scenes=true", *words)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.full
def test_two_ways_to_collapse_are_told_from_health(tmp_path: Path) -> None:
    """At equal steps: what the teacher says, how far the student is from it, and how many directions are left."""
    shards = drawn(tmp_path / "shards", "repeats=1", "val_samples=64")
    short = ["stop_after_steps=60", "global_batch_size=32", "base_lr=1.6e-2"]  # the recipe's rate, for half its batch
    short += ["callbacks.health.every_steps=20", "callbacks.health.samples=64", "callbacks.online_knn=null"]
    healthy = trained(shards, tmp_path / "healthy", *short)
    assert min(row["teacher_entropy_of_mean"] for row in healthy) > 4
    assert told(healthy) > 0.02
    assert healthy[-1]["kl"] > 0.01
    peaked = trained(shards, tmp_path / "peaked", *short, *NO_CENTRING)
    assert peaked[-1]["teacher_entropy_of_mean"] < 0.5
    assert told(peaked) < told(healthy) / 3
    assert peaked[-1]["kl"] < healthy[-1]["kl"] / 3
    selftaught = trained(shards, tmp_path / "selftaught", *short, *NO_TEACHER)
    assert min(row["teacher_entropy_of_mean"] for row in selftaught) < 0.5
    assert told(selftaught) < told(healthy) / 3
    assert selftaught[-1]["feature_std"] < healthy[-1]["feature_std"] / 2
    assert selftaught[-1]["effective_rank"] < healthy[-1]["effective_rank"] / 1.4


@pytest.mark.full
def test_it_learns_to_look_past_places_and_colours(tmp_path: Path) -> None:
    """The recipe as it stands: the teacher against its own random start, and the online k-NN of the controls."""
    shards = drawn(tmp_path / "shards", "repeats=6")
    healthy = trained(shards, tmp_path / "run")
    accuracy = {}
    for probe in ("knn", "linear_probe"):
        for weights in ("trained", "random"):
            out = tmp_path / f"{probe}_{weights}.json"
            words = [f"train={shards}/train-*.tar", f"val={shards}/val-*.tar", f"features={weights}", f"out={out}"]
            assert run_script(probe, f"checkpoint={tmp_path / 'run'}", *words).returncode == 0
            accuracy[probe, weights] = json.loads(out.read_text())["accuracy"]
    assert accuracy["knn", "trained"] > accuracy["knn", "random"] + 0.1
    assert accuracy["linear_probe", "trained"] > accuracy["linear_probe", "random"] + 0.03
    for name, words in {"peaked": NO_CENTRING, "selftaught": NO_TEACHER}.items():
        collapsed = trained(shards, tmp_path / name, "stop_after_steps=400", *words)
        same = [row["knn"] for row in healthy if row["step"] == collapsed[-1]["step"]]
        assert collapsed[-1]["knn"] < same[0] - 0.1

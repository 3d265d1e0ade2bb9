"""DINO on scenes of digits: a healthy run can be told from two that are made to collapse, and it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain import build
from pretrain.overrides import composed
from tests.scripts import run_script

HEALTHY: list[str] = []
NO_CENTRING = ["objective.center_momentum=1"]
NO_TEACHER = ["objective.teacher_momentum=0", "objective.final_teacher_momentum=0"]  # of its own: it is the student


def trained(shards: Path, out: Path, *overrides: str) -> list[dict[str, Any]]:
    """The rows of a run that were measured."""
    data = [f"data.train={shards}/train-*.tar", f"data.val={shards}/val-*.tar", "data.num_samples=null"]
    data += [f"data.index_dir={out.parent / 'index'}", "data.num_workers=0", "callback.log.wandb=disabled"]
    cfg = composed(["+experiment=dino_digits", "trainer=cpu", f"output_dir={out}", *data, *overrides])
    build.run_of(cfg).fit()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("teacher_entropy") is not None]


def drawn(folder: Path, *words: str) -> Path:
    result = run_script("make_digits", f"out={folder}", "scenes=true", *words)
    assert result.returncode == 0, result.stderr
    return folder


def test_two_ways_to_collapse_are_told_from_health(tmp_path: Path) -> None:
    """At equal steps: what the teacher says, how far the student is from it, and how many directions are left."""
    shards = drawn(tmp_path / "shards", "repeats=1", "val_samples=64")
    short = ["stop_after_steps=100", "global_batch_size=32", "base_lr=1.6e-2"]  # the recipe's rate, for half its batch
    short += ["callback.health.every_steps=20", "callback.health.samples=64", "callback.online_knn=null"]
    kinds = {"healthy": HEALTHY, "no_centring": NO_CENTRING, "no_teacher": NO_TEACHER}
    runs = {name: trained(shards, tmp_path / name, *short, *words) for name, words in kinds.items()}
    told = {
        name: [row["teacher_entropy_of_mean"] - row["teacher_entropy"] for row in rows] for name, rows in runs.items()
    }
    healthy = runs["healthy"][-1]
    assert min(row["teacher_entropy_of_mean"] for row in runs["healthy"]) > 4
    assert told["healthy"][-1] > 0.02
    assert healthy["kl"] > 0.01
    for name in ("no_centring", "no_teacher"):
        assert min(row["teacher_entropy_of_mean"] for row in runs[name]) < 0.5
        assert told[name][-1] < told["healthy"][-1] / 3
    assert runs["no_teacher"][-1]["feature_std"] < healthy["feature_std"] / 2
    assert runs["no_teacher"][-1]["effective_rank"] < healthy["effective_rank"] / 1.5


@pytest.mark.full
def test_it_learns_to_look_past_places_and_colours(tmp_path: Path) -> None:
    """The recipe as it stands: the teacher's k-NN and linear probe against its own random start."""
    shards = drawn(tmp_path / "shards", "repeats=6")
    trained(shards, tmp_path / "run")
    accuracy = {}
    for probe in ("knn", "linear_probe"):
        for weights in ("trained", "random"):
            out = tmp_path / f"{probe}_{weights}.json"
            words = [f"train={shards}/train-*.tar", f"val={shards}/val-*.tar", f"weights={weights}", f"out={out}"]
            assert run_script(probe, f"checkpoint={tmp_path / 'run'}", *words).returncode == 0
            accuracy[probe, weights] = json.loads(out.read_text())["accuracy"]
    assert accuracy["knn", "trained"] > accuracy["knn", "random"] + 0.1
    assert accuracy["linear_probe", "trained"] > accuracy["linear_probe", "random"] + 0.03

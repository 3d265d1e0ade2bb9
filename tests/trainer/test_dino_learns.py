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
    shards = drawn(tmp_path / "shards", "repeats=1", "val_samples=64", "side=16")
    short = ["max_steps=80", "global_batch_size=32", "encoder.img_size=16", "objective.global_view.scale=[0.6,1.0]"]
    short += ["base_lr=1.6e-2", "callback.health.every_steps=20", "callback.health.samples=64"]
    kinds = {"healthy": HEALTHY, "no_centring": NO_CENTRING, "no_teacher": NO_TEACHER}
    last = {name: trained(shards, tmp_path / name, *short, *words)[-1] for name, words in kinds.items()}
    print(json.dumps(last, indent=1))
    healthy = last["healthy"]
    assert healthy["teacher_entropy"] > 3
    assert healthy["teacher_entropy_of_mean"] - healthy["teacher_entropy"] > 0.02
    assert healthy["kl"] > 0.01
    for collapsed in (last["no_centring"], last["no_teacher"]):
        assert collapsed["teacher_entropy_of_mean"] < 0.5
        assert collapsed["teacher_entropy_of_mean"] - collapsed["teacher_entropy"] < 0.01
    assert last["no_teacher"]["feature_std"] < healthy["feature_std"] / 3
    assert last["no_teacher"]["effective_rank"] < healthy["effective_rank"] / 1.5


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

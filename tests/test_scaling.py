"""The script that scales on paper, and the document that was made with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.overrides import composed
from pretrain.scaling.table import COLUMNS, dry_rows, row
from tests.scaling.test_profile import MAE
from tests.scripts import FOLDER, run_script

ROOT = FOLDER.parent
PAGE = ROOT / "docs" / "scaling.md"
IMAGENET = 1_281_167


def committed(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs" / "measurements" / f"{name}.json").read_text())
    return found


def test_every_published_recipe_is_in_the_table() -> None:
    names = [path.stem for path in sorted((ROOT / "conf" / "experiment").glob("*.yaml"))]
    published = {name for name in names if composed([f"+experiment={name}"]).data.num_samples == IMAGENET}
    assert committed("scaling").keys() - {"run"} == published


def test_the_documented_tables_are_what_the_script_printed() -> None:
    page = PAGE.read_text()
    results = committed("scaling")
    assert results.pop("run")["overrides"] == []
    assert " | ".join(COLUMNS) in page
    assert all(row(name, result) in page for name, result in results.items())
    dry = committed("scaling_dry_run")
    assert dry.pop("run")["overrides"] == []
    assert all(line in page for name, result in dry.items() for line in dry_rows(name, result))


@pytest.mark.parametrize("name", ["mae_vitb", "dino_vits16"])
def test_the_committed_numbers_are_what_the_script_computes(name: str, tmp_path: Path) -> None:
    everything = committed("scaling")
    out = tmp_path / "scaling.json"
    result = run_script(
        "scaling", f"+experiment={name}", f"num_nodes={everything['run']['arguments']['nodes']}", f"out={out}"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(out.read_text())[name] == everything[name]


@pytest.mark.parametrize(
    ("name", "official", "tables"),
    [
        ("mae_vitb", 111_907_840, 197 * (768 + 512)),
        ("mae_vitl", 329_541_888, 197 * (1024 + 512)),
        ("mae_vith", 657_074_508, 257 * (1280 + 512)),
    ],
)
def test_published_sizes(name: str, official: int, tables: int) -> None:
    """Parameters of facebookresearch/mae's models without their two fixed tables: the sum over 64 ranks sends 2·63/64
    of their gradients, and every rank keeps 16 bytes of each."""
    result, trained = committed("scaling")[name], official - tables
    assert result["trained"] == trained
    assert result["ddp"]["sent"] == pytest.approx(2 * 63 / 64 * 4 * trained)
    assert result["ddp"]["held"] == pytest.approx(16 * trained, rel=0.01)
    assert result["hybrid"]["held"] == pytest.approx(result["ddp"]["held"] / 8, rel=0.02)
    assert result["hybrid"]["leaving"] == pytest.approx(2 * 7 / 8 * 4 * trained, rel=0.02)


def test_more_nodes_make_the_micro_batch_smaller(tmp_path: Path) -> None:
    for nodes, expected in ((1, (64, 8)), (2, (64, 4)), (16, (32, 1))):
        out = tmp_path / f"{nodes}.json"
        words = [*MAE, "max_micro_batch_size=64", f"num_nodes={nodes}", f"out={out}"]
        assert run_script("scaling", *words).returncode == 0
        result = json.loads(out.read_text())["mae_vits"]
        assert (result["micro_batch"], result["accumulation"]) == expected


def test_links_and_processors_can_be_given(tmp_path: Path) -> None:
    """Processors twice as fast compute half as long; with one adapter both limits are the same."""
    plain, other = (tmp_path / f"{name}.json" for name in ("plain", "other"))
    assert run_script("scaling", *MAE, f"out={plain}").returncode == 0
    words = ["adapters=1", "utilization=0.8", "trainer.activation_checkpointing=true", f"out={other}"]
    assert run_script("scaling", *MAE, *words).returncode == 0
    before, after = (json.loads(path.read_text())["mae_vits"] for path in (plain, other))
    assert before["compute"] / 2 < after["compute"] < before["compute"]
    assert after["ddp"]["communication"] > before["ddp"]["communication"]
    assert after["ddp"]["hidden_up_to"] == after["ddp"]["hidden_up_to_one_adapter"]


def test_a_dry_run_prints_what_is_counted_beside_what_is_computed(tmp_path: Path) -> None:
    out = tmp_path / "dry.json"
    result = run_script(
        "scaling", *MAE, "global_batch_size=24", "num_nodes=2", "devices=3", "dry_run=true", f"out={out}"
    )
    assert result.returncode == 0, result.stderr
    for layout in ("ddp", "hybrid", "full"):
        found = json.loads(out.read_text())["mae_vits"][layout]
        assert found["counted"] == found["computed"]
    assert "| mae_vits | hybrid | all_reduce | " in result.stdout


def test_what_cannot_be_computed_is_refused() -> None:
    refused = run_script("scaling", *MAE, "num_nodes=3")
    assert refused.returncode == 1
    assert "global_batch_size=4096: cannot be split over num_nodes=3 × devices=8" in refused.stderr
    assert "utilization=0: must be positive" in run_script("scaling", *MAE, "utilization=0").stderr
    assert (
        "dry_run needs several ranks" in run_script("scaling", *MAE, "num_nodes=1", "devices=1", "dry_run=true").stderr
    )

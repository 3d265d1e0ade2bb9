"""The journal: every row on disk at once, no step twice."""

from __future__ import annotations

import csv
import json
import resource
from pathlib import Path

import pytest

from pretrain.callbacks.journal import Journal, read_rows


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_on_disk_when_the_call_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path, step=0)
    journal.write({"step": 1, "loss": 0.1 + 0.2})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.1 + 0.2}  # to the last bit
    assert table(tmp_path) == [{"step": "1", "loss": repr(0.1 + 0.2)}]


def test_new_columns_may_come_later(tmp_path: Path) -> None:
    journal = Journal(tmp_path, step=0)
    journal.write({"step": 1, "loss": 0.5})
    journal.write({"step": 2, "loss": 0.4, "val_loss": 0.6})
    journal.write({"step": 3, "loss": 0.3})
    assert [row["val_loss"] for row in table(tmp_path)] == ["", "0.6", ""]


def test_going_on_cuts_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    journal = Journal(tmp_path, step=0)
    for step in range(1, 6):
        journal.write({"step": step, "loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # a kill in the middle of a line
    again = Journal(tmp_path, step=3)
    again.write({"step": 4, "loss": 40.0})
    assert [(row["step"], row["loss"]) for row in read_rows(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]
    assert [row["loss"] for row in table(tmp_path)] == ["1.0", "2.0", "3.0", "40.0"]


def test_what_is_not_finite_stays_valid_json(tmp_path: Path) -> None:
    Journal(tmp_path, step=0).write({"step": 1, "loss": float("nan")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] is None
    assert table(tmp_path)[0]["loss"] == "nan"


def test_a_run_goes_on_after_a_row_that_was_not_finite(tmp_path: Path) -> None:
    Journal(tmp_path, step=0).write({"step": 1, "loss": float("inf")})
    Journal(tmp_path, step=1).write({"step": 2, "loss": 0.5, "val_loss": 0.25})
    assert read_rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": None},
        {"step": 2, "loss": 0.5, "val_loss": 0.25},
    ]
    assert [(row["loss"], row["val_loss"]) for row in table(tmp_path)] == [("nan", ""), ("0.5", "0.25")]


def test_a_row_that_cannot_be_written_waits_for_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path, step=0)
    journal.write({"step": 1, "loss": 0.5})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 5, before[1]))
    try:
        journal.write({"step": 2, "loss": 0.4})
        assert len(read_rows(tmp_path / "metrics.jsonl")) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "no row can be written" in caplog.text
    journal.write({"step": 3, "loss": 0.3})
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert [row["step"] for row in table(tmp_path)] == ["1", "2", "3"]

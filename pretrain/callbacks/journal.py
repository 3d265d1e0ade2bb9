"""The run's own record: `metrics.jsonl` and `metrics.csv`, one row at a time, on disk when the call returns.

A kill loses at most the row being written. When a run goes on from a checkpoint, rows after its step are cut off,
so that no step appears twice.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.files import replace_file

log = logging.getLogger(__name__)

Row = Mapping[str, float | int | None]  # None is what was not finite


class Journal:
    """Appends rows to both files.

    Args:
        folder: of the run.
        step: the step that the run goes on from; later rows are cut off. A run that begins again from step 0 puts an
            older record aside, as `metrics.N.jsonl`.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.jsonl = folder / "metrics.jsonl"
        self.csv = folder / "metrics.csv"
        before = read_rows(self.jsonl)
        if before and step == 0:
            aside = next(
                path for number in itertools.count(1) if not (path := folder / f"metrics.{number}.jsonl").exists()
            )
            os.rename(self.jsonl, aside)
            log.warning("this run begins again from step 0; the metrics of the one before are in %s", aside)
        rows = [row for row in before if row["step"] <= step]
        self.columns = list(dict.fromkeys(name for row in rows for name in row))
        self._waiting: list[Row] = []  # rows that could not be written
        replace_file(self.jsonl, "".join(_line(row) for row in rows).encode())
        self._rewrite_csv(rows)

    def write(self, row: Row) -> None:
        """Appends a row; a value that is not finite is kept as null in the jsonl, as nan or inf in the csv, and as nan
        where that was written anew.

        When the disk is full the row waits for the next call: a record is not worth a run.
        """
        self._waiting.append(row)
        sizes = {path: path.stat().st_size for path in (self.jsonl, self.csv)}
        try:
            for one in self._waiting:
                self._append(one)
        except OSError as failure:
            for path, size in sizes.items():
                os.truncate(path, size)  # no half rows
            if len(self._waiting) == 1:
                log.error("no row can be written to %s: %s. Training goes on", self.jsonl.parent, failure)
        else:
            self._waiting = []

    def _append(self, row: Row) -> None:
        with open(self.jsonl, "a", encoding="utf-8") as file:
            file.write(_line(row))
        if new := [name for name in row if name not in self.columns]:
            self.columns += new
            self._rewrite_csv(read_rows(self.jsonl)[:-1])
        with open(self.csv, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _rewrite_csv(self, rows: Sequence[Row]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        if self.columns:
            writer.writeheader()
        writer.writerows({name: math.nan if value is None else value for name, value in row.items()} for row in rows)
        replace_file(self.csv, text.getvalue().encode())


def _line(row: Row) -> str:
    finite = {name: value if value is not None and math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(finite) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, null as None; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows

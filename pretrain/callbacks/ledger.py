"""Which samples each step consumed: a file a rank, to prove that nothing was seen twice and nothing left out."""

from __future__ import annotations

import json
from typing import Any

from pretrain.callbacks.step import Context, StepCallback
from pretrain.files import replace_file
from pretrain.records import Batch
from pretrain.trainer.events import AtBatch, AtStart


class Ledger(StepCallback, AtStart, AtBatch):
    """Appends to `ledger/rank_00000.jsonl` a row a step: its number, and the numbers g and keys of this rank's samples.

    Rows after the step that a run goes on from are cut off, in the files of all ranks that there ever were.

    Args:
        context: of the run.
        enabled: whether it is kept.
    """

    def __init__(self, context: Context, enabled: bool = False) -> None:
        self.context = context
        self.enabled = enabled
        self.file = context.folder / "ledger" / f"rank_{context.rank:05d}.jsonl"
        self._g: list[int] = []
        self._keys: list[str] = []

    def on_train_start(self) -> None:
        if not self.enabled:
            return
        self.file.parent.mkdir(exist_ok=True)
        step, ranks = self.context.state.step, self.context.ranks
        for path in sorted(self.file.parent.glob("rank_*.jsonl")):
            if int(path.stem.removeprefix("rank_")) % ranks == self.context.rank:  # each file is cut by one rank
                whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
                replace_file(path, "".join(line for line in whole if json.loads(line)["step"] <= step).encode())

    def on_batch(self, batch: Batch) -> None:
        if self.enabled:
            self._g += batch.g.tolist()
            self._keys += batch.keys

    def after_step(self) -> None:
        if not self.enabled:
            return
        row: dict[str, Any] = {"step": self.context.state.step, "g": self._g, "keys": self._keys}
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._g, self._keys = [], []

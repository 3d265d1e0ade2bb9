"""A callback that makes a job's first life slow, so that it is still at work when something happens to it."""

from __future__ import annotations

import os
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from pretrain.callbacks.step import Context


class Slow(Callback):
    """Every step from `after` on takes `seconds` longer in the job's first lives; Slurm begins the others."""

    def __init__(self, context: Context, after: int = 3, seconds: float = 0.5, lives: int = 1) -> None:
        self.state = context.state
        self.after = after
        self.seconds = seconds if int(os.environ.get("SLURM_RESTART_COUNT", "0")) < lives else 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.state.step >= self.after:
            time.sleep(self.seconds)

"""Faults of one rank, planted in a run by a callback of its configuration."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import signal
import time
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from pretrain.callbacks.step import Context

Kind = Literal["broken", "killed", "reader", "raises", "hangs", "full", "killed_saving", "raises_saving"]


class Fault(Callback):
    """Does something bad on one rank when it begins a step.

    Args:
        context: of the run.
        kind: `broken` images, of nan; the process `killed`; its `reader` killed; an exception `raises`; it `hangs`;
            no file may grow beyond 2 kB, as on a `full` disk; it is `killed_saving`, in the middle of its next file;
            an exception raises while files take two seconds to be written, `raises_saving`.
        rank: which one.
        step: the steps done before, the first that it is for.
        count: of steps.
    """

    def __init__(self, context: Context, kind: Kind, rank: int, step: int, count: int = 1) -> None:
        self.context = context
        self.kind = kind
        self.rank = rank
        self.steps = range(step, step + count)
        if kind == "raises_saving" and context.rank == rank:
            write = torch.save
            torch.save = lambda *words: (time.sleep(2), write(*words))[1]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.context.rank != self.rank or self.context.state.step not in self.steps:
            return
        if self.kind in ("full", "killed_saving"):  # the checkpoint before, which may be under way, is not meant
            before = self.context.folder / f"checkpoints/step_{self.context.state.step - 1:08d}/COMPLETE"
            while not before.exists():
                time.sleep(0.01)
        if self.kind == "broken":
            for view in batch.views:
                view.fill_(math.nan)
        elif self.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "reader":
            for reader in multiprocessing.active_children():
                os.kill(reader.pid or 0, signal.SIGKILL)
        elif self.kind in ("raises", "raises_saving"):
            raise ZeroDivisionError("planted")
        elif self.kind == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        elif self.kind == "killed_saving":
            torch.save = _die_writing
        else:
            time.sleep(1000)


def _die_writing(state: Any, file: Any) -> None:
    file.write(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)


def planted(kind: Kind, rank: int, step: int, count: int = 1) -> list[str]:
    """The overrides that plant it."""
    node = {"_target_": "tests.faults.Fault", "_partial_": "true", "kind": kind, "rank": rank, "step": step}
    words = [f"+callbacks.fault.{name}={value}" for name, value in {**node, "count": count}.items()]
    return ["allow_targets=[tests.faults]", *words]

"""How Lightning tells our classes what happens: one of its callbacks for each of ours, in the same order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from pretrain.trainer.events import AfterStep, AtBatch, AtClose, AtEnd, AtFirstBatch, AtStart
from pretrain.trainer.lifecycle import Stop
from pretrain.trainer.state import RunState


def adapted(told: Iterable[Any], state: RunState) -> list[Callback]:
    """What Lightning's Trainer is given; its own callbacks stay as they are, in their places.

    Args:
        told: objects that inherit some of `events`, or Lightning's callbacks.
        state: the run's, which says when no step follows.
    """
    return [one if isinstance(one, Callback) else Adapter(one, state) for one in told]


class Adapter(Callback):
    """Passes on what `target` wants to be told of, and ends Lightning's loop when the run's state says so."""

    def __init__(self, target: Any, state: RunState) -> None:
        self.target = target
        self.state = state

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(self.target, AtStart):
            self.target.on_train_start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and isinstance(self.target, AtFirstBatch):
            self.target.on_first_batch()
        if isinstance(self.target, AtBatch):
            self.target.on_batch(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches or not isinstance(self.target, AfterStep):
            return
        self.target.after_step()
        if self.state.stopping or isinstance(self.target, Stop):  # who alone may also say that it goes on
            trainer.should_stop = bool(self.state.stopping)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(self.target, AtEnd):
            self.target.on_train_end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(self.target, AtClose):
            self.target.close(failed=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(self.target, AtClose):
            self.target.close(failed=True)

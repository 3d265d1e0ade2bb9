"""Writes the metrics of a step to the run's files, and to wandb if it is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from pretrain.callbacks.journal import Journal
from pretrain.callbacks.metric_names import grouped, with_field_names
from pretrain.callbacks.step import Context, StepCallback
from pretrain.callbacks.wandb import WandbProcess
from pretrain.records import Problem, refuse
from pretrain.trainer.events import AtClose, AtStart


class Log(StepCallback, AtStart, AtClose):
    """A row every n steps and one at the last step: step, samples_seen, seconds, loss, lr, …

    Goes after the callbacks that add metrics.

    Args:
        context: of the run.
        every_steps: how often.
        wandb: `auto` is online with a key and offline without one; the run never waits for it.
        project: on wandb.
    """

    def __init__(
        self,
        context: Context,
        every_steps: int = 20,
        wandb: Literal["auto", "online", "offline", "disabled"] = "auto",
        project: str = "pretrain",
    ) -> None:
        refuse(self, self.problems(every_steps))
        self.context = context
        self.every_steps = every_steps
        self.mode = wandb
        self.project = project
        self._journal: Journal | None = None
        self._wandb: WandbProcess | None = None

    @staticmethod
    def problems(every_steps: int, **_: object) -> Iterator[Problem]:
        if every_steps < 1:
            yield "every_steps", "must be at least 1"

    def on_train_start(self) -> None:
        context = self.context
        if not context.leads:
            return
        self._journal = Journal(context.folder, context.state.step)
        if self.mode != "disabled":
            self._wandb = WandbProcess(
                context.folder, self.project, context.name, context.run_id, context.config, self.mode
            )

    def after_step(self) -> None:
        state = self.context.state
        if self._journal is None or (state.step % self.every_steps and not state.stopping and not state.reported):
            return
        state.reported = False
        metrics = {name: value.item() if isinstance(value, Tensor) else value for name, value in state.metrics.items()}
        row = {"step": state.step, "samples_seen": state.samples_seen, "seconds": round(state.seconds, 3), **metrics}
        self._journal.write(with_field_names(row))
        if self._wandb is not None:
            self._wandb.write(state.step, grouped(row, state.groups))

    def close(self, failed: bool) -> None:
        if self._wandb is not None:
            self._wandb.close()
            self._wandb = None

"""When a run stops and when it saves.

Signals only set a flag, which is looked at when a step is done: then a checkpoint is written and the run ends.
Lightning's own handlers save inside the signal handler, which was seen to hang and to keep the wrong step, so ours
take their place while training.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from pretrain.records import Problem, RunState, UserError, refuse
from pretrain.trainer import checkpoint
from pretrain.trainer.clock import Clock

log = logging.getLogger(__name__)


class Stop(Callback):
    """Ends the run at a step boundary: at its end, or when a signal asked for it. Goes before all other callbacks.

    Args:
        clock: knows the end of the run.
        count_first_step: whether the first step counts as training time; it does not where it compiles.
    """

    def __init__(self, clock: Clock, count_first_step: bool) -> None:
        self.clock = clock
        self.count_first_step = count_first_step
        self.signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._handlers[number] = signal.signal(number, self._note)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and self.count_first_step:  # the readers are up: this is the end of the set-up
            self.clock.start()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C means now
        self.signal = signal.Signals(number)
        advice = ". Ctrl-C again ends it at once, without saving" if number == signal.SIGINT else ""
        os.write(2, f"\n{self.signal.name}: the step is finished, then saved{advice}\n".encode())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if not self.count_first_step:
            self.count_first_step = True
            self.clock.start()
        state = self.clock.state
        state.stopping = self.clock.end or (f"received {self.signal.name}" if self.signal else "")
        trainer.should_stop = bool(state.stopping)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


class Save(Callback):
    """Writes checkpoints at step boundaries, and always one when the run stops. Goes after all other callbacks.

    Args:
        every_steps, every_minutes: how often; either may be None.
        keep_last: how many of the newest to keep.
        folder: where they go.
        state: the run's counters.
        snapshot: everything that a checkpoint holds.
    """

    def __init__(
        self,
        every_steps: int | None,
        every_minutes: float | None,
        keep_last: int,
        folder: Path,
        state: RunState,
        snapshot: Callable[[], dict[str, Any]],
    ) -> None:
        refuse(self, self.problems(every_steps, every_minutes, keep_last))
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.keep_last = keep_last
        self.folder = folder
        self.state = state
        self.snapshot = snapshot
        self._last = time.monotonic()

    @staticmethod
    def problems(
        every_steps: int | None, every_minutes: float | None, keep_last: int, **_: object
    ) -> Iterator[Problem]:
        if every_steps is not None and every_steps < 1:
            yield "every_steps", "must be at least 1, or null"
        if every_minutes is not None and every_minutes <= 0:
            yield "every_minutes", "must be positive, or null"
        if keep_last < 1:
            yield "keep_last", "must be at least 1"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and (self.state.stopping or self._is_due()):
            with self.state.set_aside():
                self._save()

    def _is_due(self) -> bool:
        by_steps = self.every_steps is not None and self.state.step % self.every_steps == 0
        waited = time.monotonic() - self._last
        return by_steps or (self.every_minutes is not None and waited >= 60 * self.every_minutes)

    def _save(self) -> None:
        content = self.snapshot()
        if broken := _not_finite(content["objective"]):
            raise UserError(
                f"step {self.state.step}: {broken} is not finite. The run stops and nothing is saved: its earlier "
                f"checkpoints in {self.folder} are as they were. A lower base_lr or a longer warm-up are the usual "
                "cures"
            )
        try:
            path = checkpoint.save(self.folder, self.state.step, content, self.keep_last)
        except OSError as failure:
            if self.state.stopping:
                raise UserError(f"no checkpoint of step {self.state.step}, the last: {failure}") from None
            log.error("no checkpoint of step %d: %s. Training goes on", self.state.step, failure)
        else:
            log.log(logging.INFO if self.state.stopping else logging.DEBUG, "checkpoint: %s", path)
        self._last = time.monotonic()


def _not_finite(weights: dict[str, Any]) -> str:
    """The first weight that is not finite, "" if all are."""
    for name, value in weights.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            return name
    return ""

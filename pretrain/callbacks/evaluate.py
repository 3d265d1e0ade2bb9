"""The objective's loss on `data.val`."""

from __future__ import annotations

from collections.abc import Iterator

from pretrain.callbacks.step import Context, StepCallback
from pretrain.records import Problem, refuse


class Evaluate(StepCallback):
    """Adds `val_loss` to the metrics of every n-th step and of the last: always the same samples, crops and masks.

    Args:
        context: of the run.
        every_steps: how often.
    """

    def __init__(self, context: Context, every_steps: int = 500) -> None:
        refuse(self, self.problems(every_steps))
        self.context = context
        self.every_steps = every_steps

    @staticmethod
    def problems(every_steps: int, **_: object) -> Iterator[Problem]:
        if every_steps < 1:
            yield "every_steps", "must be at least 1"

    def after_step(self) -> None:
        state, batches = self.context.state, self.context.val_batches
        if batches is None or (state.step % self.every_steps and not state.at_end):
            return
        with state.set_aside():
            total, samples = 0.0, 0
            for batch in batches():
                total += self.context.loss(batch).loss.item() * len(batch)
                samples += len(batch)
            state.report("val", val_loss=total / samples)

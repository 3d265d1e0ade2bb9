"""Whether the encoder is collapsing: the objective's signs of health, and alarms that they raise.

Self-supervised training can end in a solution that is of no use, the same features for every image, with a loss that
looks like any other. What shows it depends on the objective, which also says what the values mean; here is only when to
look and what to do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Literal

from pretrain.callbacks.step import Context, StepCallback
from pretrain.records import Batch, Problem, refuse

log = logging.getLogger(__name__)

_WARMUP = 0.05  # share of the run


class Health(StepCallback):
    """Adds the objective's signs of health to the metrics of every n-th step and, of longer runs, of the last, and
    watches them.

    Args:
        context: of the run.
        every_steps: how often.
        samples: how many samples they are taken of, the same ones every time.
        patience: checks in a row that must show the same kind of collapse before it is an alarm.
        warmup_steps: so many steps at the beginning count for nothing; None is 5 % of the run.
        action: `warn` says so in the log, once until it passes; `stop` also ends the run, with a checkpoint and the
            exit code 3.
    """

    def __init__(
        self,
        context: Context,
        every_steps: int = 100,
        samples: int = 128,
        patience: int = 3,
        warmup_steps: int | None = None,
        action: Literal["warn", "stop"] = "warn",
    ) -> None:
        refuse(self, self.problems(every_steps, samples, patience, warmup_steps))
        self.context = context
        self.every_steps = every_steps
        self.samples = samples
        self.patience = patience
        self.warmup_steps = warmup_steps
        self.action = action
        self._batch: Batch | None = None  # on the host: all views of a multi-crop are too much to keep on a device
        self._streaks: dict[str, int] = {}  # checks in a row that showed each kind

    @staticmethod
    def problems(
        every_steps: int, samples: int, patience: int, warmup_steps: int | None, **_: object
    ) -> Iterator[Problem]:
        for name, value, least in (
            ("every_steps", every_steps, 1),
            ("samples", samples, 16),
            ("patience", patience, 1),
            ("warmup_steps", warmup_steps, 0),
        ):
            if value is not None and value < least:
                yield name, f"must be at least {least}"

    def after_step(self) -> None:
        state = self.context.state
        if not self.is_due(state, self.every_steps):
            return
        with state.set_aside():
            if self._batch is None:
                self._batch = self.context.examples(self.samples).to("cpu", non_blocking=False)
            values = {name: value.item() for name, value in self.context.health(self._batch).items()}
        state.report("health", **values)
        alarms = {} if self._warms_up() or not self.context.leads else self._watch(values)  # one decides for all
        for sentence in alarms.values():
            log.warning("step %d: alarm, %s", state.step, sentence)
        if alarms and self.action == "stop" and not state.stopping:
            state.alarm = ", ".join(alarms)
            state.asked = (
                f"alarm of {state.alarm}. It is saved; the same command with callbacks.health.action=warn goes on"
            )
            if self.context.ranks == 1:  # several stop together, a step later
                state.stopping = state.asked

    def _warms_up(self) -> bool:
        context = self.context
        if self.warmup_steps is not None:
            return context.state.step <= self.warmup_steps
        if context.max_seconds is not None:
            return context.state.seconds <= _WARMUP * context.max_seconds
        return context.state.step <= _WARMUP * context.last_step

    def _watch(self, values: dict[str, float]) -> dict[str, str]:
        """Kind → sentence, of each kind that now is an alarm and was none at the check before."""
        broken = ", ".join(name for name, value in values.items() if not math.isfinite(value))
        cure = "a lower learning rate is the usual cure"
        found = (
            [f"not finite: {broken}: weights or features overflow; {cure}"] if broken else self.context.alarms(values)
        )
        sentences = {sentence.partition(":")[0]: sentence for sentence in found}
        self._streaks = {kind: self._streaks.get(kind, 0) + 1 for kind in sentences}
        return {kind: sentence for kind, sentence in sentences.items() if self._streaks[kind] == self.patience}

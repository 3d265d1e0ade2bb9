"""What all our callbacks share: they act once per optimizer step, and are given one context."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.records import Batch, StepOutput
from pretrain.trainer.events import AfterStep
from pretrain.trainer.state import RunState


@dataclass(frozen=True)
class Context:
    """What a callback may look at.

    Attributes:
        folder: of the run.
        rank, ranks: of this process, and how many there are.
        patience: seconds that ranks wait for each other.
        name: of the run.
        run_id: identifies the run over restarts.
        state: the run's counters and the last step's metrics; a callback may add metrics of its own.
        last_step, max_seconds: where the run ends; `max_seconds` overrules if it is given.
        samples_per_step: the global batch.
        config: the whole configuration, as plain data.
        examples: so many prepared samples, the same every time: of `data.val`, or else the first of training.
        val_batches: prepared batches of `data.val`, the same every time; None without.
        val_subset: at most so many samples of `data.val`, any of them, the same ones every time, cut centrally, as the
            loader yields them; None without.
        features: what the exported encoder makes of such a batch, one vector a sample, in evaluation mode.
        loss: the objective on a batch, in evaluation mode, without gradients.
        illustrate: the objective's pictures of a batch, likewise.
        health: the objective's signs of health on a batch, on whatever device it lies, likewise.
        alarms: what they show to be wrong, a sentence each, the kind's name and a colon first.
    """

    folder: Path
    rank: int
    ranks: int
    patience: float
    name: str
    run_id: str
    state: RunState
    last_step: int
    max_seconds: float | None
    samples_per_step: int
    config: dict[str, Any]
    examples: Callable[[int], Batch]
    val_batches: Callable[[], Iterable[Batch]] | None
    val_subset: Callable[[int], Iterable[Batch]] | None
    features: Callable[[Batch], Tensor]
    loss: Callable[[Batch], StepOutput]
    illustrate: Callable[[Batch], dict[str, Tensor]]
    health: Callable[[Batch], dict[str, Tensor]]
    alarms: Callable[[Mapping[str, float]], Iterable[str]]

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes and speaks for all."""
        return self.rank == 0


class StepCallback(AfterStep, ABC):
    """A callback of ours: acts when an optimizer step is done, and is told of the other `events` that it inherits."""

    @staticmethod
    def is_due(state: RunState, every_steps: int) -> bool:
        """Whether the step that is done is an n-th one, or the last of a run that has come so far: what looks at many
        samples would take longer than all of a shorter one."""
        return state.step % every_steps == 0 or (state.at_end and state.step > every_steps)

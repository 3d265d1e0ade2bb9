"""What a run counts while it trains."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class RunState:
    """What a run counts, shared by the trainer and its callbacks.

    `step` optimizer steps are done and `samples_seen` samples consumed (on skipped steps too, so it is another
    counter). `seconds` of training wall-clock are added up over restarts. `metrics` are those of the last step,
    and `groups` say what some of them tell of; the others tell of training.
    `stopping` says why no step follows, "" while one does, and `alarm` is what has gone wrong if that is why.
    `interrupted`: a signal is why, so that there may be little time, and the run goes on later. `aside`
    seconds went into evaluation, pictures and saving, and `waited` seconds into waiting for data, since this process
    began to train; `waited_most` by the rank that waited most. `reported` says that the step's metrics hold what is
    rarely measured. `asked` says why a callback wants the run to stop, which it does at the next step boundary. `due`
    says that it is time to save. `failed_saves` counts checkpoints that could not be written. `spent` are the seconds
    of training wall-clock that went into something else, over restarts, by what it was. `moved` is when something was
    last done, for whoever watches: a step, or a batch of an evaluation. `busy` is what the run is doing beside training
    at this moment, "" if it trains.
    """

    step: int = 0
    samples_seen: int = 0
    seconds: float = 0.0
    metrics: dict[str, Tensor | float] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    stopping: str = ""
    interrupted: bool = False
    alarm: str = ""
    aside: float = 0.0
    waited: float = 0.0
    waited_most: float = 0.0
    reported: bool = False
    asked: str = ""
    due: bool = False
    failed_saves: int = 0
    spent: dict[str, float] = field(default_factory=lambda: {"waiting": 0.0, "evaluating": 0.0, "saving": 0.0})
    moved: float = 0.0
    busy: str = ""

    @property
    def at_end(self) -> bool:
        """Whether this was the last step, at which everything is measured and drawn."""
        return bool(self.stopping) and not self.interrupted

    def measure(self, group: str, **values: float) -> None:
        """Adds to the metrics of the step, under the name of what they tell of."""
        self.metrics.update(values)
        self.groups.update(dict.fromkeys(values, group))

    def report(self, group: str, **values: float) -> None:
        """Likewise, of what is not measured at every step, and must not miss the log."""
        self.measure(group, **values)
        self.reported = True

    def wait(self, seconds: float) -> None:
        """Counts time spent waiting for data."""
        self.waited += seconds
        self.spent["waiting"] += seconds

    @contextmanager
    def set_aside(self, what: str = "evaluating") -> Iterator[None]:
        """Keeps what is done inside out of the training speed, and steps that a GPU has yet to do in it."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        start, self.busy = time.perf_counter(), what
        yield
        self.busy, self.moved = "", time.monotonic()
        seconds = time.perf_counter() - start
        self.aside += seconds
        self.spent[what] += seconds

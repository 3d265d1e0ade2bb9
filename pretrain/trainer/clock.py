"""When a run ends and where it stands in its schedule: by steps, or by minutes of training wall-clock."""

from __future__ import annotations

import time

from pretrain.records import Progress
from pretrain.trainer.state import RunState


class Clock:
    """Advances a run's counters and says where it stands.

    Args:
        state: the counters.
        total_steps: of the schedule.
        epochs: of the schedule.
        samples_per_step: the global batch.
        max_seconds: if given, the position in the schedule is elapsed time over this, whatever the number of steps, and
            the run ends with it. Such a run is not bit-reproducible.
        stop_after_steps: ends the run early and leaves the schedule as it is.
    """

    def __init__(
        self,
        state: RunState,
        total_steps: int,
        epochs: int,
        samples_per_step: int,
        max_seconds: float | None = None,
        stop_after_steps: int | None = None,
    ) -> None:
        self.state = state
        self.total_steps = total_steps
        self.epochs = epochs
        self.samples_per_step = samples_per_step
        self.max_seconds = max_seconds
        self.stop_after_steps = stop_after_steps
        self._since: float | None = None
        self._told: float | None = None  # the time, where several ranks have to agree on it
        self._position = 0  # in the schedule, in steps; moves at step boundaries only
        self.read()

    def start(self) -> None:
        """Begins to count training time, on top of what earlier processes counted."""
        self._since = time.monotonic() - self.state.seconds
        self.read()

    @property
    def progress(self) -> Progress:
        """The position in the schedule of the step that is being made."""
        return Progress(self._position, self.total_steps, self.epochs)

    def advance(self) -> None:
        """A step is done."""
        self.state.step += 1
        self.state.samples_seen += self.samples_per_step
        self.read()

    @property
    def elapsed(self) -> float:
        """Seconds of training by this process's own clock."""
        return self.state.seconds if self._since is None else time.monotonic() - self._since

    def agreed(self, seconds: float) -> None:
        """What all ranks take for the time: that of rank 0, when the last step was done."""
        self._told = seconds
        self.read()

    def read(self) -> None:
        """Brings the counted seconds, and the position in the schedule, up to date."""
        self.state.seconds = self.elapsed if self._told is None else self._told
        if self.max_seconds is None:
            self._position = self.state.step
        else:
            self._position = min(int(self.state.seconds / self.max_seconds * self.total_steps), self.total_steps)

    @property
    def end(self) -> str:
        """Why the run is over, "" while it is not."""
        if self.max_seconds is not None and self.state.seconds >= self.max_seconds:
            return f"max_minutes={self.max_seconds / 60:g} are over"
        if self.max_seconds is None and self.state.step >= self.total_steps:
            return f"all {self.total_steps} steps are done"
        if self.stop_after_steps is not None and self.state.step >= self.stop_after_steps:
            return f"stop_after_steps={self.stop_after_steps} is reached"
        return ""

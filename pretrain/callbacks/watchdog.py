"""A run that hangs ends, and says where it hung: no collective's time-out does."""

from __future__ import annotations

import faulthandler
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from pretrain.callbacks.step import Context, StepCallback
from pretrain.records import Problem, refuse
from pretrain.trainer.events import AtClose, AtStart

_REMEMBERED = 50  # steps whose median is taken
_LOOK = 1.0  # seconds between two looks, at most
_OTHERS = 5.0  # seconds in which the other ranks write their stacks, too
_PATIENT = 6  # so many times as long may a save take, on a slow disk, and the first step, which may compile
_BEFORE = 0.9  # of the time after which collectives give up, and say nothing of where
EXIT_CODE = 70


class Watchdog(StepCallback, AtStart, AtClose):
    """Where nothing has moved for long, writes the stacks of all threads to `stacks/rank_00000.txt` and ends the run.

    Every rank watches itself: when one hangs, all soon do, and each leaves its own stacks. What moves a run is a step
    or a batch of an evaluation; a save, and the first step, may take six times as long, but less than several ranks
    wait for each other. Time in which the whole process was stopped, as a scheduler does that suspends jobs, does not
    count.

    Args:
        context: of the run.
        factor: so many times the median step is long, if it is longer than
        least_minutes: this.
    """

    def __init__(self, context: Context, factor: float = 50.0, least_minutes: float = 10.0) -> None:
        refuse(self, self.problems(factor, least_minutes))
        self.context = context
        self.factor = factor
        self.least = 60 * least_minutes
        self._steps: deque[float] = deque(maxlen=_REMEMBERED)
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._step_done = 0.0

    @staticmethod
    def problems(factor: float, least_minutes: float, **_: object) -> Iterator[Problem]:
        for name, value in (("factor", factor), ("least_minutes", least_minutes)):
            if value <= 0:
                yield name, "must be positive"

    def on_train_start(self) -> None:
        self.context.state.moved = self._step_done = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def after_step(self) -> None:
        now = time.monotonic()
        self._steps.append(now - self._step_done)
        self.context.state.moved = self._step_done = now

    def close(self, failed: bool) -> None:
        self._end.set()

    @property
    def limit(self) -> float:
        """Seconds without a move that are too many."""
        limit = max(self.least, self.factor * statistics.median(self._steps or [0.0]))
        if not self._steps or self.context.state.busy == "saving":
            limit *= _PATIENT
        if self.context.ranks == 1:
            return limit
        return min(limit, _BEFORE * self.context.patience)

    def _watch(self) -> None:
        state, pause = self.context.state, min(_LOOK, self.least / 4)
        looked = time.monotonic()
        while not self._end.wait(pause):
            now = time.monotonic()
            if now - looked > self.least / 2:  # this thread did not run either: the process was stopped
                state.moved = max(state.moved, now - pause)
            looked = now
            if now - state.moved > self.limit:
                self._bark(now - state.moved)

    def _bark(self, still: float) -> None:
        # whatever becomes of the stacks: it may be the disk that hangs
        threading.Thread(target=_leave, args=(min(_OTHERS, self.least),), daemon=True).start()
        state = self.context.state
        path = stacks_of(self.context.folder, self.context.rank)
        said = (
            f"\nrank {self.context.rank}: nothing has moved for {still:.0f} s after step {state.step} (a step takes "
            f"{statistics.median(self._steps or [0.0]):.2f} s): the run ends. Where it hung is in {path}; the same "
            "command goes on from the last checkpoint\n"
        )
        os.write(2, said.encode())
        try:
            write_stacks(path)
        except OSError:  # the disk is full, perhaps: they are worth more than a tidy log
            faulthandler.dump_traceback(2, all_threads=True)
        time.sleep(2 * _OTHERS)  # until `_leave` ends the process


def _leave(after: float) -> None:
    time.sleep(after)
    os._exit(EXIT_CODE)


def stacks_of(folder: Path, rank: int) -> Path:
    """The file for the stacks of a rank."""
    return folder / "stacks" / f"rank_{rank:05d}.txt"


def write_stacks(path: Path) -> None:
    """Where all threads of this process are.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        faulthandler.dump_traceback(file, all_threads=True)

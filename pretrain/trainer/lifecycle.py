"""When a run stops and when it saves.

Signals only set a flag, which is looked at when a step is done: then a checkpoint is written and the run ends.
Lightning's own handlers save inside the signal handler, which was seen to hang and to keep the wrong step, so ours
take their place while training.

Several ranks tell each other at the end of every step what each has been asked, and look at the answers a step later,
when they have long been there: so all of them save, and stop, at the same step, and nobody waits.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from pretrain.records import Problem, UserError, refuse
from pretrain.trainer import checkpoint
from pretrain.trainer.clock import Clock
from pretrain.trainer.events import AfterStep, AtClose, AtFirstBatch, AtStart
from pretrain.trainer.shard import local
from pretrain.trainer.state import RunState
from pretrain.trainer.team import Team

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stop(AtStart, AtFirstBatch, AfterStep):
    """Ends the run at a step boundary: at its end, or when a signal asked for it. Goes before all other callbacks.

    Args:
        clock: knows the end of the run.
        count_first_step: whether the first step counts as training time; it does not where it compiles.
        team: the ranks of the run.
        is_due: whether, by rank 0's clock, it is time to save.
    """

    def __init__(
        self, clock: Clock, count_first_step: bool, team: Team, is_due: Callable[[], bool] = lambda: False
    ) -> None:
        self.clock = clock
        self.count_first_step = count_first_step
        self.team = team
        self.is_due = is_due
        self.signal: signal.Signals | None = None  # of any rank, once all know of it
        self.asked: signal.Signals | None = None  # of this rank
        self._answers: Callable[[], list[float]] | None = None
        self._told_due = False  # at the last step: what comes of it is not seen before the next one is done
        self._handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self) -> None:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread hear signals
            for number in _SIGNALS:
                self._handlers[number] = signal.signal(number, self._note)
        if self.team.size > 1:
            self.clock.agreed(self.clock.state.seconds)  # the checkpoint's; each rank's own would be another

    def on_first_batch(self) -> None:
        if self.count_first_step:  # the readers are up: this is the end of the set-up
            self.clock.start()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None and number == signal.SIGINT:  # the second Ctrl-C means now
            if self.team.size == 1:
                raise KeyboardInterrupt
            os._exit(128 + number)  # at once, or ranks would take each other for lost
        first, self.asked = self.asked is None, signal.Signals(number)
        advice = ". Ctrl-C again ends it at once, without saving" if number == signal.SIGINT else ""
        if first and self.team.leads:
            os.write(2, f"\n{self.asked.name}: the step is finished, then saved{advice}\n".encode())

    def after_step(self) -> None:
        if not self.count_first_step:
            self.count_first_step = True
            self.clock.start()
        state = self.clock.state
        number, alarm, due, seconds, waited = self._agreed()
        self.signal = signal.Signals(int(number)) if number else None
        state.due = bool(due)
        state.waited_most = max(state.waited, waited)
        if self.team.size > 1:
            self.clock.agreed(seconds)
        if alarm and not state.alarm:
            state.alarm = "another rank's"
        asked = (state.asked or "alarm") if alarm else ""  # not before all know
        reasons = (self.clock.end, f"received {self.signal.name}" if self.signal else "", asked)
        state.stopping = next(filter(None, reasons), "")
        state.interrupted = bool(self.signal) and not self.clock.end

    def _agreed(self) -> list[float]:
        """The greatest of what the ranks had to say when the last step was done; of a single rank, of this one."""
        state, leads = self.clock.state, self.team.leads
        due = leads and not self._told_due and self.is_due()
        self._told_due = due and self.team.size > 1
        mine = [
            float(self.asked or 0),
            float(bool(state.asked) and leads),
            float(due),
            self.clock.elapsed if leads else 0.0,
            state.waited,
        ]
        if self.team.size == 1:
            return mine
        answers = self._answers() if self._answers else [0.0, 0.0, 0.0, self.clock.state.seconds, 0.0]
        self._answers = self.team.greatest(mine)
        return answers

    def restore(self) -> None:
        """Lets signals do again what they did before training; called once the ranks have parted. Those that ended the
        run may come again until the process has ended, too."""
        for number, handler in self._handlers.items():
            again = self.signal is not None and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if again else handler)
        self._handlers = {}


class UnsavedError(UserError):
    """The last checkpoint of a run could not be written; the one before is whole."""


class Save(AtStart, AfterStep, AtClose):
    """Writes checkpoints at step boundaries, and always one when the run stops. Goes after all other callbacks.

    Args:
        every_steps, every_minutes: how often; either may be None.
        keep_last: how many of the newest to keep.
        keep_every: the checkpoints of multiples of so many steps are kept for good; None keeps none of them.
        asynchronous: whether training goes on while a checkpoint is written; it waits for a copy in memory alone.
        folder: where they go.
        state: the run's counters.
        team: the ranks of the run.
        snapshot: everything that a checkpoint holds.
    """

    def __init__(
        self,
        every_steps: int | None,
        every_minutes: float | None,
        keep_last: int,
        keep_every: int | None,
        asynchronous: bool,
        folder: Path,
        state: RunState,
        team: Team,
        snapshot: Callable[[], dict[str, Any]],
    ) -> None:
        refuse(self, self.problems(every_steps, every_minutes, keep_last, keep_every))
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.folder = folder
        self.state = state
        self.team = team
        self.snapshot = snapshot
        self._last = time.monotonic()
        self._thread = ThreadPoolExecutor(1, "checkpoint") if asynchronous else None
        self._writers = team.another() if asynchronous else team
        self._copies: dict[str, Tensor] = {}  # what is being written, kept for the next time
        self._under_way: tuple[int, Future[Path]] | None = None

    @staticmethod
    def problems(
        every_steps: int | None, every_minutes: float | None, keep_last: int, keep_every: int | None, **_: object
    ) -> Iterator[Problem]:
        for name, value in (("every_steps", every_steps), ("keep_every", keep_every)):
            if value is not None and value < 1:
                yield name, "must be at least 1, or null"
        if every_minutes is not None and every_minutes <= 0:
            yield "every_minutes", "must be positive, or null"
        if keep_last < 1:
            yield "keep_last", "must be at least 1"

    def is_due(self) -> bool:
        """Whether the last checkpoint is so many minutes old."""
        return self.every_minutes is not None and time.monotonic() - self._last >= 60 * self.every_minutes

    def on_train_start(self) -> None:
        self._last = time.monotonic()

    def after_step(self) -> None:
        state = self.state
        by_steps = self.every_steps is not None and state.step % self.every_steps == 0
        if state.stopping or by_steps or state.due:
            with state.set_aside("saving"):
                self._save()

    def close(self, failed: bool) -> None:
        """What is being written is there before the process leaves, which waits for no thread."""
        if not failed:
            self._settle()
        if self._thread is not None:
            self._thread.shutdown()

    def _save(self) -> None:
        self._settle()
        content, step = self.snapshot(), self.state.step
        self.team.together(lambda: _refuse_not_finite(content, step, self.folder))
        copies = None if self._thread is None or self.state.stopping else self._copies
        write = checkpoint.writer(self.folder, step, content, self.keep_last, self.keep_every, self._writers, copies)
        if copies is not None:
            assert self._thread is not None
            self._under_way = step, self._thread.submit(write)
        else:
            self._note(step, write)
        self._last = time.monotonic()

    def _settle(self) -> None:
        """Waits for the checkpoint that is being written."""
        if self._under_way is not None:
            (step, future), self._under_way = self._under_way, None
            self._note(step, future.result)

    def _note(self, step: int, write: Callable[[], Path]) -> None:
        try:
            path = write()
        except OSError as failure:
            if self.state.stopping and step == self.state.step:
                raise UnsavedError(f"no checkpoint of step {step}, the last: {failure}") from None
            self.state.failed_saves += 1
            log.error("no checkpoint of step %d: %s. Training goes on", step, failure)
        else:
            log.log(logging.INFO if self.state.stopping else logging.DEBUG, "checkpoint: %s", path)


def _refuse_not_finite(content: dict[str, Any], step: int, folder: Path) -> None:
    broken = _not_finite(content["objective"]) or _not_finite(content["optimizer"])
    if broken:
        raise UserError(
            f"step {step}: {broken} is not finite. The run stops and nothing is saved: its earlier "
            f"checkpoints in {folder} are as they were. A lower base_lr or a longer warm-up are the usual "
            "cures"
        )


def _not_finite(tree: Any, name: str = "") -> str:
    """The first tensor in it that is not finite, "" if all are."""
    if isinstance(tree, dict):
        named = ((f"{name}.{key}".lstrip("."), value) for key, value in tree.items())
        return next(filter(None, (_not_finite(value, path) for path, value in named)), "")
    if isinstance(tree, Tensor) and tree.is_floating_point() and not torch.isfinite(local(tree)).all():
        return name
    return ""

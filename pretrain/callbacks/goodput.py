"""What became of the run's wall-clock: how much of it trained, and what the rest was lost to.

Kept over restarts in `goodput.json`. Time that was trained and is trained again, since no checkpoint held it, counts as
lost; time without a process, between a kill and the next start, as not running.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from pretrain.callbacks.step import Context, StepCallback
from pretrain.files import replace_file
from pretrain.records import Problem, refuse
from pretrain.trainer.events import AtEnd, AtFirstBatch, AtStart
from pretrain.trainer.state import RunState

log = logging.getLogger(__name__)

_IMPORTED = time.time()


@dataclass
class Account:
    """Of the whole run, in seconds of wall-clock; `first_start` and `updated` since the epoch.

    `seconds` are those that the run counts as training; `starting` those before the first step of each start; `lost`
    those of steps that were made again; `stopped` those without a process; `starts` how often it was started.
    """

    first_start: float
    updated: float
    seconds: float = 0.0
    starting: float = 0.0
    lost: float = 0.0
    stopped: float = 0.0
    starts: int = 0


class Goodput(StepCallback, AtStart, AtFirstBatch, AtEnd):
    """Adds `goodput`, the share of wall-clock that trained, to the metrics, and ends the run's log with an account.

    Args:
        context: of the run.
        every_steps: how often; at the last step in any case.
    """

    def __init__(self, context: Context, every_steps: int = 20) -> None:
        refuse(self, self.problems(every_steps))
        self.context = context
        self.every_steps = every_steps
        self._account: Account | None = None

    @staticmethod
    def problems(every_steps: int, **_: object) -> Iterator[Problem]:
        if every_steps < 1:
            yield "every_steps", "must be at least 1"

    def on_train_start(self) -> None:
        if not self.context.leads:
            return
        began, state = process_start(), self.context.state
        account = _read(self._file) or Account(first_start=began, updated=began)
        if state.step == 0 and account.seconds == 0:
            account = Account(first_start=began, updated=began, starts=account.starts)
        account.stopped += max(0.0, began - account.updated)
        account.lost += max(0.0, account.seconds - state.seconds)
        account.seconds = state.seconds
        account.starts += 1
        self._account = account
        self._before = began

    def on_first_batch(self) -> None:
        if self._account is not None:
            self._account.starting += time.time() - self._before
            self._write()

    def after_step(self) -> None:
        state = self.context.state
        if self._account is None or (state.step % self.every_steps and not state.stopping):
            return
        self._write()
        state.measure("speed", goodput=shares(self._account, state)["trained"])

    def on_train_end(self) -> None:
        if self._account is not None:
            self._write()
            log.info("%s", line(self._account, self.context.state))

    @property
    def _file(self) -> Path:
        return self.context.folder / "goodput.json"

    def _write(self) -> None:
        assert self._account is not None
        self._account.seconds, self._account.updated = self.context.state.seconds, time.time()
        try:
            replace_file(self._file, json.dumps(asdict(self._account)).encode())
        except OSError as failure:
            log.error("no goodput.json: %s. Training goes on", failure)


def shares(account: Account, state: RunState) -> dict[str, float]:
    """What share of the wall-clock went where; the rest, such as the first step's compilation, is `other`."""
    total = max(account.updated - account.first_start, 1e-9)
    spent = state.spent
    seconds = {
        "trained": max(0.0, account.seconds - sum(spent.values())),
        **spent,
        "starting": account.starting,
        "lost": account.lost,
        "not running": account.stopped,
    }
    found = {name: value / total for name, value in seconds.items()}
    return found | {"other": max(0.0, 1.0 - sum(found.values()))}


def line(account: Account, state: RunState) -> str:
    """goodput: 91.3 % of 2:10:04 trained (3 starts); waiting 2.1 %, saving 0.4 %, lost 1.0 %"""
    total = timedelta(seconds=round(account.updated - account.first_start))
    found = shares(account, state)
    rest = ", ".join(f"{name} {share:.1%}" for name, share in found.items() if name != "trained" and share >= 0.0005)
    return f"goodput: {found['trained']:.1%} of {total} trained ({account.starts} starts); {rest or 'nothing else'}"


def process_start() -> float:
    """When this process began, in seconds since the epoch."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return _IMPORTED


def _read(path: Path) -> Account | None:
    try:
        return Account(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None

"""Whether a run that is killed ends as if nothing had happened, tried out on the configuration that will really run.

The run is made twice in one go, which must give the same bits or nothing can be said; then once more with SIGKILL at
random moments, started again by the same command. Compared are, to the bit, the loss of every step, the samples that
each step consumed, and all of the last checkpoint: weights, optimizer, teacher, centre, counters.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pretrain.callbacks.journal import read_rows
from pretrain.records import UserError
from pretrain.trainer import checkpoint

_UNCOMPARED = ("seconds", "spent", "bad_samples")  # of a checkpoint: wall-clock, and a report
_PATIENCE = 900.0  # seconds without a new step after which a run is taken to hang
_GONE = 120.0  # seconds until killed processes are gone


@dataclass(frozen=True)
class Killing:
    """What a killed run came to: the steps that were made again, and seconds from each start to its first new step."""

    lost_steps: list[int]
    recovery: list[float]


class Started(Protocol):
    """A training that runs, with all its processes."""

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""

    def kill(self) -> None:
        """Ends all its processes by SIGKILL, and returns when they are gone."""


class Fresh:
    """`python -m pretrain` in processes of its own.

    Args:
        words: of the command.
        log: the file that its output is appended to.
    """

    def __init__(self, words: Sequence[str], log: Path) -> None:
        command = [sys.executable, "-m", "pretrain", *words]
        with open(log, "a", encoding="utf-8") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    def poll(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        if self._process.poll() is not None:
            return
        processes = [self._process.pid, *_descendants(self._process.pid)]  # ranks have sessions of their own
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + _GONE
        while any(map(_runs, processes)) and time.monotonic() < deadline:  # a GPU takes its time to let them go
            time.sleep(0.05)


def _descendants(pid: int) -> list[int]:
    """What a process has started, and what that has started."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text(errors="replace").rpartition(")")[2].split()  # behind the command's own name
            parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def _runs(pid: int) -> bool:
    """Whether a process is there, and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Trial:
    """Runs of one configuration in a folder of their own.

    Args:
        words: the overrides that name the configuration.
        steps: that each run makes.
        folder: for all of them.
        start: starts one, given all of its words and a file for its output.
    """

    def __init__(
        self, words: Sequence[str], steps: int, folder: Path, start: Callable[[Sequence[str], Path], Started] = Fresh
    ) -> None:
        self.words = list(words)
        self.steps = steps
        self.folder = folder
        self.start = start

    def run(self, name: str, extra: Sequence[str] = ()) -> Path:
        """Makes a run in one go.

        Raises:
            UserError: it fails.
        """
        with self._started(name, extra) as process:
            self._finish(process, name)
        return self.folder / name

    def run_killed(self, name: str, kills: int, seed: int, extra: Sequence[Sequence[str]] = ((),)) -> Killing:
        """Makes a run that is killed so often, at random moments, all of its processes at once.

        Args:
            extra: words that each start has beside the others, in turn.

        Raises:
            UserError: it fails by itself, or hangs.
        """
        draw, out = random.Random(seed), self.folder / name
        goals = sorted(draw.sample(range(1, self.steps), min(kills, self.steps - 1)))
        lost: list[int] = []
        recovery: list[float] = []
        for number, goal in enumerate(goals):
            began, before = time.monotonic(), _step(out)
            with self._started(name, extra[number % len(extra)]) as process:
                self._wait_for(max(goal, before + 1), process, name, began, recovery)
                time.sleep(draw.random() * 0.3)  # somewhere in what follows: a step, a save, an evaluation
                reached = _step(out)
            newest = checkpoint.newest(out / "checkpoints")
            lost.append(max(0, reached - (checkpoint.step_of(newest) if newest else 0)))
        with self._started(name, extra[len(goals) % len(extra)]) as process:
            self._finish(process, name)
        return Killing(lost, recovery)

    @contextlib.contextmanager
    def _started(self, name: str, extra: Sequence[str]) -> Iterator[Started]:
        """The run; killed when the block ends."""
        out = self.folder / name
        fixed = ["callbacks.log.every_steps=1", "callbacks.log.wandb=disabled", "callbacks.ledger.enabled=true"]
        words = [*self.words, *fixed, *extra, f"stop_after_steps={self.steps}", f"output_dir={out}"]
        process = self.start(words, self.folder / f"{name}.log")
        try:
            yield process
        finally:
            process.kill()

    def _wait_for(self, goal: int, process: Started, name: str, began: float, recovery: list[float]) -> None:
        """Until the run has come so far; notes when it made its first new step, if it goes on from others."""
        before, noted = _step(self.folder / name), False
        for step in self._followed(process, name):
            if step > before > 0 and not noted:
                recovery.append(time.monotonic() - began)
                noted = True
            if step >= goal:
                return

    def _finish(self, process: Started, name: str) -> None:
        for _ in self._followed(process, name):
            pass

    def _followed(self, process: Started, name: str) -> Iterator[int]:
        """The steps that are done, again and again until the run has ended well.

        Raises:
            UserError: it fails, or hangs.
        """
        before, moved = -1, time.monotonic()
        while (code := process.poll()) is None:
            step = _step(self.folder / name)
            if step != before:
                before, moved = step, time.monotonic()
            if time.monotonic() - moved > _PATIENCE:
                raise UserError(f"{name}: no step after {step} in {_PATIENCE:.0f} s\n{self._tail(name)}")
            yield step
            time.sleep(0.02)
        if code:
            raise UserError(self._failure(name, code))

    def _failure(self, name: str, code: int) -> str:
        return f"the run itself fails (exit code {code}):\n{self._tail(name)}"

    def _tail(self, name: str) -> str:
        return "".join((self.folder / f"{name}.log").read_text(encoding="utf-8").splitlines(keepends=True)[-15:])


def first_difference(one: Path, other: Path) -> str:
    """The first thing in which two runs differ, "" if they are the same to the bit."""
    losses = [{row["step"]: row["loss"] for row in read_rows(path / "metrics.jsonl")} for path in (one, other)]
    for step in sorted(losses[0].keys() | losses[1].keys()):
        a, b = (values.get(step) for values in losses)
        if a != b:
            return f"step {step}: the loss is {a!r} in one and {b!r} in the other"
    samples = [consumed(path) for path in (one, other)]
    for step in sorted(samples[0].keys() | samples[1].keys()):
        if samples[0].get(step) != samples[1].get(step):
            return f"step {step}: its samples are not the same"
    first, second = (checkpoint.newest(path / "checkpoints") for path in (one, other))
    if first is None or second is None:
        return "one of them has no checkpoint"
    return _difference(checkpoint.load(first), checkpoint.load(second))


def consumed(run: Path) -> dict[int, list[tuple[int, str]]]:
    """The samples of each step, from a run's ledger: their numbers and keys, sorted.

    Raises:
        ValueError: a rank says two things of one step.
    """
    steps: dict[int, list[tuple[int, str]]] = {}
    for path in sorted((run / "ledger").glob("rank_*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if len({row["step"] for row in rows}) != len(rows):
            raise ValueError(f"`{path}` has a step twice")
        for row in rows:
            steps.setdefault(row["step"], []).extend(zip(row["g"], row["keys"], strict=True))
    return {step: sorted(samples) for step, samples in steps.items()}


def _difference(one: Any, other: Any, name: str = "") -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return f"{name}: {sorted(map(str, one.keys() ^ other.keys()))} is in one alone"
        named = ((f"{name}.{key}".lstrip("."), key) for key in one if name or key not in _UNCOMPARED)
        return next(filter(None, (_difference(one[key], other[key], path) for path, key in named)), "")
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return f"{name}: {len(one)} and {len(other)} of them"
        pairs = enumerate(zip(one, other, strict=True))
        return next(filter(None, (_difference(a, b, f"{name}.{number}") for number, (a, b) in pairs)), "")
    if isinstance(one, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))
        return "" if same else f"{name}: the tensors differ"
    return "" if one == other else f"{name}: {one!r} in one and {other!r} in the other"


def _bits(tensor: Tensor) -> Tensor:
    """So that −0 is not 0, and nan is itself."""
    return tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor


def _step(out: Path) -> int:
    """The last step in a run's journal, which may be half written."""
    rows = read_rows(out / "metrics.jsonl")
    return int(rows[-1]["step"]) if rows else 0

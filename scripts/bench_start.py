"""Times what a command does before its work: the help, a configuration shown, a plan, a run until its first step.

    python scripts/bench_start.py before=../other data=SHARDS rounds=5 out=start.json

Each command runs in a process of its own, in an empty folder. With `before`, another checkout runs the same commands in
turns with this one, so that a noisy machine slows both alike; a ratio is taken round by round. Processor time is user
and system seconds of the process and all that it started; of a run it is the whole of a run of one step. Wall-clock is
until the command ends; of a run, until its first step stands in its metrics.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config.arguments import script
from pretrain.config.problem import UserError

HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Arguments:
    before: str | None = None  # another checkout to compare with
    data: str | None = None  # shards for the first step; without, it is left out
    rounds: int = 5
    out: str | None = None


@dataclass(frozen=True)
class Taken:
    """Seconds of processor time and of wall-clock."""

    cpu: float
    wall: float


def commands(checkout: Path, data: str | None, scratch: Path) -> dict[str, list[str]]:
    """Name → words behind `python`."""
    train, plan = ["-m", "pretrain"], [str(checkout / "scripts" / "plan.py")]
    found = {
        "train help": [*train, "--help"],
        "plan help": [*plan, "--help"],
        "show": [*train, "+experiment=mae_vitl", "--cfg", "job"],
        "plan": [*plan, "+experiment=mae_vitl"],
    }
    if data is not None:
        callbacks = "callbacks" if (checkout / "conf" / "callbacks").is_dir() else "callback"  # as 0.1 calls them
        words = [f"data.train={data}", f"data.index_dir={scratch / 'index'}", "output_dir=run"]
        small = ["+experiment=mae_digits", "trainer=cpu", "max_steps=1", f"{callbacks}.log.wandb=disabled"]
        found["first step"] = [*train, *small, *words]
    return found


def run(checkout: Path, words: list[str]) -> Taken:
    """Raises UserError where the command fails."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        began = time.monotonic()
        process = subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, stdout=said, stderr=said)
        metrics, first = Path(folder, "run", "metrics.jsonl"), 0.0
        while True:
            if not first and metrics.is_file() and metrics.stat().st_size:
                first = time.monotonic() - began
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.01)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            text = said.read().decode(errors="replace")[-2000:]
            raise UserError(f"`{' '.join(words)}` of {checkout} ended with {process.returncode}:\n{text}")
        return Taken(used.ru_utime + used.ru_stime, first or time.monotonic() - began)


def summary(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


def compared(taken: dict[str, list[Taken]]) -> dict[str, Any]:
    """Of one command: the seconds of each checkout, and the ratios of the rounds."""
    found: dict[str, Any] = {
        name: {"cpu": summary([one.cpu for one in all_]), "wall": summary([one.wall for one in all_])}
        for name, all_ in taken.items()
    }
    if "before" in taken:
        rounds = list(zip(taken["now"], taken["before"], strict=True))
        found["ratio"] = {
            "cpu": summary([now.cpu / before.cpu for now, before in rounds]),
            "wall": summary([now.wall / before.wall for now, before in rounds]),
        }
    return found


def main(arguments: Arguments) -> None:
    checkouts = {"now": HERE} | ({"before": Path(arguments.before).resolve()} if arguments.before else {})
    data = None if arguments.data is None else str(Path(arguments.data).absolute())
    result: dict[str, Any] = {"rounds": arguments.rounds, "processors": os.cpu_count(), "commands": {}}
    with tempfile.TemporaryDirectory() as scratch:
        words = {}
        for name, checkout in checkouts.items():
            Path(scratch, name).mkdir()
            words[name] = commands(checkout, data, Path(scratch, name))
        for command in words["now"]:
            taken: dict[str, list[Taken]] = {name: [] for name in checkouts}
            for number in range(arguments.rounds + 1):  # the first, which compiles modules and indexes shards, is none
                for name, checkout in checkouts.items():
                    one = run(checkout, words[name][command])
                    if number:
                        taken[name].append(one)
            result["commands"][command] = compared(taken)
            print(f"{command}: {json.dumps(result['commands'][command])}", flush=True)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

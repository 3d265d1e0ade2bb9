"""Real processes, really killed: what comes after is what would have come anyway."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from pretrain.trainer import checkpoint
from tests import ranks
from tests.job import Job
from tests.program import Program
from tests.trainer.test_run import same, weights

LONG = ["checkpoint.every_steps=7", "max_micro_batch_size=4"]


def wait_for_rows(job: Job, count: int, process: Program) -> None:
    deadline = time.monotonic() + 600
    while len(job.rows()) < count:
        assert process.returncode is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("workers", "kills"),
    [(2, 1), *(pytest.param(workers, 8, marks=pytest.mark.full) for workers in (0, 1, 3, 5))],
)
def test_killed_at_random_it_goes_on_with_the_same_bits(job: Job, workers: int, kills: int) -> None:
    """SIGKILL at random moments; the same command, started again, ends with the same losses and weights."""
    long = [*LONG, f"max_steps={20 * kills}"]
    slow = {"_target_": "tests.slurm.pace.Slow", "_partial_": "true", "after": 20 * kills - 7, "seconds": 10}
    lingering = ["allow_targets=[tests]", *(f"+callbacks.slow.{name}={value}" for name, value in slow.items())]
    whole = Job(job.tmp)
    whole.out = job.tmp / "whole"
    whole.run(*long)
    draw = random.Random(workers)
    for kill in range(kills):
        process = job.start(*long, f"data.num_workers={workers}", *lingering)
        newest = checkpoint.newest(job.out / "checkpoints")
        done = 0 if newest is None else int(newest.name.removeprefix("step_"))
        wait_for_rows(job, done + draw.randint(1, 12), process)
        time.sleep(draw.random() * 0.05)
        process.kill()
        process.communicate()
        assert kill or len(job.rows()) < 20 * kills
    process = job.start(*long, f"data.num_workers={workers}")
    printed = process.communicate()
    assert process.returncode == 0, printed
    assert job.losses() == whole.losses()
    assert same(weights(job), weights(whole))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_says_where(job: Job, number: signal.Signals) -> None:
    endless = ["max_steps=100000", "data.num_workers=1"]
    process = job.start(*endless)
    wait_for_rows(job, 3, process)
    process.send(number)
    if number == signal.SIGTERM:
        process.send(number)  # schedulers send it more than once
    output = "".join(process.communicate())
    assert process.returncode == 128 + number
    last = job.rows()[-1]["step"]
    newest = checkpoint.newest(job.out / "checkpoints")
    assert newest is not None
    assert newest.name == f"step_{last:08d}"
    assert str(newest) in output
    assert f"received {number.name}" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_all_processes_while_readers_start_is_no_failure(job: Job, number: signal.Signals) -> None:
    """A terminal's Ctrl-C and a scheduler signal the whole group, helpers that still import torch included."""
    process = job.start("max_steps=100000", "data.num_workers=1", session=True)
    while not (job.out / "metrics.jsonl").exists():  # the trainer's handlers are in place, the reader is not up
        assert process.returncode is None
        time.sleep(0.01)
    os.killpg(process.pid, number)
    output = "".join(process.communicate())
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    assert checkpoint.newest(job.out / "checkpoints") is not None


def test_ctrl_c_before_training_is_no_traceback(job: Job) -> None:
    """While libraries are being imported, by a process that Python starts from nothing."""
    (job.tmp / "hydra.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(6000)\n")
    command = [sys.executable, "-m", "pretrain", *job.overrides()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=job.tmp)
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 130
    assert output.strip() == "interrupted"


def test_a_second_ctrl_c_ends_at_once(job: Job) -> None:
    process = job.start("max_steps=100000", "global_batch_size=40", "max_micro_batch_size=1", "encoder.depth=12")
    wait_for_rows(job, 1, process)
    process.send(signal.SIGINT)
    time.sleep(0.1)
    process.send(signal.SIGINT)
    process.communicate()
    assert process.returncode != 0


def test_a_second_ctrl_c_ends_all_ranks_and_none_takes_another_for_lost(job: Job) -> None:
    slow = {"_target_": "tests.slurm.pace.Slow", "_partial_": "true", "after": 3, "seconds": 2}
    words = ["allow_targets=[tests]", *(f"+callbacks.slow.{name}={value}" for name, value in slow.items())]
    other = ranks.Ranks(job, 2, "trainer=ddp", *words)
    wait_for_rows(job, 2, other.programs[0])
    for _ in range(2):
        for program in other.programs:
            program.send(signal.SIGINT)
        time.sleep(0.1)
    said = other.finish()
    assert other.codes == [130, 130], said
    assert "gone" not in "".join(said)

"""What a stop means in a Slurm job, with a `scontrol` that is made here and writes down what it was asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain import files
from pretrain.launch import slurm
from pretrain.launch.process import deaf
from pretrain.launch.slurm import ATTEMPTS, Job
from pretrain.trainer import checkpoint
from tests.job import Job as Run
from tests.program import Program

SCONTROL = """#!/bin/sh
echo "$*" >> "$0.asked"
case "$*" in
    *show*) echo "JobId=7 JobName=x JobState=$(cat "$0.state") Reason=None PreemptTime=$(cat "$0.preempted")" ;;
    requeue*) cat "$0.refusal" >&2; [ ! -s "$0.refusal" ] ;;
esac
"""


class Fake:
    """A cluster of one program.

    Attributes:
        environment: of a rank in its job.
    """

    def __init__(self, folder: Path) -> None:
        self.program = folder / "bin" / "scontrol"
        self.program.parent.mkdir()
        self.program.write_text(SCONTROL)
        self.program.chmod(0o755)
        self.says("RUNNING")
        self.environment = {"PATH": f"{self.program.parent}:{os.environ['PATH']}"}
        self.environment |= {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}

    def says(self, state: str, refusal: str = "", preempted: str = "2026-01-01T00:00:00") -> None:
        Path(f"{self.program}.preempted").write_text(preempted)
        Path(f"{self.program}.state").write_text(state)
        Path(f"{self.program}.refusal").write_text(refusal)

    @property
    def asked(self) -> list[str]:
        path = Path(f"{self.program}.asked")
        return path.read_text().splitlines() if path.exists() else []

    @property
    def requeues(self) -> int:
        return self.asked.count("requeue 7")


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts the signals of this process back as they were, and finds the program where subprocess looks for it."""
    before = {number: signal.getsignal(number) for number in slurm.ASKS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def saved(folder: Path, *steps: int) -> Path:
    """A run's folder with checkpoints, and one that was never completed."""
    for step in steps:
        (folder / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
        (folder / "checkpoints" / f"step_{step:08d}" / "COMPLETE").touch()
        (folder / "checkpoints" / f"step_{step + 5:08d}.tmp").mkdir()
        (folder / "checkpoints" / f"step_{step + 5:08d}.tmp" / "COMPLETE").touch()
    return folder


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_rank_0_has_the_job_requeued(
    fake: Fake, tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = saved(tmp_path / "run", 20, 100)
    assert Job(fake.environment, 0, folder).leave(number) == 128 + number
    assert fake.requeues == 1
    assert "job 7 is requeued and goes on from step 100" in caplog.text
    assert json.loads((folder / "requeues.json").read_text()) == {"job": "7", "step": 100, "restarts": 0}
    assert [path.name for path in folder.iterdir() if path.suffix == ".tmp"] == []


def test_other_ranks_stay_and_ask_for_nothing(fake: Fake, tmp_path: Path) -> None:
    """To leave before Slurm has the requeue would make the job a failed one; the signal comes again meanwhile."""
    code = (
        "import os, signal, sys; from pathlib import Path; from pretrain.launch.slurm import Job\n"
        "job = Job(os.environ, 1, Path(sys.argv[1])); job.listen(); print('ready', flush=True)\n"
        "sys.exit(job.leave(signal.SIGTERM))"
    )
    environment = os.environ | fake.environment
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            time.sleep(0.1)
            process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.kill()
    assert fake.asked == []


def test_other_ranks_do_not_wait_for_ever(fake: Fake, tmp_path: Path) -> None:
    assert Job(fake.environment, 3, tmp_path, patience=0.01).leave(signal.SIGUSR1) == 138


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING"])
def test_a_job_that_slurm_is_ending_is_left_alone(fake: Fake, tmp_path: Path, state: str) -> None:
    """scancel sends TERM, too: a requeue would bring back what the user has cancelled."""
    fake.says(state)
    assert Job(fake.environment, 0, tmp_path).leave(signal.SIGTERM) == 143
    assert fake.requeues == 0


def test_what_is_left_of_a_step_that_failed_asks_for_nothing(fake: Fake, tmp_path: Path) -> None:
    """srun sends it TERM; the time limit's warning is no matter of preemption."""
    fake.says("RUNNING", preempted="None")
    assert Job(fake.environment, 0, tmp_path).leave(signal.SIGTERM) == 143
    assert fake.requeues == 0
    assert Job(fake.environment, 0, tmp_path).leave(signal.SIGUSR1) == 138
    assert fake.requeues == 1


def test_ctrl_c_and_processes_of_no_step_are_not_slurms(fake: Fake, tmp_path: Path) -> None:
    assert Job(fake.environment, 0, tmp_path).leave(signal.SIGINT) == 130
    by_hand = {name: value for name, value in fake.environment.items() if name != "SLURM_STEP_ID"}
    assert Job(by_hand, 0, tmp_path).leave(signal.SIGTERM) == 143
    assert Job({}, 0, tmp_path).leave(signal.SIGUSR1) == 138
    assert fake.asked == []


def test_of_a_job_array_one_task_is_meant(fake: Fake, tmp_path: Path) -> None:
    """The last one's own number is that of all."""
    fake.environment |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    assert Job(fake.environment, 0, tmp_path).leave(signal.SIGUSR1) == 138
    assert fake.asked == ["--oneliner show job 7_3", "requeue 7_3"]


def test_a_task_that_starts_its_ranks_itself_passes_signals_on(fake: Fake, job: Run) -> None:
    """To it alone Slurm may send them (proctrack/cgroup), and it holds them back until its ranks are there."""
    environment = os.environ | fake.environment | {"SLURM_STEP_NUM_TASKS": "1"}
    words = job.overrides("trainer=ddp", "accelerator=cpu", "devices=2", "max_steps=100000")
    program = Program(words, job.tmp, environment)
    deadline = time.monotonic() + 600
    while len(job.rows()) < 3:
        assert program.returncode is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    program.send(signal.SIGUSR1)
    said = program.communicate()
    assert program.returncode == 138, said
    assert fake.requeues == 1
    newest = checkpoint.newest(job.out / "checkpoints")
    assert newest is not None
    assert checkpoint.step_of(newest) == job.rows()[-1]["step"]


def test_a_last_checkpoint_that_cannot_be_written_is_no_reason_to_stay_away(fake: Fake, job: Run) -> None:
    """The one before is whole."""
    words = job.overrides("max_steps=100000", "checkpoint.every_steps=2")
    program = Program(words, job.tmp, os.environ | fake.environment)
    deadline = time.monotonic() + 600
    while checkpoint.newest(job.out / "checkpoints") is None:
        assert program.returncode is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (job.out / "elsewhere").touch()
    assert files._exchange(job.out / "elsewhere", job.out / "checkpoints")
    program.send(signal.SIGUSR1)
    said = "".join(program.communicate())
    assert program.returncode == 138, said
    assert "no checkpoint of step" in said
    assert fake.requeues == 1


def test_a_refusal_is_said_with_the_command_to_go_on(
    fake: Fake, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pretrain", "+experiment=mae_vitl", "data.train='a b'"])
    fake.says("RUNNING", refusal="Requested operation is presently disabled for job 7\n")
    assert Job(fake.environment, 0, saved(tmp_path / "run", 30)).leave(signal.SIGUSR1) == 138
    (record,) = caplog.records
    assert record.getMessage() == (
        "job 7 is not requeued (Requested operation is presently disabled for job 7). To go on from step 30 submit it "
        """again: python -m pretrain +experiment=mae_vitl 'data.train='"'"'a b'"'"''"""
    )


def test_without_scontrol_it_says_so(fake: Fake, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fake.program.unlink()
    environment = fake.environment | {"PATH": str(tmp_path)}
    assert Job(environment, 0, tmp_path).leave(signal.SIGUSR1) == 138
    assert "job 7 is not requeued (scontrol is not on PATH)" in caplog.text


def test_a_container_leaves_the_requeue_to_the_batch_script(fake: Fake, tmp_path: Path) -> None:
    ask = tmp_path / "ask"
    environment = fake.environment | {"PATH": str(tmp_path), "PRETRAIN_REQUEUE": str(ask)}
    assert Job(environment, 0, tmp_path).leave(signal.SIGUSR1) == 138
    assert ask.read_text() == "SIGUSR1"


def test_a_job_that_gets_no_further_is_given_up(fake: Fake, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(tmp_path / "run", 40)
    codes = [
        Job(fake.environment | {"SLURM_RESTART_COUNT": str(5 + restart)}, 0, folder).leave(signal.SIGUSR1)
        for restart in range(ATTEMPTS + 1)
    ]
    assert codes == [138, 138, 138, 1]
    assert fake.requeues == ATTEMPTS
    assert "job 7 was requeued 3 times and is still at step 40: it is given up" in caplog.text


def test_progress_and_a_new_job_begin_the_count_anew(fake: Fake, tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", 40)
    for restart in range(ATTEMPTS + 4):
        if restart == ATTEMPTS:
            saved(folder, 50)
        environment = fake.environment | {"SLURM_RESTART_COUNT": str(restart)}
        expected = 138 if restart < 2 * ATTEMPTS else 1
        assert Job(environment, 0, folder).leave(signal.SIGUSR1) == expected
    another = fake.environment | {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "9"}
    assert Job(another, 0, folder).leave(signal.SIGUSR1) == 138


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_that_comes_before_training_is_remembered_from_the_start(fake: Fake, tmp_path: Path, rank: int) -> None:
    """While modules are imported it waits; then rank 0 requeues at once, for there is nothing to save."""
    code = (
        "import os, sys, time; from pathlib import Path; from pretrain.launch import slurm\n"
        "slurm.hold(); print('held', flush=True); sys.stdin.readline()\n"
        "slurm.Job(os.environ, int(sys.argv[2]), Path(sys.argv[1])).listen()\n"
        "time.sleep(1); print('went on', flush=True)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run"), str(rank)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, env=os.environ | fake.environment, text=True, **pipes)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.2)
        assert process.poll() is None
        assert fake.asked == []
        output, _ = process.communicate("\n", timeout=300)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, fake.requeues, output) == ((138, 1, "") if rank == 0 else (0, 0, "went on\n"))


def test_signals_that_come_with_the_requeue_change_nothing(fake: Fake, tmp_path: Path) -> None:
    """Slurm sends them to all processes of the step, to scontrol before it has said that it was done, too."""
    again = "kill -TERM $PPID $$; kill -USR1 $PPID $$; sleep 0.1\n"
    fake.program.write_text(SCONTROL.replace("\n", f"\n{again}", 1))
    code = (
        "import os, signal, sys; from pathlib import Path; from pretrain.launch.slurm import Job\n"
        "job = Job(os.environ, 0, Path(sys.argv[1])); job.listen(); sys.exit(job.leave(signal.SIGTERM))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    process = subprocess.run(command, env=os.environ | fake.environment, timeout=300, check=False)
    assert process.returncode == 143
    assert fake.requeues == 1


def test_programs_started_deaf_do_not_hear_a_stop() -> None:
    with deaf():
        process = subprocess.Popen(["sleep", "60"])
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.kill()
    process.wait()


def test_pythons_own_helper_process_does_not_hear_a_stop() -> None:
    """The first thing to be spawned brings the resource tracker with it, which ignores INT and TERM alone."""
    code = (
        "import os, signal, time; from multiprocessing import resource_tracker\n"
        "from pretrain.launch.process import spawning\n"
        "with spawning(): pass\n"
        "tracker = resource_tracker._resource_tracker._pid\n"
        "time.sleep(0.5)\n"
        "for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT): os.kill(tracker, number)\n"
        "time.sleep(0.5)\n"
        "print(os.waitpid(tracker, os.WNOHANG))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert process.stdout == "(0, 0)\n"

"""What a stop means in a Slurm job: the job goes back into the queue and starts again by itself.

Slurm asks for a stop by USR1 (`sbatch --signal=USR1@120`: so many seconds before the time limit) or, to make place for
another job, by TERM. When the checkpoint is written, rank 0 has the job requeued. Until then no process may leave: a
job whose processes end within the time that Slurm gives them has failed, and is not requeued, however they end.

TERM is also sent to the processes of a job that its user has cancelled, and to what is left of a step when one process
of it has failed. Such jobs are left alone; what Slurm says of the job tells them apart.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from pretrain.files import replace_file

log = logging.getLogger(__name__)

ASKS = (signal.SIGUSR1, signal.SIGTERM)  # what Slurm asks for a stop by
ATTEMPTS = 3  # restarts without a new checkpoint, after which the job is given up
_MEMORY = "requeues.json"  # in the run's folder


def hold() -> None:
    """Keeps signals that ask for a stop waiting until a `Job` is ready for them. In no Slurm job nothing is done."""
    if _in_step(os.environ):
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKS)


class Job:
    """One process of a Slurm job, or of none: then there is nothing to do.

    Args:
        environment: of the process.
        rank: of the process in the run; rank 0 speaks with Slurm.
        folder: of the run, where rank 0 remembers what the job was requeued for.
        patience: seconds that the other ranks wait for Slurm to end them.
    """

    def __init__(self, environment: Mapping[str, str], rank: int, folder: Path, patience: float = 600) -> None:
        self.environment = environment
        self.rank = rank
        self.folder = folder
        self.patience = patience
        self.id = _id_of(environment) if _in_step(environment) else ""

    def listen(self) -> None:
        """From here on a stop that comes before training has the job requeued at once, for there is nothing to save."""
        if not self.id:
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self.rank == 0:  # the others are ended with it
                os._exit(self.leave(signal.Signals(number)))

        for number in ASKS:
            signal.signal(number, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKS)

    def leave(self, number: signal.Signals) -> int:
        """Has the job requeued, if it was Slurm that asked for the stop. All that is to be saved must be saved.

        Returns:
            The code to exit with: 128 + the signal's number, or 1 if the job gets no further than it is. Other ranks
            than the first return only if Slurm does not end them.
        """
        if number not in ASKS:
            return 128 + number
        for one in ASKS:  # they come again, more than once and to all processes: scontrol inherits this
            signal.signal(one, signal.SIG_IGN)
        if not self.id:
            return 128 + number
        if self.rank != 0:
            time.sleep(self.patience)
        elif self._is_asked_for(number):
            step = _newest(self.folder)
            if (attempts := self._attempts(step)) >= ATTEMPTS:
                log.error(
                    "job %s was requeued %d times and is still at step %d: it is given up. Its time limit must leave "
                    "room for the start, for --signal's seconds and for one step",
                    *(self.id, attempts, step),
                )
                return 1
            self._requeue(number, step)
        else:
            log.info("job %s is neither near its time limit nor preempted: it is not requeued", self.id)
        return 128 + number

    def _is_asked_for(self, number: signal.Signals) -> bool:
        """Whether the job runs, and is to make place; taken for granted where Slurm does not say."""
        found, text = self._scontrol("--oneliner", "show", "job", self.id)
        facts = dict(word.partition("=")[::2] for word in text.split())
        preempted = facts.get("PreemptTime", "None")[:1].isdecimal()
        return not found or (facts.get("JobState") == "RUNNING" and (number == signal.SIGUSR1 or preempted))

    def _attempts(self, step: int) -> int:
        """How often this job was restarted since it was first requeued at this step."""
        restarts = int(self.environment.get("SLURM_RESTART_COUNT") or 0)
        memory = self.folder / _MEMORY
        try:
            last = json.loads(memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            last = {}
        if (last.get("job"), last.get("step")) == (self.id, step):
            return restarts - int(last["restarts"])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(memory, json.dumps({"job": self.id, "step": step, "restarts": restarts}).encode())
        except OSError as failure:
            log.warning("cannot remember that job %s was at step %d: %s", self.id, step, failure)
        return 0

    def _requeue(self, number: signal.Signals, step: int) -> None:
        done, text = self._scontrol("requeue", self.id)
        if done:
            log.info("job %s is requeued and goes on from step %d", self.id, step)
        elif asks := self.environment.get("PRETRAIN_REQUEUE"):  # in a container: the batch script asks in our place
            Path(asks).write_text(number.name)
            log.info("job %s goes on from step %d when its script has it requeued", self.id, step)
        else:
            command = shlex.join(["python", "-m", "pretrain", *sys.argv[1:]])
            log.error(
                "job %s is not requeued (%s). To go on from step %d submit it again: %s", self.id, text, step, command
            )

    def _scontrol(self, *words: str) -> tuple[bool, str]:
        """(whether it was done, what was said). Asked again when the controller does not answer."""
        said = ""
        for attempt in range(3):
            if attempt:
                time.sleep(2)
            try:
                process = subprocess.run(
                    ["scontrol", *words],
                    capture_output=True,
                    text=True,
                    timeout=20,
                    check=False,
                    env=dict(self.environment),
                )
            except FileNotFoundError:
                return False, "scontrol is not on PATH"
            except (OSError, subprocess.TimeoutExpired) as failure:
                said = str(failure)
                continue
            said = " ".join((process.stdout + process.stderr).split())
            if process.returncode == 0:
                return True, said
            if "contact" not in said and "timed out" not in said.lower():
                return False, said
        return False, said


def _in_step(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process. A batch script may hold anything, a notebook that trains by hand for one."""
    return "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" in environment


def _id_of(environment: Mapping[str, str]) -> str:
    """The job as scontrol knows it; of a job array, its one task."""
    task = environment.get("SLURM_ARRAY_TASK_ID", "")
    return f"{environment['SLURM_ARRAY_JOB_ID']}_{task}" if task else environment["SLURM_JOB_ID"]


def _newest(folder: Path) -> int:
    """The step of a run's newest checkpoint, 0 if there is none."""
    names = [path.parent.name.removeprefix("step_") for path in (folder / "checkpoints").glob("step_*/COMPLETE")]
    return max((int(name) for name in names if name.isdecimal()), default=0)

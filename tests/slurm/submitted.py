"""The small run of the tests as a job of Slurm, submitted with the project's own batch script."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from tests.job import Job
from tests.slurm.cluster import Cluster

ROOT = Path(__file__).parent.parent.parent
STEPS = 120
_OVER = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")
WORDS = [
    "name=small",
    f"max_steps={STEPS}",
    "checkpoint.every_minutes=null",
    "global_batch_size=8",
    "allow_targets=[tests]",
    "+callbacks.slow._target_=tests.slurm.pace.Slow",
    "+callbacks.slow._partial_=true",
]


class Submitted(Job):
    """Shards, and a job that trains on them in `runs/small`."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        self.out = folder / "runs" / "small"
        self.cluster = cluster
        self.number = ""

    def sbatch(self, file: str, *words: str, flags: tuple[str, ...] = ()) -> str:
        """Submits one of the project's batch scripts from the job's folder; its number."""
        environment = {
            "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
            "PRETRAIN_VENV": sys.prefix,
            "MASTER_ADDR": "127.0.0.1",  # the nodes have no addresses of their own
            "OMP_NUM_THREADS": "1",
        }
        command = ("sbatch", "--parsable", *flags, str(ROOT / "slurm" / file), *words)
        return self.cluster.call(*command, folder=self.tmp, **environment)

    def submit(self, *extra: str, flags: tuple[str, ...] = ()) -> None:
        """Trains in a job."""
        words = [word for word in self.overrides(*WORDS, *extra) if not word.startswith("output_dir=")]
        self.number = self.sbatch("pretrain.sbatch", *words, flags=flags)

    @property
    def facts(self) -> dict[str, str]:
        return self.cluster.job(self.number)

    @property
    def log(self) -> str:
        path = self.tmp / f"pretrain-{self.number}.log"
        return path.read_text() if path.exists() else ""

    def wait_for_step(self, step: int) -> None:
        """Until the journal has it."""
        self._wait(lambda: bool(self.rows()) and self.rows()[-1]["step"] >= step, f"step {step}")

    def wait_for_requeue(self, times: int = 1) -> None:
        """Until it waits to be started again, or has been already."""

        def requeued() -> bool:
            facts = self.facts
            again = facts["JobState"] == "RUNNING" and int(facts["Restarts"]) >= times
            return facts["JobState"] == "PENDING" or again

        self._wait(requeued, f"requeue {times}")

    def wait_for_state(self, *states: str) -> None:
        self._wait(lambda: self.facts["JobState"] in states, " or ".join(states))

    def _wait(self, true: Callable[[], bool], what: str) -> None:
        def look() -> bool:
            over = self.facts["JobState"] in _OVER  # before the question: it may be true of the last moment
            if true():
                return True
            assert not over, f"job {self.number} ended before {what}\n{self.facts}\n{self.log}"
            return False

        try:
            self.cluster.wait(look, 900, what)
        except TimeoutError as late:
            raise AssertionError(f"{late}\n{self.facts}\n{self.log}") from None

"""Which of a run's processes this is: a rank that Slurm, torchrun or our own launcher started, or the only one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.config.problem import UserError

_PORTS = range(10_000, 30_000)  # where the ranks of a Slurm job meet, unless MASTER_PORT says otherwise


@dataclass(frozen=True)
class World:
    """The place of a process among all of its run.

    `rank` of `size` processes; `local_rank` of the `local_size` on its machine, which are neighbours in rank.
    `started_by` is who started them, "" for a process on its own.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    started_by: str = ""

    @staticmethod
    def of(environ: Mapping[str, str]) -> World:
        """As the environment says: torchrun's variables (which our launcher sets, too) before Slurm's.

        Raises:
            UserError: machines with different numbers of tasks, or variables that contradict each other.
        """
        if "RANK" in environ and "WORLD_SIZE" in environ:
            size = int(environ["WORLD_SIZE"])
            local = int(environ.get("LOCAL_WORLD_SIZE", size))
            return World(int(environ["RANK"]), size, int(environ.get("LOCAL_RANK", 0)), local, "torchrun")._checked()
        size = int(environ.get("SLURM_STEP_NUM_TASKS", 1)) if "SLURM_STEP_ID" in environ else 1
        if size == 1:  # a shell of an allocation has Slurm's variables, too, and is no rank
            return World()
        tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
        counts = {int(count) for count in re.findall(r"(\d+)(?:\(x\d+\))?(?:,|$)", tasks)}
        if len(counts) != 1:
            raise UserError(
                f"Slurm placed {tasks} tasks on the machines: they must be as many on each; give --ntasks-per-node"
            )
        rank, local = int(environ["SLURM_PROCID"]), int(environ["SLURM_LOCALID"])
        return World(rank, size, local, counts.pop(), "Slurm")._checked()

    def _checked(self) -> World:
        if self.size % self.local_size or not 0 <= self.rank < self.size or not 0 <= self.local_rank < self.local_size:
            raise UserError(
                f"{self.started_by} says rank {self.rank} of {self.size}, and {self.local_rank} of {self.local_size} "
                "on this machine: every machine must have as many"
            )
        return self

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.size // self.local_size


def meeting_point(environ: Mapping[str, str]) -> tuple[str, int]:
    """The address and the port at which the ranks meet: those given, or else of the Slurm job's first machine.

    Raises:
        UserError: there is neither.
    """
    address, port = environ.get("MASTER_ADDR", ""), environ.get("MASTER_PORT", "")
    job = environ.get("SLURM_JOB_ID", "")
    if not address and job:
        address = _first_host(environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", ""))
    if not port and job.isdecimal():
        port = str(_PORTS[(7 * int(job) + int(environ.get("SLURM_RESTART_COUNT", 0))) % len(_PORTS)])
    if not address or not port.isdecimal():
        raise UserError(
            f"MASTER_ADDR={address} MASTER_PORT={port}: they must name the first machine and a free port of it; "
            "torchrun and the pretrain.sbatch that `pretrain slurm` writes set both"
        )
    return address, int(port)


def _first_host(nodes: str) -> str:
    """The first of Slurm's list of machines, such as `gpu[07-12,15]`."""
    try:
        shown = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=30)
        return shown.stdout.split()[0]
    except (OSError, subprocess.TimeoutExpired, IndexError):
        raise UserError(
            f"`scontrol show hostnames {nodes}` gives no machine: name the first one in MASTER_ADDR"
        ) from None

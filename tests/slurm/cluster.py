"""A real Slurm on this machine: one controller and three node daemons, which it takes for three nodes.

    python tests/slurm/cluster.py install        # the packages, from the system's own (Debian, Ubuntu; root)
    python tests/slurm/cluster.py up FOLDER      # starts everything; then export SLURM_CONF=FOLDER/slurm.conf
    python tests/slurm/cluster.py lose FOLDER n2
    python tests/slurm/cluster.py revive FOLDER n2
    python tests/slurm/cluster.py down FOLDER

It needs root, but neither systemd nor cgroups, and keeps to its folder: keys, sockets, logs, state. What is set in
slurm.conf is what makes a requeued job start again after seconds instead of minutes.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

NODES = ("n1", "n2", "n3")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_MARK = "PRETRAIN_TEST_NODE"  # in the environment of all that runs on a node, and so the way to find it

_CONF = """\
ClusterName=pretrain
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a requeued job waits until its credential is too old to be used again: two minutes by default
AuthInfo=socket={folder}/munge.socket,cred_expire=5
# jobs of two clusters on one machine want ports of their own, which are made of their numbers
FirstJobId={first}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
PlugStackConfig={folder}/plugstack.conf
# no cgroups, and more processors than there are
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
# everything soon
SchedulerParameters=sched_interval=1,bf_interval=2
SlurmdTimeout=30
KillWait=3
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE
PartitionName=high Nodes=ALL PriorityTier=9 MaxTime=INFINITE
"""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None]


def install() -> None:
    """The distribution's packages."""
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=quiet)
    subprocess.run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "slurm-wlm", "munge"], check=True, env=quiet
    )


class Cluster:
    """Slurm with a few nodes.

    Args:
        folder: for all that it writes; absolute, and short, for there are sockets in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.conf = self.folder / "slurm.conf"

    def up(self) -> None:
        """Starts what does not run, and waits until all nodes are there."""
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        if not self.conf.exists():
            key = self.folder / "munge.key"
            key.write_bytes(secrets.token_bytes(128))
            key.chmod(0o600)
            (self.folder / "plugstack.conf").touch()
            port, *ports = _free_ports(1 + len(NODES))
            host = socket.gethostname()
            nodes = [
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={place} CPUs=4 RealMemory=4000"
                for node, place in zip(NODES, ports, strict=True)
            ]
            settings = {"folder": self.folder, "host": host, "port": port, "first": 1 + 100 * (port % 500)}
            self.conf.write_text(_CONF.format(**settings, nodes="\n".join(nodes)))
        if not self._runs("munged"):
            (self.folder / "munge.socket").unlink(missing_ok=True)
            files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
            files |= {"log-file": "munged.log", "seed-file": "munge.seed"}
            words = [f"--{option}={self.folder / name}" for option, name in files.items()]
            self.call("munged", "--force", *words)
        if not self._runs("slurmctld"):
            self.call("slurmctld")
        for node in NODES:
            self.revive(node)
        self.wait(lambda: set(self.states()) == {"idle"}, 300, "idle nodes")

    def down(self) -> None:
        """Ends everything, jobs included. The folder stays: there are the logs."""
        for name in ("slurmctld", *(f"slurmd-{node}" for node in NODES), "munged"):
            self._kill(name)
        for pid in [pid for node in NODES for pid in self._on(node)]:
            _end(pid)

    def revive(self, node: str) -> None:
        """Starts a node's daemon if it does not run."""
        if not self._runs(f"slurmd-{node}"):
            self.call("slurmd", "-N", node, **{_MARK: f"{self.folder}:{node}"})

    def lose(self, node: str) -> None:
        """A node from one moment to the next: its daemon and every process on it is killed."""
        self._kill(f"slurmd-{node}")
        for pid in self._on(node):
            _end(pid)

    def call(self, *words: str, folder: Path | None = None, **extra: str) -> str:
        """Runs one of Slurm's programs and returns what it prints."""
        path = f"{os.environ.get('PATH', '')}:/usr/sbin"
        environment = os.environ | {"PATH": path, "SLURM_CONF": str(self.conf)} | extra
        options: dict[str, Any] = {"cwd": folder, "env": environment, "stdin": subprocess.DEVNULL}
        process = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, **options)
        if process.returncode:
            raise RuntimeError(f"{' '.join(words)}: {process.stderr.strip() or process.returncode}")
        return process.stdout.strip()

    def states(self) -> list[str]:
        """Of the nodes."""
        listed = self.call("sinfo", "--noheader", "--Node", "--partition=low", "--format=%T")
        return [line.strip() for line in listed.splitlines()]

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job: JobState, Restarts, ExitCode, …"""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "--oneliner", "show", "job", number)))

    def wait(self, true: Callable[[], bool], seconds: float, what: str) -> None:
        """Until something is true.

        Raises:
            TimeoutError: it did not become true.
        """
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds} seconds for {what}")
            time.sleep(0.2)

    def _runs(self, name: str) -> bool:
        pid = _read(self.folder / f"{name}.pid")
        return pid.isdecimal() and f"{name.partition('-')[0]}" in _read(Path("/proc") / pid / "comm")

    def _kill(self, name: str) -> None:
        if self._runs(name):
            _end(int(_read(self.folder / f"{name}.pid")))

    def _on(self, node: str) -> Iterator[int]:
        """The processes on a node: what its daemon started, and what those started for a job."""
        mine = {f"{_MARK}={self.folder}:{node}"}
        tasks = {f"SLURM_CONF={self.conf}", f"SLURMD_NODENAME={node}"}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                environment = set(_read(entry / "environ").split("\0"))
                if mine <= environment or tasks <= environment:
                    yield int(entry.name)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # no such process any more, or not ours to look at
        return ""


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def main(words: list[str]) -> None:
    match words:
        case ["install"]:
            install()
        case ["up" | "down" as action, folder]:
            getattr(Cluster(Path(folder)), action)()
        case ["lose" | "revive" as action, folder, node] if node in NODES:
            getattr(Cluster(Path(folder)), action)(node)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])

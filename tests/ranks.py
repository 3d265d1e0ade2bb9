"""Runs of several ranks, each a real process: jobs one after the other in the same ones, whose start takes longest.

`python -m tests.ranks FILE` is one rank; FILE lists the jobs.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
_LIMIT = 240.0  # seconds: a hang is a failure


def run(ranks: int, jobs: Sequence[Sequence[str]], folder: Path, local: int | None = None) -> list[list[str]]:
    """Trains each job, a list of overrides, on so many ranks, `local` on a machine; the error of each rank, "" if none.

    A job that fails on one rank alone would leave the others waiting: only jobs that fail on all are for this.
    """
    folder.mkdir(parents=True, exist_ok=True)
    list_of_jobs = folder / "jobs.json"
    list_of_jobs.write_text(json.dumps([list(words) for words in jobs]))
    processes = [_start(rank, ranks, local or ranks, _ports(len(jobs)), list_of_jobs) for rank in range(ranks)]
    try:
        outputs = [process.communicate(timeout=_LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    errors = [json.loads((folder / f"errors.{rank}.json").read_text()) for rank in range(ranks)]
    return [list(one) for one in zip(*errors, strict=True)]


_PORTS: list[int] = []


def _ports(count: int) -> list[int]:
    """Free ones, the same for all ranks of a call."""
    if len(_PORTS) < count:
        sockets = [socket.socket() for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        _PORTS.extend(one.getsockname()[1] for one in sockets)
        for one in sockets:
            one.close()
    return _PORTS[:count]


def _start(rank: int, ranks: int, local: int, ports: list[int], jobs: Path) -> subprocess.Popen[str]:
    places = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank % local, "LOCAL_WORLD_SIZE": local}
    variables = {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-m", "tests.ranks", str(jobs), *map(str, ports)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=os.environ | variables, cwd=ROOT, text=True, **pipes)


def main(jobs: Path, ports: Sequence[str]) -> None:
    from pretrain import build
    from pretrain.config import check
    from pretrain.overrides import composed
    from pretrain.records import UserError

    errors = []
    for words, port in zip(json.loads(jobs.read_text()), ports, strict=True):
        os.environ["MASTER_PORT"] = port
        cfg = composed(words)
        assert check(cfg) == []
        try:
            build.run_of(cfg).fit()
        except UserError as mistake:
            errors.append(str(mistake))
            import torch.distributed as dist

            dist.destroy_process_group()
        else:
            errors.append("")
    (jobs.parent / f"errors.{os.environ['RANK']}.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""Runs of several ranks, each a real process."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Sequence

from tests.job import Job
from tests.program import Program

_LIMIT = 900.0  # seconds: a hang is a failure
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = itertools.cycle(30_000 + 300 * (_WORKER % 9) + (os.getpid() + number) % 300 for number in range(300))


class Ranks:
    """A run of the small configuration on several ranks, `local` of them on a machine, as torchrun would start them.

    Args:
        job: what is run.
        count: of ranks.
        words: overrides of all, or of each rank, of its own.
    """

    def __init__(
        self, job: Job, count: int, *words: str, local: int | None = None, own: Sequence[Sequence[str]] = ()
    ) -> None:
        port, local = free_port(), local or count
        self.programs = []
        for rank in range(count):
            places = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank % local, "LOCAL_WORLD_SIZE": local}
            places |= {"MASTER_PORT": port}
            environ = os.environ | {"MASTER_ADDR": "127.0.0.1"} | {name: str(one) for name, one in places.items()}
            mine = own[rank] if own else ()
            self.programs.append(Program(job.overrides("accelerator=cpu", *words, *mine), job.tmp, environ))

    def finish(self) -> list[str]:
        """What each rank said, once all have ended."""
        return ["".join(program.communicate(_LIMIT)) for program in self.programs]

    @property
    def codes(self) -> list[int | None]:
        return [program.returncode for program in self.programs]

    def kill(self) -> None:
        for program in self.programs:
            program.kill()


def run(job: Job, count: int, *words: str, local: int | None = None) -> list[str]:
    """A run to its good end; what each rank said."""
    ranks = Ranks(job, count, *words, local=local)
    said = ranks.finish()
    assert ranks.codes == [0] * count, said
    return said


def free_port() -> int:
    """One that no other test takes, nor the system for a connection before it is used."""
    for port in _PORTS:
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the ports go round")

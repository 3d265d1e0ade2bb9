"""Runs of several ranks, each a real process."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from tests.job import Job
from tests.program import Program

_LIMIT = 200.0  # seconds: a hang is a failure


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
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port

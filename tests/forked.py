"""Trials whose processes are forked from one that has imported everything: a start costs a second instead of ten."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pretrain.proof import Started
from tests.program import Program
from tests.ranks import free_port


class Forked:
    """A training of several ranks, or one.

    Args:
        words: of the command.
        log: the file that the output of its first rank is appended to.
        ranks: how many.
    """

    def __init__(self, words: Sequence[str], log: Path, ranks: int) -> None:
        self.log = log
        self.programs = []
        shared = {
            "WORLD_SIZE": ranks,
            "LOCAL_WORLD_SIZE": ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
        }
        for rank in range(ranks):
            places = {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            self.programs.append(Program(words, log.parent, os.environ | (places if ranks > 1 else {})))

    def poll(self) -> int | None:
        codes = [program.returncode for program in self.programs]
        if None in codes:
            return None
        return next((code for code in codes if code), 0)

    def kill(self) -> None:
        for program in self.programs:
            if program.returncode is None:
                program.kill()
        said = ["".join(program.communicate()) for program in self.programs]
        with open(self.log, "a", encoding="utf-8") as file:
            file.write("".join(said))


def forked(ranks: int) -> Callable[[Sequence[str], Path], Started]:
    """Starts trials of so many ranks."""
    return lambda words, log: Forked(words, log, ranks)

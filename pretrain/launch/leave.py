"""How a process of a run leaves, and which rank speaks: what is wrong for all is said once, by rank 0."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

from pretrain.config.problem import UserError
from pretrain.launch import slurm
from pretrain.launch.world import World

_RANK_0_FIRST = 3.0  # seconds


def here() -> World:
    """This process's place; where that cannot be told, which is refused in its turn, it speaks for itself."""
    try:
        return World.of(os.environ)
    except UserError:
        return World()


def speak_as(rank: int) -> None:
    """Another rank than the first says nothing but warnings, and who it is."""
    if not rank:
        return
    logging.getLogger().setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(f"rank {rank}: %(message)s"))


def say_whose(rank: int) -> None:
    """Whose the traceback is that follows."""
    if rank:
        print(f"rank {rank}:", file=sys.stderr, flush=True)


def refuse(sentences: str) -> NoReturn:
    """Leaves with what is wrong. Rank 0 says it first: mostly it is wrong for all, and who started them ends the others
    when one has left."""
    if rank := here().rank:
        let_rank_0_speak()
        sentences = f"rank {rank}: {sentences}"
    sys.exit(sentences)


def let_rank_0_speak() -> None:
    """Waits a little, in which who started the ranks may end this one."""
    for number in slurm.ASKS:
        signal.signal(number, lambda *_: os._exit(1))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, slurm.ASKS)
    time.sleep(_RANK_0_FIRST)


def interrupted(number: int, frame: FrameType | None) -> None:
    """Ctrl-C before or after training: nothing is under way that could be lost, and libraries that are just being
    imported may swallow an exception."""
    os.write(2, b"\ninterrupted\n")
    os._exit(128 + number)


def end(by: SystemExit) -> NoReturn:
    """Leaves at once if this is one rank of several: its failure detector may still wait for a word of another, and
    Python's own end would abort a thread that does."""
    if here().size == 1:
        raise by
    if isinstance(by.code, str):
        print(by.code, file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(by.code if isinstance(by.code, int) else int(by.code is not None))

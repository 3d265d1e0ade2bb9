"""Starts the ranks of one machine, as torchrun does, and ends with them.

The processes are given torchrun's variables. What the starter is told by signals it tells them once; when one of them
fails, its own words have been printed, and the others are ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

_PARENT = "PRETRAIN_STARTED_BY"
_FAREWELL = 10.0  # seconds that others have to end by themselves once one has failed
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def start(count: int, words: Sequence[str]) -> int:
    """Runs `python -m pretrain` with these words as so many ranks; returns the exit code of the first that fails."""
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    command = [sys.executable, "-m", "pretrain", *words]
    ranks: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        for one in ranks:
            one.send_signal(number)

    heard = _FORWARDED if threading.current_thread() is threading.main_thread() else ()  # by no other thread
    before = {number: signal.signal(number, forward) for number in heard}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())  # in a Slurm job some are kept waiting, and by the ranks too
    try:
        for rank in range(count):
            variables = shared | {"RANK": rank, "LOCAL_RANK": rank, _PARENT: os.getpid()}
            environ = os.environ | {name: str(value) for name, value in variables.items()}
            # in a session of its own: Ctrl-C reaches this process, which passes it on
            ranks.append(subprocess.Popen(command, env=environ, start_new_session=True))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        return _wait(ranks)
    finally:
        for one in ranks:
            _kill(one)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with_parent() -> None:
    """Lets this process be killed when the one that started it as a rank is gone, however that ended."""
    parent = os.environ.get(_PARENT, "")
    if not parent.isdecimal():
        return
    control = getattr(ctypes.CDLL(None), "prctl", None)
    if control is not None:
        control(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):
        os._exit(1)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Waits until all have ended, or one has failed and the others have had their time."""
    deadline, code = None, 0
    while None in [one.poll() for one in ranks]:  # all of them: polling is what notices an end
        failed = [(one.returncode, rank) for rank, one in enumerate(ranks) if one.returncode]
        if failed and deadline is None:
            # one that a signal killed, if there is one: others fail since it is gone
            code, rank = min(failed, key=lambda one: (one[0] >= 0, one[1]))
            deadline = time.monotonic() + _FAREWELL
            if code < 0:  # it could not say so itself
                sys.stderr.write(f"rank {rank} was killed by {signal.Signals(-code).name}: the run ends\n")
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(0.05)
    code = code or next((one.returncode for one in ranks if one.returncode), 0)
    return 128 - code if code < 0 else code


def _kill(rank: subprocess.Popen[bytes]) -> None:
    """With all that it has started."""
    if rank.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.pid, signal.SIGKILL)
        rank.wait()


def _free_port() -> int:
    """One that the system gives to no connection until the ranks take it, seconds later."""
    while True:
        port = random.SystemRandom().randint(20_000, 32_767)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port

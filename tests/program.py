"""`python -m pretrain` in processes of their own, which can be sent signals and killed like any other.

They are forked from one that has imported everything, once for all tests: to import torch and Lightning takes a process
ten seconds, and a test of what comes after need not wait for it.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from multiprocessing.connection import Connection
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["hydra", "pretrain.build", "pretrain.config.arguments", "tests.warm"])

_STARTED: weakref.WeakSet[Program] = weakref.WeakSet()


@atexit.register
def _kill_what_a_failed_test_left() -> None:
    """multiprocessing would wait for it."""
    for program in _STARTED:
        program.kill()


class Program:
    """One that runs; what it prints is read by `readline` and `communicate`.

    Args:
        words: of the command, behind `python -m pretrain`.
        cwd: the folder that it is started in.
        environment: its variables; None is this process's.
        session: whether it leads a session, so that a signal can be sent to all that it starts.
    """

    def __init__(
        self, words: Sequence[str], cwd: Path, environment: Mapping[str, str] | None = None, session: bool = False
    ) -> None:
        pipes = [FORKS.Pipe(duplex=False) for _ in range(2)]
        variables = dict(os.environ if environment is None else environment)
        arguments = ([there for _, there in pipes], list(words), str(cwd), variables, session)
        self._process = FORKS.Process(target=_run, args=arguments, daemon=False)
        self._process.start()
        for _, there in pipes:
            there.close()
        self._out, self._err = (os.fdopen(os.dup(here.fileno()), encoding="utf-8") for here, _ in pipes)
        self._pool = ThreadPoolExecutor(2)
        self._errors: Future[str] = self._pool.submit(self._err.read)
        self.pid = self._process.pid or 0
        _STARTED.add(self)

    @property
    def returncode(self) -> int | None:
        """The exit code, −N if signal N ended it, None while it runs."""
        return self._process.exitcode

    def readline(self) -> str:
        """The next line of its output."""
        return self._out.readline()

    def send(self, number: signal.Signals) -> None:
        """Does nothing to one that has just ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """(the rest of its output, its errors) when it and all that it started are gone.

        Raises:
            TimeoutError: they are not, after so many seconds; it is killed then.
        """
        rest = self._pool.submit(self._out.read)
        try:
            found = rest.result(timeout), self._errors.result(timeout)
            self._process.join(timeout)
        except Late:
            self.kill()
            raise
        for file in (self._out, self._err):
            file.close()
        return found


def pretrain(*words: str, cwd: Path, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command from its start to its end."""
    program = Program(words, cwd, environment)
    out, err = program.communicate()
    assert program.returncode is not None
    return subprocess.CompletedProcess(list(words), program.returncode, out, err)


def quiet(text: str) -> str:
    """What was printed without the progress of an index, which shows where one takes longer than a second."""
    return re.sub(r"\rindexing shards:[^\r\n]*\n?", "", text)


def _run(pipes: Sequence[Connection], words: list[str], cwd: str, environment: dict[str, str], session: bool) -> None:
    for number, pipe in zip((1, 2), pipes, strict=True):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    if session:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, cwd)  # as `python -m` does
    sys.argv = ["pretrain", *words]
    try:
        runpy.run_module("pretrain", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # Python's own end, which multiprocessing leaves out

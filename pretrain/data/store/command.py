"""Shards that a shell command writes: `pipe:COMMAND`."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pretrain.data.store import patience
from pretrain.launch.process import deaf


@contextmanager
def stream(shard: str) -> Iterator[Callable[[int], bytes]]:
    """A function that gives at most so many of the next bytes that the command writes, and b"" at their end.

    Raises:
        OSError: it failed, or wrote nothing, or too little, for too long.
    """
    command, pace = shard.removeprefix("pipe:"), patience.Pace()
    with deaf():  # Slurm signals all processes of a step, whatever their session
        process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, bufsize=0, start_new_session=True)
    output = process.stdout
    assert output is not None

    def wait(size: int) -> bytes:
        if not select.select([output], [], [], patience.TIMEOUT)[0]:
            raise OSError(f"the command wrote nothing for {patience.TIMEOUT:.0f} s")
        data = output.read(size) or b""
        if not data and (code := ended()):
            raise OSError(f"the command ended with exit code {code}")
        return data

    def ended() -> int:
        try:
            return process.wait(patience.TIMEOUT)
        except subprocess.TimeoutExpired:
            raise OSError(
                f"the command closed its output, but did not end within {patience.TIMEOUT:.0f} s, so that whether it "
                "failed cannot be told"
            ) from None

    try:
        yield lambda size: pace.keep(lambda: wait(size))
    finally:
        output.close()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

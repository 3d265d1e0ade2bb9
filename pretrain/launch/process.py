"""Helper processes that start clean."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


@contextmanager
def spawning() -> Iterator[None]:
    """Processes spawned inside do not import the main script again, and are deaf to signals that ask for a stop.

    What they run lives in this package, and the script is somebody's training program: importing it takes seconds, and
    would start the training anew if it has no `if __name__ == "__main__"`. Ctrl-C and schedulers signal all processes
    of a run at once, but only the trainer knows how to stop: helpers inherit the signals blocked, from their first
    instruction on, and end when the trainer ends.
    """
    main = sys.modules["__main__"]
    saved = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    with deaf():
        resource_tracker.ensure_running()  # it would unblock signals here when it is started later
    for name in saved:
        setattr(main, name, None)
    try:
        with deaf():
            yield
    finally:
        for name, value in saved.items():
            setattr(main, name, value)


@contextmanager
def deaf() -> Iterator[None]:
    """Programs started inside inherit the signals that ask for a stop blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

"""How long a source is waited for, and how often it is asked again.

What cannot be read now may be read a moment later: it is tried again with growing pauses, and then reported. Two rules
keep a source from holding a run for ever: it must send a byte every 30 s, and, counted over one answer (its head
included), 10 kB/s once 30 s are over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pretrain.config import secret

TIMEOUT = 30.0  # seconds without a byte
LEAST_RATE = 10_000.0  # bytes a second of one read, beyond the first TIMEOUT seconds
ATTEMPTS = 5
PAUSE = 0.5  # seconds before the second attempt; doubles with each

T = TypeVar("T")
B = TypeVar("B", bytes, memoryview)


class ReadError(OSError):
    """A shard could not be read, however often it was tried."""

    def __init__(self, sentence: str) -> None:
        super().__init__(secret.shown(sentence))


class RefusedError(OSError):
    """A source said no, and will say so again: there is no such shard, or it may not be read."""


def retry(what: str, attempt: Callable[[], T]) -> T:
    """The result of `attempt`, tried again with growing pauses unless it is refused for good.

    Raises:
        ReadError: it was refused, or failed every time; names `what` and the last failure.
    """
    for number in range(ATTEMPTS):
        try:
            return attempt()
        except ReadError:
            raise
        except OSError as failure:
            last = failure
        if isinstance(last, FileNotFoundError | PermissionError | RefusedError):
            break
        if number + 1 < ATTEMPTS:
            time.sleep(PAUSE * 2**number)
    raise ReadError(f"cannot read {what}: {last or type(last).__name__}") from last


def refuses(status: int) -> bool:
    """Whether an HTTP status says no for good: asking too much (429), too early or too slowly is not that."""
    return 400 <= status < 500 and status not in (408, 425, 429)


def allowed(size: int) -> float:
    """Seconds that reading so many bytes may take."""
    return TIMEOUT + size / LEAST_RATE


class Pace:
    """The bytes of one read against the seconds spent waiting for them."""

    def __init__(self) -> None:
        self._bytes, self._seconds = 0, 0.0

    def keep(self, wait: Callable[[], B]) -> B:
        """What `wait` returns.

        Raises:
            OSError: so little has come so far that more is not waited for.
        """
        start = time.monotonic()
        data = wait()
        self._seconds += time.monotonic() - start
        self._bytes += len(data)
        if self._seconds > allowed(self._bytes):
            raise OSError(f"only {self._bytes} bytes came in {self._seconds:.0f} s")
        return data

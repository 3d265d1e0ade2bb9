"""Work on many items by threads, in their order, with few of them in memory: decoding, hashing and resizing release
Python's lock, so threads scale."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

_WAITING = 64  # items of one iteration that are under way or done and not yet taken

T = TypeVar("T")
R = TypeVar("R")


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(pool: Executor, work: Callable[[T], R], items: Iterable[T], waiting: int = _WAITING) -> Iterator[R]:
    """What `work` makes of each item, in the order of the items; items are taken as results are."""
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= waiting:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()

"""Python's garbage collector rests while a command imports its libraries: they make a million objects, all to be kept,
and to look through them again and again takes a seventh of that time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def wake() -> None:
    """Collects again, but for what is there by now: modules and classes, which stay. Later calls do nothing."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


@contextmanager
def resting() -> Iterator[None]:
    """Nothing is collected inside before `wake`, which a short command need not call at all."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()

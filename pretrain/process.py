"""Helper processes that start clean."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_main() -> Iterator[None]:
    """Processes spawned inside do not import the main script again.

    What they run lives in this package, and the script is somebody's training program: importing it takes seconds, and
    would start the training anew if it has no `if __name__ == "__main__"`.
    """
    main = sys.modules["__main__"]
    saved = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    for name in saved:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in saved.items():
            setattr(main, name, value)

"""Dividing work among processes that share a folder: a claim is a link that only one of them can make.

It points nowhere: its target names the process, so that it comes into being with it. Whoever makes it does the work,
keeps touching it meanwhile, and takes it away. A claim whose process has died, or that nobody has touched for a minute,
is void. Two processes that find the same claim void at the same moment may both do the work, and so may all where links
cannot be made: what they do must bear that, as writing a file by renaming it does. It takes no lock of the file system,
which network file systems often lack, nor clocks that agree.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from pretrain.files import lives, machine

_BEAT = 5.0  # seconds between touches
_STALE = 60.0  # seconds without one


class Claims:
    """The claims of a process; one thread touches all that it holds."""

    def __init__(self) -> None:
        self._held: set[Path] = set()
        self._seen: dict[Path, tuple[int, float]] = {}  # others' claims → when last touched, when first seen like that
        self._end = threading.Event()
        self._beat = threading.Thread(target=self._touch, daemon=True)

    def __enter__(self) -> Claims:
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._beat.join()

    @contextlib.contextmanager
    def claim(self, path: Path) -> Iterator[bool]:
        """Whether the work that `path` stands for is ours, until the block ends."""
        if not (self._make(path) or (self._is_void(path) and self._make(path))):
            yield False
            return
        self._held.add(path)
        try:
            yield True
        finally:
            self._held.discard(path)
            path.unlink(missing_ok=True)

    def _make(self, path: Path) -> bool:
        try:
            os.symlink(f"{machine()} {os.getpid()}", path)
        except FileExistsError:
            return False
        except OSError:  # it can still be done, if only by all
            return True
        self._seen.pop(path, None)
        return True

    def _is_void(self, path: Path) -> bool:
        """Whether a claim's process is gone; its link is taken away then."""
        try:
            where, _, process = os.readlink(path).rpartition(" ")
            touched = os.lstat(path).st_mtime_ns
        except FileNotFoundError:
            return True
        now = time.monotonic()
        before, since = self._seen.get(path, (touched, now))
        self._seen[path] = (touched, since if before == touched else now)
        dead = where == machine() and process.isdecimal() and not lives(int(process))
        if not dead and (before != touched or now - since < _STALE):
            return False
        path.unlink(missing_ok=True)
        return True

    def _touch(self) -> None:
        while not self._end.wait(_BEAT):
            for path in tuple(self._held):
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path, follow_symlinks=False)

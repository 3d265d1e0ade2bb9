"""Files and folders that are whole or absent, and those that come with the package."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def shipped(name: str) -> Path:
    """A folder that comes with the package: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return package / name if (package / name).is_dir() else package.parent / name


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file under another name beside its place, flushes it to disk and renames it."""
    with replacing(path, path.with_name(f"{path.name}.{_token()}.tmp")) as file:
        file.write(content)


@contextmanager
def replacing(path: Path, partial: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which is called `partial` until all of it is on the disk; a failure leaves none."""
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fills a new folder beside `target` and puts it in its place, atomically where the system can swap two names."""
    partial = target.with_name(f".{target.name}.{_token()}.tmp")
    partial.mkdir(parents=True)
    try:
        fill(partial)
        if not target.exists():
            os.rename(partial, target)
        elif not _exchange(partial, target):
            old = target.with_name(f".{target.name}.{_token()}.old")
            os.rename(target, old)
            os.rename(partial, target)
            shutil.rmtree(old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # after an exchange, the folder that was there before


def _token() -> str:
    """In names of files that another machine may write at the same moment, in a process of the same number."""
    return secrets.token_hex(6)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one system call; False where there is none."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0

"""Files and folders that are whole or absent, and those that come with the package.

What is being written has another name, which says by what process: `NAME.MACHINE-PROCESS-TOKEN.tmp`. Where that is
killed the file stays, and `remove_leftovers` takes it away when the folder is next written to.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO


def shipped(name: str) -> Path:
    """A folder that comes with the package: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return package / name if (package / name).is_dir() else package.parent / name


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file under another name beside its place, flushes it to disk and renames it."""
    with replacing(path, path.with_name(f"{path.name}.{_mark()}.tmp")) as file:
        file.write(content)


@contextlib.contextmanager
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
    partial = target.with_name(f".{target.name}.{_mark()}.tmp")
    remove_leftovers(target.parent, f".{target.name}")  # they may be as large as what is written now
    partial.mkdir(parents=True)
    try:
        fill(partial)
        if not target.exists():
            os.rename(partial, target)
        elif not _exchange(partial, target):
            old = target.with_name(f".{target.name}.{_mark()}.old")
            os.rename(target, old)
            os.rename(partial, target)
            shutil.rmtree(old)
        remove_leftovers(target.parent, f".{target.name}", "old")  # only now: it may have been the last that was whole
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # after an exchange, the folder that was there before


def remove_leftovers(folder: Path, name: str | None = None, end: str = "tmp") -> None:
    """Removes what killed processes were writing to a folder by the functions above.

    What a living process is writing stays. So does what one of another machine was writing, or one from before this
    machine was last started: whether those live cannot be told.

    Args:
        folder: where; it need not be there.
        name: of what was to be replaced, with the dot in front that folders have; None means anything.
        end: of the leftovers' names.
    """
    ours = re.compile(rf"{'.+' if name is None else re.escape(name)}\.{_here()}-(\d{{1,9}})-[0-9a-f]{{8}}\.{end}")
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for found in map(ours.fullmatch, names):
        if found is None or lives(int(found[1])):
            continue
        path = folder / found[0]
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # somebody else's: no reason to fail
                path.unlink()


def machine() -> str:
    """Names the machine, and the container in which a process has its number."""
    try:
        return f"{os.uname().nodename} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return os.uname().nodename


def lives(process: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _mark() -> str:
    """Tells a file that is being written from those that others write at the same moment, and says who writes it."""
    return f"{_here()}-{os.getpid()}-{secrets.token_hex(4)}"


def _here() -> str:
    """Machine, container and start of the system, in 8 letters: there are machines that have the same name."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        start = ""
    return hashlib.sha256(f"{machine()} {start}".encode()).hexdigest()[:8]


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one system call; False where there is none."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0

"""Copies of remote shards on a local disk, made block by block as they are read, bounded, and shared by processes.

A first batch of 256 takes its samples from 192 of ImageNet's shards: to wait for whole shards would take hundreds of
times as many bytes as it has. So a copy is a sparse file that fills up, 64 KiB at a time; after its data stands a table
with the checksum of each block that is there. Every block is checked whenever it is read: what a killed process, a full
disk or a crash left half-written, cut off or changed is simply not there, and is asked for again. The name of a copy is
made of the shard's address, size and version, so another version has another copy.

A folder that another user filled, or that is mounted read-only, is read and not added to.

`limit` bounds the bytes of all blocks and tables, by a count that is raised before anything is written and counted anew
when a process begins. The copies read longest ago go first. All of it happens under one lock of the folder.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config.problem import Problem, UserError

log = logging.getLogger(__name__)

_BLOCK = 1 << 16
_LEAST = 64 << 20  # less is a mistake
_PATIENCE = 10.0  # seconds to wait for the folder's lock, before something is not kept
_LEDGER = ".pretrain-cache-count"
_COUNT = struct.Struct("<q")
_NAME = re.compile(r"[0-9a-f]{32}-(\d+)\.copy")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", 1)}


def bytes_of(size: int | str) -> int | None:
    """A size in bytes, of a number or of words like 500MB, 1.5 TB or 200GiB; None if it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt]i?)?b)?", str(size).strip().lower())
    return int(float(match[1]) * _UNITS[match[2] or ""]) if match else None


def problems(cache_dir: str | None, cache_size: int | str) -> Iterator[Problem]:
    """What is wrong with the settings of a cache."""
    size = bytes_of(cache_size)
    if size is None:
        yield "cache_size", "must be a number of bytes, or words like 500MB, 1.5TB or 200GiB"
    elif size < _LEAST:
        yield "cache_size", f"must be at least {_LEAST >> 20} MiB"
    if cache_dir is not None and (source := re.match(r"[a-z0-9]+://", cache_dir)):
        yield "cache_dir", f"must be a folder on a local disk, not {source[0]}"


class Cache:
    """Blocks of remote shards in a folder.

    Args:
        folder: of the copies; it is made. Several processes of a machine may share it.
        limit: bytes that the copies may have together.

    Raises:
        UserError: the folder cannot be used.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._lock = threading.Lock()
        self._given_up = False  # it cannot be written
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._ledger(60.0) as ledger:
                if ledger is not None:
                    ledger.count_anew()
                    ledger.make_room(0, self.limit)
        except OSError as failure:
            readable = failure.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and (folder / _LEDGER).is_file()
            if readable or failure.errno in (errno.ENOSPC, errno.EDQUOT):
                self._give_up(failure)
                return
            raise UserError(
                f"cannot write copies of shards to `{folder}` ({failure.strerror}): name another folder"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _given_up=False)

    def read(self, shard: str, size: int, start: int, stop: int, fetch: Callable[[int, int], bytes]) -> bytes:
        """Bytes start … stop of a shard of `size` bytes: from its copy, or by `fetch(start, stop)`, and then kept.

        Args:
            shard: names the shard and its version.
        """
        copy = _Copy(self.folder / f"{hashlib.sha256(shard.encode()).hexdigest()[:32]}-{size}.copy", size)
        first, last = start // _BLOCK, -(-stop // _BLOCK)
        blocks = copy.load(first, last)
        absent = [number for number, block in enumerate(blocks, first) if block is None]
        if absent:
            low, high = absent[0], absent[-1] + 1
            data = memoryview(fetch(low * _BLOCK, min(high * _BLOCK, size)))
            self._keep(copy, low, data)
            blocks[low - first : high - first] = [data]
        whole = b"".join(block for block in blocks if block is not None)
        return whole[start - first * _BLOCK : stop - first * _BLOCK]

    def _keep(self, copy: _Copy, first: int, data: memoryview) -> None:
        """Writes blocks to a copy if there is room, or can be made."""
        if self._given_up:
            return
        try:
            with self._ledger(_PATIENCE) as ledger:
                if ledger is not None:
                    ledger.keep(copy, first, data, self.limit)
        except OSError as failure:
            self._give_up(failure)

    def _give_up(self, failure: OSError) -> None:
        self._given_up = True
        log.warning(
            "no more copies of shards are kept: `%s` cannot be written (%s); the run goes on and reads from the source",
            self.folder,
            failure.strerror or failure,
        )

    @contextmanager
    def _ledger(self, seconds: float) -> Iterator[_Ledger | None]:
        """The count of the folder, while no other thread or process changes it; None if that cannot be had in time."""
        end = time.monotonic() + seconds
        with self._lock, open(os.open(self.folder / _LEDGER, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            if os.fstat(file.fileno()).st_size not in (0, _COUNT.size):
                raise OSError(errno.EEXIST, f"its {_LEDGER} is not a cache's")
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        yield None
                        return
                    time.sleep(0.002)
            yield _Ledger(self.folder, file.fileno())


class _Ledger:
    """The bytes of all copies of a folder, counted in a file whose lock is held."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder, self._descriptor = folder, descriptor

    def used(self) -> int:
        data = os.pread(self._descriptor, _COUNT.size, 0)
        return int(_COUNT.unpack(data)[0]) if len(data) == _COUNT.size else self.count_anew()

    def write(self, used: int) -> None:
        os.pwrite(self._descriptor, _COUNT.pack(used), 0)

    def count_anew(self) -> int:
        """Looks into every copy, and drops those that are cut off."""
        copies = self._copies()
        for copy in copies:
            if not copy.is_whole():
                copy.path.unlink(missing_ok=True)
        used = sum(copy.counted() for copy in copies)
        self.write(used)
        return used

    def keep(self, copy: _Copy, first: int, data: memoryview, limit: int) -> None:
        """Writes blocks from number `first` on to a copy, if there is room or can be made."""
        if not copy.is_whole():
            copy.path.unlink()
            self.count_anew()
        with copy.opened() as (descriptor, created):
            if created:
                self.write(self.used() + copy.table_size)
            need = copy.need(descriptor, first, data)
            if self.make_room(need, limit, spare=copy.path):
                self.write(self.used() + need)
                copy.store(descriptor, first, data)
            elif created:
                copy.path.unlink()
                self.write(self.used() - copy.table_size)

    def make_room(self, need: int, limit: int, spare: Path | None = None) -> bool:
        """Deletes the copies that were read longest ago, but for `spare`, until there is room; False if none can be."""
        used = self.used()
        if used + need <= limit:
            return True
        copies = {copy.path: copy for copy in self._copies()}
        if spare in copies and copies.pop(spare).counted() + need > limit:
            return False
        for path in sorted(copies, key=lambda path: path.stat().st_mtime_ns):
            used -= copies[path].counted()
            os.truncate(path, 0)  # gives the room back at once, even if another process has it open
            path.unlink()
            self.write(used)
            if used + need <= limit:
                return True
        return self.count_anew() + need <= limit

    def _copies(self) -> list[_Copy]:
        found = ((path, _NAME.fullmatch(path.name)) for path in self.folder.iterdir())
        return [_Copy(path, int(match[1])) for path, match in found if match]


class _Copy:
    """A sparse file with blocks of a shard of `size` bytes, and the table of their checksums, 0 for those not there."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self.count = -(-size // _BLOCK)
        self._table, self.table_size = self.count * _BLOCK, 4 * self.count  # where it begins, its bytes

    def load(self, first: int, last: int) -> list[memoryview | None]:
        """Blocks first … last, None for those that are not there or damaged."""
        begin, end = first * _BLOCK, min(last * _BLOCK, self.size)
        try:
            with open(self.path, "rb", buffering=0) as file:
                table = self._entries(file.fileno(), first, last)
                data = memoryview(os.pread(file.fileno(), end - begin, begin)) if table.any() else memoryview(b"")
                with suppress(OSError):  # of another user, or not to be written
                    os.utime(file.fileno())
        except OSError:  # mostly: there is no such file
            return [None] * (last - first)
        blocks = (data[i * _BLOCK : min((i + 1) * _BLOCK, end - begin)] for i in range(last - first))
        return [
            block if _checksum(block) == entry else None for block, entry in zip(blocks, table.tolist(), strict=True)
        ]

    @contextmanager
    def opened(self) -> Iterator[tuple[int, bool]]:
        """(a descriptor to write by, whether the file was made just now)."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            created = os.fstat(descriptor).st_size == 0
            if created:
                os.ftruncate(descriptor, self._table + self.table_size)
            yield descriptor, created
        finally:
            os.close(descriptor)

    def need(self, descriptor: int, first: int, data: memoryview) -> int:
        """Bytes by which the count grows when blocks from `first` on are stored."""
        present = self._entries(descriptor, first, first + -(-len(data) // _BLOCK)) != 0
        there = sum(min(_BLOCK, len(data) - number * _BLOCK) for number in np.flatnonzero(present).tolist())
        return len(data) - there

    def store(self, descriptor: int, first: int, data: memoryview) -> None:
        """Writes blocks, their checksums first: what is cut short does not match, and yet is counted."""
        sums = [_checksum(data[at : at + _BLOCK]) for at in range(0, len(data), _BLOCK)]
        os.pwrite(descriptor, np.array(sums, "<u4").tobytes(), self._table + 4 * first)
        if os.pwrite(descriptor, data, first * _BLOCK) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def counted(self) -> int:
        """Bytes of the table and the blocks that it lists."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                listed = self._entries(file.fileno(), 0, self.count) != 0
        except FileNotFoundError:
            return 0
        short = self._table - self.size if self.count and listed[-1] else 0
        return self.table_size + int(listed.sum()) * _BLOCK - short

    def is_whole(self) -> bool:
        """Whether the file, if there is one, has its length."""
        try:
            return self.path.stat().st_size == self._table + self.table_size
        except FileNotFoundError:
            return True

    def _entries(self, descriptor: int, first: int, last: int) -> np.ndarray:
        data = os.pread(descriptor, 4 * (last - first), self._table + 4 * first)
        return np.frombuffer(data.ljust(4 * (last - first), b"\0"), "<u4")


def _checksum(block: memoryview) -> int:
    """Of a block's bytes; never 0, which stands for none."""
    return zlib.crc32(block) or 1

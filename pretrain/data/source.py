"""Where shards come from: local files, http(s) URLs and, if allowed, `pipe:` commands.

`expand` turns what a user writes into a list of shards; `stream` reads one from its beginning; `Reader` reads byte
ranges of it, from many threads. What cannot be *read* is tried again and then stops the run with a `ReadError`: it is
never replaced by another sample, or two runs would differ.
"""

from __future__ import annotations

import glob
import http.client
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar
from urllib.parse import urlsplit

from braceexpand import UnbalancedBracesError, braceexpand

_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 5
_PAUSE = 0.5  # seconds before the second attempt; doubles with each
_STALE = "start again for a local shard; for others delete its index in data.index_dir (or ~/.cache/pretrain/index)"
_OPEN = 64  # shards that a reader keeps open, or on disk where they are sequential

T = TypeVar("T")


class ReadError(OSError):
    """A shard could not be read, however often it was tried."""


def expand(
    patterns: str | Sequence[str], allow_pipe: bool = False, prefix: str = "data."
) -> tuple[list[str], list[str]]:
    """The shards that patterns stand for, and what is wrong with the patterns.

    Args:
        patterns: one or a list of: a folder (all `*.tar` in it), a file, a glob, an http(s) URL, a `pipe:` command; all
            but folders and globs may hold WebDataset braces, `{000000..000015}` or `{a,b}`.
        allow_pipe: whether `pipe:` commands, which run in a shell, are allowed.
        prefix: what keys begin with where a mistake's advice names them: `data.` in a run, nothing in a script.

    Returns:
        (shards, mistakes), shards in the order of the patterns, each pattern's own sorted.
    """
    shards: list[str] = []
    mistakes: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            words = list(braceexpand(pattern, escape=False))
        except UnbalancedBracesError:
            mistakes.append(f"`{pattern}` has unbalanced braces")
            continue
        found, lines = _expand_one(pattern, words, allow_pipe, prefix)
        shards += found
        mistakes += lines
    places = [os.path.realpath(shard) if is_local(shard) else shard for shard in shards]
    often = {place for place, count in Counter(places).items() if count > 1}
    repeated = sorted({shard for shard, place in zip(shards, places, strict=True) if place in often})
    mistakes += [
        f"`{shard}` is listed more than once, so its samples would be seen twice an epoch" for shard in repeated
    ]
    return shards, mistakes


def _expand_one(pattern: str, words: list[str], allow_pipe: bool, prefix: str) -> tuple[list[str], list[str]]:
    if pattern.startswith("pipe:"):
        refusal = f"`{pattern}` runs a shell command: allow it by {prefix}allow_pipe=true"
        return (words, []) if allow_pipe else ([], [refusal])
    if is_remote(pattern):
        try:
            hosts = [urlsplit(word).hostname for word in words]
        except ValueError as failure:
            return [], [f"`{pattern}` is no address: {failure}"]
        return (words, []) if all(hosts) else ([], [f"`{pattern}` is no address: it names no host"])
    if "://" in pattern:
        scheme = pattern.split("://")[0]
        return [], [
            f"`{pattern}`: {scheme}:// is not supported; use http(s), or a command that writes the tar: "
            f"'pipe:…' with {prefix}allow_pipe=true"
        ]
    found, missing = [], []
    for word in words:
        paths = _local(os.path.expanduser(word))
        found += paths
        missing += [] if paths else [word]
    if not missing:
        return found, []
    if len(words) == 1 or not found:
        return [], [f"no shard matches `{pattern}`"]
    return [], [f"{len(missing)} of the {len(words)} shards of `{pattern}` are missing, first `{missing[0]}`"]


def _local(path: str) -> list[str]:
    if os.path.isdir(path):
        return sorted(str(shard) for shard in Path(path).glob("*.tar"))
    if os.path.isfile(path):
        return [path]
    return sorted(found for found in glob.glob(path) if os.path.isfile(found))


def is_remote(shard: str) -> bool:
    return shard.startswith(("http://", "https://"))


def is_local(shard: str) -> bool:
    return not is_remote(shard) and not shard.startswith("pipe:")


def retry(what: str, attempt: Callable[[], T]) -> T:
    """The result of `attempt`, tried again with growing pauses.

    Raises:
        ReadError: it failed every time; names `what` and the last failure.
    """
    for number in range(_ATTEMPTS):
        try:
            return attempt()
        except ReadError:
            raise
        except (OSError, http.client.HTTPException) as failure:
            last = failure
            if isinstance(failure, FileNotFoundError | PermissionError) or getattr(failure, "code", 0) in (
                401,
                403,
                404,
            ):
                break
            if number + 1 < _ATTEMPTS:
                time.sleep(_PAUSE * 2**number)
    raise ReadError(f"cannot read {what}: {last or type(last).__name__}")


@contextmanager
def stream(shard: str) -> Iterator[Callable[[int], bytes]]:
    """A function that gives at most so many of the shard's next bytes, from its beginning, and b"" at the end.

    Raises:
        OSError: it cannot be opened, nothing came for 30 s, or a command failed.
    """
    if shard.startswith("pipe:"):
        with _command(shard) as read:
            yield read
    elif is_remote(shard):
        with urllib.request.urlopen(shard, timeout=_TIMEOUT) as response:
            yield _whole(response)
    else:
        with open(shard, "rb") as file:
            yield file.read


def _whole(response: http.client.HTTPResponse) -> Callable[[int], bytes]:
    """Reads a response, and does not take a cut connection for its end."""
    left = response.length  # None where the server does not say

    def read(size: int) -> bytes:
        nonlocal left
        data = response.read(size)
        if left is not None:
            left -= len(data)
            if not data and left > 0:
                raise OSError(f"the connection ended {left} bytes too early")
        return data

    return read


@contextmanager
def _command(shard: str) -> Iterator[Callable[[int], bytes]]:
    command = shard.removeprefix("pipe:")
    process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, bufsize=0, start_new_session=True)
    output = process.stdout
    assert output is not None

    def read(size: int) -> bytes:
        if not select.select([output], [], [], _TIMEOUT)[0]:
            raise OSError(f"the command wrote nothing for {_TIMEOUT:.0f} s")
        data = output.read(size) or b""
        if not data and (code := process.wait(_TIMEOUT)):
            raise OSError(f"the command ended with exit code {code}")
        return data

    try:
        yield read
    finally:
        output.close()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Reader:
    """Reads byte ranges of shards, from any thread.

    Local files are read in place and http servers asked for ranges. A `pipe:` and a server that knows no ranges are
    sequential: the whole shard is written once to an unnamed temporary file, of which at most 64 are kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the three below
        self._files: OrderedDict[str, IO[bytes]] = OrderedDict()
        self._opening: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._without_ranges: set[str] = set()

    def read(self, shard: str, start: int, stop: int, size: int) -> bytes:
        """Bytes start … stop of a shard whose index says that it has `size` bytes.

        Raises:
            ReadError: they cannot be had, or the shard's size is another.
        """
        if start == stop:
            return b""
        data = retry(f"`{shard}`", lambda: self._read(shard, start, stop, size))
        if len(data) != stop - start:
            raise ReadError(f"cannot read `{shard}`: it ends before byte {stop}, so it changed since it was indexed")
        return data

    def close(self) -> None:
        """Closes all files. Reads that are under way still end well."""
        with self._lock:
            while self._files:
                self._files.popitem()[1].close()

    def _read(self, shard: str, start: int, stop: int, size: int) -> bytes:
        if is_remote(shard) and shard not in self._without_ranges:
            data = _read_range(shard, start, stop, size)
            if data is not None:
                return data
            self._without_ranges.add(shard)
        descriptor = self._descriptor(shard, size)
        try:
            return os.pread(descriptor, stop - start, start)
        finally:
            os.close(descriptor)

    def _descriptor(self, shard: str, size: int) -> int:
        """A descriptor of the shard's bytes that stays valid until the caller closes it."""
        with self._lock:
            opening = self._opening[shard]
        with opening:
            with self._lock:
                if shard in self._files:
                    self._files.move_to_end(shard)
                    return os.dup(self._files[shard].fileno())
            file = open(shard, "rb") if is_local(shard) else _spool(shard)  # noqa: SIM115
            actual = os.fstat(file.fileno()).st_size
            if actual != size:
                file.close()
                raise ReadError(f"`{shard}` has {actual} bytes, but had {size} when it was indexed: {_STALE}")
            with self._lock:
                self._files[shard] = file
                while len(self._files) > _OPEN:
                    self._files.popitem(last=False)[1].close()
                return os.dup(file.fileno())


def _spool(shard: str) -> IO[bytes]:
    """A sequential shard in an unnamed temporary file."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with stream(shard) as read:
            while chunk := read(1 << 20):
                file.write(chunk)
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


def _read_range(shard: str, start: int, stop: int, size: int) -> bytes | None:
    """Bytes of a URL, or None where the server sends whole files only."""
    request = urllib.request.Request(shard, headers={"Range": f"bytes={start}-{stop - 1}"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        if response.status != 206:
            return None
        content = response.headers.get("Content-Range", "")
        total = content.rpartition("/")[2]
        if total.isdecimal() and int(total) != size:
            raise ReadError(f"`{shard}` has {total} bytes, but had {size} when it was indexed: {_STALE}")
        if content and content.replace("bytes ", "").partition("-")[0] != str(start):
            raise OSError(f"the server answered with {content} where bytes {start}-{stop - 1} were asked for")
        data = response.read()
        if len(data) != stop - start:
            raise OSError(f"{len(data)} bytes came where {stop - start} were asked for")
        return data

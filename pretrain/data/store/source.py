"""Where shards come from: local files, http(s) URLs, object stores and, if allowed, `pipe:` commands.

`expand` turns what a user writes into a list of shards; `stream` reads one from its beginning; `Reader` reads byte
ranges of it, from many threads. `Access` is what both are given where the defaults do not do: what the drivers of
object stores are told, and where copies of remote shards are kept. What cannot be *read* is tried again and then stops
the run with a `ReadError`: it is never replaced by another sample, or two runs would differ.
"""

from __future__ import annotations

import glob
import os
import re
import tempfile
import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from braceexpand import UnbalancedBracesError, braceexpand

from pretrain.data.store import command, web
from pretrain.data.store.cache import Cache, bytes_of
from pretrain.data.store.objects import Objects, is_object, missing_driver
from pretrain.data.store.patience import ReadError as ReadError
from pretrain.data.store.patience import retry as retry
from pretrain.data.store.web import is_web

_STALE = "start again for a local shard; for others delete its index in data.index_dir (or ~/.cache/pretrain/index)"
_OPEN = 64  # shards that a reader keeps open, or on disk where they are sequential


T = TypeVar("T")


@dataclass(frozen=True)
class Access:
    """How remote shards are reached.

    Args:
        objects: those in object stores.
        cache: where copies of them are kept, if anywhere.
    """

    objects: Objects = field(default_factory=Objects)
    cache: Cache | None = None


PLAIN = Access()


def access_of(
    storage_options: Mapping[str, Any] | None = None, cache_dir: str | None = None, cache_size: int | str = 0
) -> Access:
    """The access that a configuration asks for.

    Raises:
        UserError: the cache's folder cannot be used.
    """
    folder = None if cache_dir is None else Path(os.path.expanduser(cache_dir))
    cache = None if folder is None else Cache(folder, bytes_of(cache_size) or 0)
    return Access(Objects(storage_options), cache)


def expand(
    patterns: str | Sequence[str], allow_pipe: bool = False, prefix: str = "data.", access: Access | None = None
) -> tuple[list[str], list[str]]:
    """The shards that patterns stand for, and what is wrong with the patterns.

    Args:
        patterns: one or a list of: a folder (all `*.tar` in it), a file, a glob, each local or in an object store; an
            http(s) URL; a `pipe:` command. All may hold WebDataset braces, `{000000..000015}` or `{a,b}`.
        allow_pipe: whether `pipe:` commands, which run in a shell, are allowed.
        prefix: what keys begin with where a mistake's advice names them: `data.` in a run, nothing in a script.
        access: to object stores, whose lists are asked for.

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
        found, lines = _expand_one(pattern, words, allow_pipe, prefix, access)
        shards += found
        mistakes += lines
    places = _places(shards)
    often = {place for place, count in Counter(places).items() if count > 1}
    repeated = sorted({shard for shard, place in zip(shards, places, strict=True) if place in often})
    mistakes += [
        f"`{shard}` is listed more than once, so its samples would be seen twice an epoch" for shard in repeated
    ]
    return shards, mistakes


def _places(shards: Sequence[str]) -> list[str]:
    """The shards, local ones by the file that they are, whatever links lead there."""
    folders: dict[str, str] = {}  # to resolve each once is a tenth of the work
    places = []
    for shard in shards:
        if is_local(shard):
            folder, name = os.path.split(shard)
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            shard = os.path.realpath(shard) if os.path.islink(shard) else os.path.join(folders[folder], name)
        places.append(shard)
    return places


def _expand_one(
    pattern: str, words: list[str], allow_pipe: bool, prefix: str, access: Access | None
) -> tuple[list[str], list[str]]:
    if pattern.startswith("pipe:"):
        refusal = f"`{pattern}` runs a shell command: allow it by {prefix}allow_pipe=true"
        return (words, []) if allow_pipe else ([], [refusal])
    if is_web(pattern):
        try:
            hosts = [urlsplit(word).hostname for word in words]
        except ValueError as failure:
            return [], [f"`{pattern}` is no address: {failure}"]
        return (words, []) if all(hosts) else ([], [f"`{pattern}` is no address: it names no host"])
    if re.match(r"[\w+.-]+::.*://", pattern):
        return [], [f"`{pattern}` chains drivers, which is not taken: {prefix}cache_dir keeps copies of remote shards"]
    if is_object(pattern):
        if lacking := missing_driver(pattern):
            return [], [lacking + f" ('pipe:COMMAND' with {prefix}allow_pipe=true reads from anywhere)"]
        try:
            found, missing = (access or PLAIN).objects.find(words)
        except OSError as failure:
            return [], [str(failure)]
    else:
        found, missing = _local(words)
    if not missing:
        return found, []
    if len(words) == 1 or not found:
        return [], [f"no shard matches `{pattern}`"]
    return [], [f"{len(missing)} of the {len(words)} shards of `{pattern}` are missing, first `{missing[0]}`"]


def _local(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the files that words stand for, the words that stand for none)."""
    found, missing = [], []
    for word in words:
        path = os.path.expanduser(word)
        if os.path.isdir(path):
            paths = sorted(str(shard) for shard in Path(path).glob("*.tar"))
        elif os.path.isfile(path):
            paths = [path]
        else:
            paths = sorted(shard for shard in glob.glob(path) if os.path.isfile(shard))
        found += paths
        missing += [] if paths else [word]
    return found, missing


def is_remote(shard: str) -> bool:
    """Whether a shard is read by ranges over a network."""
    return is_web(shard) or is_object(shard)


def is_local(shard: str) -> bool:
    return not is_remote(shard) and not shard.startswith("pipe:")


@contextmanager
def stream(shard: str, access: Access | None = None) -> Iterator[Callable[[int], bytes]]:
    """A function that gives at most so many of the shard's next bytes, from its beginning, and b"" at the end.

    Raises:
        OSError: it cannot be opened, too little came for too long (see `patience`), or a command failed.
    """
    if shard.startswith("pipe:"):
        with command.stream(shard) as read:
            yield read
    elif is_web(shard):
        with web.stream(shard) as read:
            yield read
    elif is_object(shard):
        with (access or PLAIN).objects.stream(shard) as read:
            yield read
    else:
        with open(shard, "rb") as file:
            yield file.read


class Reader:
    """Reads byte ranges of shards, from any thread.

    Local files are read in place; http servers and object stores are asked for ranges, or the cache is. A `pipe:` and a
    server that knows no ranges are sequential: the whole shard is written once to an unnamed temporary file, of which
    at most 64 are kept.
    """

    def __init__(self, access: Access | None = None) -> None:
        self._access = access or PLAIN
        self._lock = threading.Lock()  # guards those below
        self._files: OrderedDict[str, IO[bytes]] = OrderedDict()
        self._opening: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._without_ranges: set[str] = set()
        self._versions: dict[str, str] = {}
        self._stopped = False

    def read(self, shard: str, start: int, stop: int, size: int) -> bytes:
        """Bytes start … stop of a shard whose index says that it has `size` bytes.

        Raises:
            ReadError: they cannot be had, or the shard's size is another.
        """
        if start == stop:
            return b""
        cache = self._access.cache
        if cache is None or not is_remote(shard):
            data = self._fetch(shard, start, stop, size)
        else:
            name = f"{shard}\n{size}\n{self._version(shard, size)}"
            data = cache.read(name, size, start, stop, lambda begin, end: self._fetch(shard, begin, end, size))
        if len(data) != stop - start:
            raise ReadError(f"cannot read `{shard}`: it ends before byte {stop}, so it changed since it was indexed")
        return data

    def stop(self) -> None:
        """From now on, what cannot be read is not tried again: its reader ends."""
        self._stopped = True

    def close(self) -> None:
        """Closes all files. Reads that are under way still end well."""
        with self._lock:
            while self._files:
                self._files.popitem()[1].close()

    def _fetch(self, shard: str, start: int, stop: int, size: int) -> bytes:
        """Bytes of a shard from where it is."""
        return self._retry(shard, lambda: self._read(shard, start, stop, size))

    def _retry(self, shard: str, attempt: Callable[[], T]) -> T:
        def unless_stopped() -> T:
            if self._stopped:
                raise ReadError(f"cannot read `{shard}`: reading was stopped")
            return attempt()

        return retry(f"`{shard}`", unless_stopped)

    def _read(self, shard: str, start: int, stop: int, size: int) -> bytes:
        if is_object(shard):
            self._version(shard, size)
            return self._access.objects.read(shard, start, stop)
        if is_web(shard) and shard not in self._without_ranges:
            answer = web.read_range(shard, start, stop)
            if answer is not None:
                data, total = answer
                _refuse_size(shard, total, size)
                return data
            self._without_ranges.add(shard)
        descriptor = self._descriptor(shard, size)
        try:
            return os.pread(descriptor, stop - start, start)
        finally:
            os.close(descriptor)

    def _version(self, shard: str, size: int) -> str:
        """What a remote shard's source calls the version of it that is there, asked once, when its size is compared."""
        with self._lock:
            opening = self._opening[shard]
        with opening:
            if shard not in self._versions:
                ask = self._access.objects.version if is_object(shard) else web.version
                total, version = self._retry(shard, lambda: ask(shard))
                _refuse_size(shard, total, size)
                self._versions[shard] = version
            return self._versions[shard]

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
            try:
                if not is_local(shard):
                    _refuse_cut(os.fstat(file.fileno()).st_size, size)
                _refuse_size(shard, os.fstat(file.fileno()).st_size, size)
            except OSError:
                file.close()
                raise
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


def _refuse_cut(actual: int, size: int) -> None:
    """Fewer bytes than there were, from a source that does not say how many there are: it may be asked again."""
    if actual < size:
        raise OSError(
            f"{actual} bytes came of the {size} that it had when it was indexed: either they were cut off each time, "
            "or it changed since: then delete its index in data.index_dir (or ~/.cache/pretrain/index)"
        )


def _refuse_size(shard: str, actual: int | None, size: int) -> None:
    if actual is not None and actual != size:
        raise ReadError(f"`{shard}` has {actual} bytes, but had {size} when it was indexed: {_STALE}")

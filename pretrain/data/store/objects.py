"""Shards in object stores: `s3://`, `gs://`, `az://` and every other store that fsspec has a driver for.

Credentials and addresses come from where the driver's library looks for them (for S3 the variables `AWS_…` and its
configuration files), or from options that are handed to the driver. A driver is made once a process and shared by all
its threads; with it travel only its options. Drivers of the large stores are asynchronous: their reads end at a
deadline. What they raise becomes one of three things: refused for good, to be tried again, or not found.
"""

from __future__ import annotations

import errno
import functools
import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import fsspec
from fsspec.asyn import sync
from fsspec.exceptions import FSTimeoutError
from fsspec.registry import known_implementations

from pretrain.config import secret
from pretrain.data.store import patience
from pretrain.data.store.patience import RefusedError

# Of fsspec's own drivers those of stores; the others read through further drivers, unpack, start programs or fill in
# templates, as an address or an option says.
_STORES = {"arrow", "dbfs", "ftp", "local", "memory", "sftp", "smb", "webhdfs"}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
_FINAL = {errno.EINVAL, errno.ENAMETOOLONG, getattr(errno, "EREMCHG", errno.EINVAL)}  # a request that makes no sense
# As many connections as threads that read; no attempts beyond those of `patience`, so that the reason is not lost.
_S3 = {"config_kwargs": {"max_pool_connections": 64, "retries": {"total_max_attempts": 1}}}
_CHUNK = 16 << 20  # bytes of a shard that are asked for at once where it is read whole


def is_object(shard: str) -> bool:
    """Whether a shard is in an object store, as its protocol says."""
    return re.match(r"(?!https?://)[A-Za-z][A-Za-z0-9+.-]*://", shard) is not None


class Objects:
    """What is read from object stores, in any thread.

    Args:
        options: for the drivers, as their own documents name them.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})
        self._lock = threading.Lock()
        self._drivers: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"Objects({secret.hidden(self.options)})"

    def find(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """(the shards that words stand for, the words that stand for none).

        A word is a folder (it ends with /, or there is no object of that name), a glob, or an object's name.

        Raises:
            ReadError: the store cannot be asked, or refuses.
        """
        there = self._there([word for word in words if not _is_glob(word)])
        found: list[str] = []
        missing: list[str] = []
        for word in words:
            shards = [word] if word in there else self._glob(word)
            found += shards
            missing += [] if shards else [word]
        return found, missing

    def version(self, url: str) -> tuple[int, str]:
        """(bytes that an object has, what its store calls this version of them).

        Raises:
            OSError: it cannot be had.
        """
        info = self._call(url, "info")
        tags = (info.get(name) for name in ("ETag", "etag", "LastModified", "last_modified", "mtime"))
        return int(info["size"]), next((str(tag) for tag in tags if tag), "")

    def read(self, url: str, start: int, stop: int) -> bytes:
        """Bytes start … stop of an object.

        Raises:
            OSError: they cannot be had.
        """
        data: bytes = self._call(url, "cat_file", room=stop - start, start=start, end=stop)
        if len(data) != stop - start:
            raise OSError(f"{len(data)} bytes came where {stop - start} were asked for")
        return data

    @contextmanager
    def stream(self, url: str) -> Iterator[Callable[[int], bytes]]:
        """A function that gives at most so many of an object's next bytes, and b"" at their end.

        Raises:
            OSError: it cannot be had, or was replaced by another while it was read.
        """
        before, at, rest = self.version(url), 0, memoryview(b"")

        def read(size: int) -> bytes:
            nonlocal at, rest
            if not rest and at < before[0]:
                stop = min(at + _CHUNK, before[0])
                rest, at = memoryview(self.read(url, at, stop)), stop
            data, rest = bytes(rest[:size]), rest[size:]
            if not data and self.version(url) != before:
                raise OSError("it was replaced while it was read")
            return data

        yield read

    def _there(self, words: Sequence[str]) -> set[str]:
        """Which of these objects exist. Many of one folder are looked up in its list, if it may be listed."""
        folders: defaultdict[str, list[str]] = defaultdict(list)
        for word in words:
            if not word.endswith("/"):
                folders[word.rpartition("/")[0]].append(word)
        there: set[str] = set()
        for folder, names in folders.items():
            if len(names) == 1:
                there.update(name for name in names if self._is_file(name))
                continue
            try:
                listed = set(self._list(f"{folder}/", "ls", detail=False))
            except PermissionError:  # who may read need not be allowed to list
                listed = set(names) if self._is_file(names[0]) else set()
            there.update(name for name in names if name in listed)
        return there

    def _is_file(self, url: str) -> bool:
        try:
            return bool(patience.retry(f"`{url}`", lambda: self._call(url, "info"))["type"] == "file")
        except patience.ReadError as failure:
            if isinstance(failure.__cause__, FileNotFoundError):
                return False
            raise

    def _glob(self, word: str) -> list[str]:
        """The shards that a glob or a folder stands for."""
        if not word.endswith("/") and not _is_glob(word):
            word += "/"
        return sorted(self._list(f"{word}*.tar" if word.endswith("/") else word, "glob"))

    def _list(self, url: str, method: str, **arguments: Any) -> list[str]:
        """The addresses that a driver lists."""
        driver, path = self._driver(url)
        driver.invalidate_cache()
        head = (
            url.removesuffix("/").removesuffix(path) if url.removesuffix("/").endswith(path) else _scheme(url) + "://"
        )
        try:
            listed = patience.retry(f"`{url}`", lambda: self._call(url, method, **arguments))
        except patience.ReadError as failure:
            if isinstance(failure.__cause__, FileNotFoundError):
                return []
            if isinstance(failure.__cause__, PermissionError) and method == "ls":
                raise failure.__cause__ from None
            raise
        return [head + str(name) for name in listed]

    def _call(self, url: str, method: str, room: int = 0, **arguments: Any) -> Any:
        """What a driver's method answers, asked for so many bytes."""
        driver, path = self._driver(url)
        seconds = patience.allowed(room)
        try:
            if driver.async_impl:
                return sync(driver.loop, getattr(driver, f"_{method}"), path, timeout=seconds, **arguments)
            return getattr(driver, method)(path, **arguments)
        except FSTimeoutError:
            raise OSError(f"it did not come within {seconds:.0f} s") from None
        except Exception as failure:  # whatever a driver raises: botocore's and google's own errors are no OSErrors
            raise self._translated(failure) from None

    def _driver(self, url: str) -> tuple[Any, str]:
        """(the driver of an address, the address as the driver calls it)."""
        kind = fsspec.get_filesystem_class(_scheme(url))
        defaults = _S3 if _EXTRAS.get(_scheme(url)) == "s3" else {}
        arguments = {**defaults, **kind._get_kwargs_from_urls(url), **self.options}
        name = json.dumps([_scheme(url), arguments], sort_keys=True, default=str)
        with self._lock:
            if name not in self._drivers:
                try:
                    self._drivers[name] = kind(**arguments, skip_instance_cache=True)
                except Exception as failure:  # as above: options that it does not know, credentials that it cannot find
                    raise RefusedError(f"{_scheme(url)}://: {self._clean(failure)}") from None
            return self._drivers[name], kind._strip_protocol(url)

    def _translated(self, failure: Exception) -> OSError:
        """A driver's error as one that says by its type whether to try again."""
        text = self._clean(failure)
        if isinstance(failure, FileNotFoundError | PermissionError):
            return type(failure)(text)
        statuses = (getattr(failure, name, None) for name in ("code", "status_code", "status"))
        refused = any(isinstance(status, int) and patience.refuses(status) for status in statuses)
        if isinstance(failure, OSError):
            refused = refused or failure.errno in _FINAL
        elif isinstance(failure, ValueError | TypeError | ImportError) or "Credential" in type(failure).__name__:
            refused = True
        return RefusedError(text) if refused else OSError(text)

    def _clean(self, failure: Exception) -> str:
        """An error's words, without the secrets among the options."""
        text = str(failure).strip() or type(failure).__name__
        for value in secret.values(self.options):
            text = text.replace(value, "…")
        return text


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def _is_glob(word: str) -> bool:
    return any(sign in word for sign in "*?[")


@functools.cache
def missing_driver(url: str) -> str:
    """Why there is no driver for an address, "" if there is one; says how to get it."""
    scheme = _scheme(url)
    package, _, name = known_implementations.get(scheme, {"class": ""})["class"].rpartition(".")[0].rpartition(".")
    if package.partition(".")[0] == "fsspec" and not (package == "fsspec.implementations" and name in _STORES):
        return f"`{url}`: {scheme}:// is no store, and is not taken; use http(s), s3, gs, az, or a mounted folder"
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError:
        return f"`{url}`: {scheme}:// is no protocol that fsspec knows; use http(s), s3, gs, az, or a mounted folder"
    except ImportError as failure:
        extra, package = _EXTRAS.get(scheme), known_implementations[scheme]["class"].partition(".")[0]
        driver = f"'pretrain[{extra}]'" if extra else package
        hint = str(failure) if package == "fsspec" else f"pip install {driver}"
        return f"`{url}` needs a package that is not installed: {hint}"
    return ""

"""What is known of shards before one is read: tables that say how many samples each has, and of which file.

`index.json` stands beside shards that our tools wrote, and lists their sidecars `NAME.tar.idx`. For all others the
cache folder holds sidecars, named by their shards' addresses, so that lists which share shards share them; and for each
list that was ever opened a table, so that the next time nothing is opened but that. A table is trusted for a local
shard while its size and time are those that it notes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.config import secret
from pretrain.data.shard.sidecar import Shard, from_sidecar, modified
from pretrain.data.store import source
from pretrain.files import remove_leftovers, replace_file

log = logging.getLogger(__name__)

_FORMAT = 2  # 1 listed sidecars of an older version: its shards are scanned again, into the cache
_ROW = {"name": str, "count": int, "bytes": int, "sha256": str, "modified": int, "sidecar": str}  # in index.json
_COLUMNS = ("count", "bytes", "sha256", "modified", "sidecar")  # of a table in the cache, in the order of its list


def absolute(urls: Sequence[str]) -> list[str]:
    """The shards, local ones by their whole path."""
    folders: dict[str, str] = {}
    result = []
    for url in urls:
        if source.is_local(url):
            folder, slash, name = url.rpartition("/")
            if folder not in folders:
                folders[folder] = os.path.abspath(folder + slash).rstrip("/")
            url = f"{folders[folder]}/{name}"
        result.append(url)
    return result


def beside(urls: Sequence[str]) -> dict[str, Shard]:
    """The local shards that the index beside them knows, and that are the very files it was made of."""
    folders: dict[str, tuple[dict[str, dict[str, Any]], frozenset[str]]] = {}
    known = {}
    for url in urls:
        folder, _, name = url.rpartition("/")
        if folder not in folders:
            rows = rows_of(Path(f"{folder}/"))[0] if source.is_local(url) else {}
            folders[folder] = (rows, frozenset(os.listdir(f"{folder}/") if rows else ()))
        rows, names = folders[folder]
        row = rows.get(name)
        if row is None or row["sidecar"] not in names:
            continue
        status = os.stat(url)
        if row["bytes"] == status.st_size and row["modified"] == int(status.st_mtime):
            known[url] = Shard(url, row["count"], row["bytes"], row["sha256"], f"{folder}/{row['sidecar']}")
    return known


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Writes `index.json` for local shards whose sidecars stand beside them; it keeps those listed there before."""
    names = {shard.name for shard in shards}
    rows = [row for row in rows_of(folder)[0].values() if row["name"] not in names and (folder / row["name"]).is_file()]
    rows += [
        {
            "name": shard.name,
            "count": shard.count,
            "bytes": shard.size,
            "sha256": shard.sha256,
            "modified": int(os.stat(shard.url).st_mtime),
            "sidecar": shard.sidecar.name,
        }
        for shard in shards
    ]
    rows.sort(key=lambda row: row["sidecar"])
    replace_file(folder / "index.json", json.dumps({"format": _FORMAT, "shards": rows}, indent=1).encode())


def owns_index(folder: Path) -> bool:
    """Whether the folder's `index.json`, if there is one, was written by `write_index`."""
    return rows_of(folder)[1]


def rows_of(folder: Path) -> tuple[dict[str, dict[str, Any]], bool]:
    """(the shards that a folder's `index.json` lists, by name; whether it is ours, or not there at all)."""
    try:
        content = json.loads((folder / "index.json").read_bytes())
        rows = {row["name"]: row for row in content["shards"] if _is_row(row)}
        ours = content.get("format") in (1, _FORMAT) and len(rows) == len(content["shards"])
        return rows if ours and content["format"] == _FORMAT else {}, ours
    except FileNotFoundError:
        return {}, True
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # somebody else's
        return {}, False


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and all(type(row.get(name)) is kind for name, kind in _ROW.items())


def cache_folder(index_dir: str | None) -> Path:
    """Where the index of shards that come without one is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(index_dir or os.path.join(cache, "pretrain", "index"))


def cached(urls: Sequence[str], folder: Path) -> tuple[dict[str, Shard], bool]:
    """What the cache knows of shards that are the very files its sidecars were made of.

    Returns:
        (those shards; whether they are all, and the table of this list says so).
    """
    names = frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()
    columns = _read_table(folder, urls)
    known = {}
    for url, count, size, sha256, time, sidecar in zip(urls, *columns, strict=True) if columns else ():
        if sidecar in names and (time is None or _is(url, size, time)):
            known[url] = Shard(url, count, size, sha256, f"{folder}/{sidecar}")
    if len(known) == len(urls):
        return known, True
    for url, path in sidecars([url for url in urls if url not in known], folder).items():
        if path.name in names and (shard := from_sidecar(url, path)):
            known[url] = shard
    return known, False


def sidecars(urls: Sequence[str], folder: Path) -> dict[str, Path]:
    """Where in the cache the sidecars of shards belong."""
    return {url: folder / _sidecar_name(url) for url in urls}


def write_table(urls: Sequence[str], shards: Mapping[str, Shard], folder: Path) -> None:
    """Notes in the cache what its sidecars say of a list of shards; it does without where that cannot be."""
    listed = [shards[url] for url in urls]
    values = [
        (shard.count, shard.size, shard.sha256, modified(shard.url), shard.sidecar.name)  # a line a shard
        for shard in listed
    ]
    columns = dict(zip(_COLUMNS, zip(*values, strict=True), strict=True))
    path = _table(folder, urls)
    try:
        path.parent.mkdir(exist_ok=True)
        remove_leftovers(path.parent)
        replace_file(path, json.dumps({"format": _FORMAT} | columns).encode())
    except OSError as failure:
        log.warning("the next run will look at each sidecar again: cannot write %s (%s)", path, failure.strerror)


def _read_table(folder: Path, urls: Sequence[str]) -> list[list[Any]] | None:
    """The columns of a list's table, None if there is none that is whole."""
    try:
        content = json.loads(_table(folder, urls).read_bytes())
        columns = [content[name] for name in _COLUMNS] if content["format"] == _FORMAT else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return columns if columns and all(len(column) == len(urls) for column in columns) else None


def _table(folder: Path, urls: Sequence[str]) -> Path:
    return folder / "lists" / f"{hashlib.sha256(os.fsencode(chr(10).join(urls))).hexdigest()[:32]}.json"


def _sidecar_name(url: str) -> str:
    """The digest of a shard's address, and the last component of it as a file may be called."""
    last = secret.address(url).partition("?")[0].rstrip("/").rpartition("/")[2]  # a query may have slashes
    name = re.sub(r"[^A-Za-z0-9._-]", "_", last)
    return f"{hashlib.sha256(os.fsencode(url)).hexdigest()[:20]}-{name[-100:]}.idx"


def _is(url: str, size: int, time: int) -> bool:
    """Whether a local shard has this size and was last written then (ns)."""
    status = os.stat(url)
    return status.st_size == size and status.st_mtime_ns == time

"""The index of a set of shards: how many samples each has, its hash, and where every sample's members lie.

`index.json` lists the shards (name, count, bytes, sha256); beside it each shard has its sidecar (`sidecar.py`), which
is mapped when a sample of that shard is first asked for. Our tools write both beside the shards. For foreign,
read-only or remote shards they are built once into a cache folder, one shard whole at a time, so that a build that
was killed goes on where it stopped.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pretrain.data import source
from pretrain.data.sidecar import Part, Shard, Sidecar, from_sidecar, scan
from pretrain.data.skip import Members, Paths, skipped_of
from pretrain.files import replace_file
from pretrain.records import UserError

_ROW = {"name", "count", "bytes", "sha256", "modified", "sidecar"}  # of a shard in index.json
_THREADS = 8


class Index:
    """Shards with the places of all their samples. Small: a sidecar is mapped when it is first needed.

    Args:
        shards: the shards.
        skipped: samples that are left out: number of the shard → their numbers in it, sorted. The others count as if
            these were not there: `counts`, and the `member` that the methods take, are of those that are kept.
    """

    def __init__(self, shards: Sequence[Shard], skipped: Mapping[int, Members] | None = None) -> None:
        self.shards = list(shards)
        self._skipped = dict(skipped or {})
        self._sidecars: dict[int, Sidecar] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sidecars": {}}

    @property
    def counts(self) -> list[int]:
        return [shard.count - len(self._skipped.get(number, ())) for number, shard in enumerate(self.shards)]

    @property
    def num_samples(self) -> int:
        return sum(self.counts)

    @property
    def digest(self) -> str:
        """Identifies the samples and their order, wherever the shards lie."""
        lines = [f"{shard.count} {shard.size} {shard.sha256}\n" for shard in self.shards]
        lines += [
            f"{self.shards[number].sha256} without {' '.join(map(str, members.tolist()))}\n"
            for number, members in sorted(self._skipped.items())
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def parts(self, shard: int, member: int) -> list[Part]:
        """The allow-listed members of a sample."""
        return self._sidecar(shard).parts(self.number(shard, member))

    def key(self, shard: int, member: int) -> str:
        """The shard's own name for a sample."""
        return self._sidecar(shard).key(self.number(shard, member))

    def number(self, shard: int, member: int) -> int:
        """The number of a sample in its shard, counted with those that are left out."""
        skipped = self._skipped.get(shard)
        if skipped is None:
            return member
        before = skipped - np.arange(len(skipped))  # how many samples are kept before each that is not
        return member + int(np.searchsorted(before, member, side="right"))

    def _sidecar(self, shard: int) -> Sidecar:
        if shard not in self._sidecars:
            self._sidecars[shard] = Sidecar(self.shards[shard].sidecar)
        return self._sidecars[shard]


def open_index(urls: Sequence[str], index_dir: str | None = None, prefix: str = "data.", skip: Paths = None) -> Index:
    """The index of shards: from beside them, from the cache, or built now with a progress bar.

    Args:
        urls: the shards, as `source.expand` gives them.
        index_dir: where to keep what is built; None means `~/.cache/pretrain/index`. A folder named by the digest of
            the list is made in it.
        prefix: what keys begin with where a mistake's advice names them: `data.` in a run, nothing in a script.
        skip: lists of samples that are left out (`skip.py`).

    Raises:
        UserError: shards are damaged or cannot be read (all of them are named), or the cache cannot be written.
    """
    urls, known, foreign = _known(urls)
    if foreign:
        known.update(_cached(foreign, _cache(foreign, index_dir), prefix))
    shards = [known[url] for url in urls]
    return Index(shards, skipped_of(shards, skip))


def count_known(urls: Sequence[str], index_dir: str | None = None, skip: Paths = None) -> int | None:
    """How many samples shards have, None if one of them has no index yet; reads no shard."""
    _, known, foreign = _known(urls)
    sidecars = _sidecars(foreign, _cache(foreign, index_dir))
    found = [*known.values(), *(from_sidecar(url, sidecar) for url, sidecar in sidecars.items())]
    shards = [shard for shard in found if shard is not None]
    return Index(shards, skipped_of(shards, skip)).num_samples if len(shards) == len(found) else None


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Writes `index.json` for local shards whose sidecars stand beside them; it keeps those listed there before."""
    names = {shard.name for shard in shards}
    rows = [row for row in listed(folder)[0].values() if row["name"] not in names and (folder / row["name"]).is_file()]
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
    replace_file(folder / "index.json", json.dumps({"format": 1, "shards": rows}, indent=1).encode())


def owns_index(folder: Path) -> bool:
    """Whether the folder's `index.json`, if there is one, is of this format."""
    return listed(folder)[1]


def _known(urls: Sequence[str]) -> tuple[list[str], dict[str, Shard], list[str]]:
    """(the shards, local ones by their whole path; those that come with an index; the others)."""
    urls = [os.path.abspath(url) if source.is_local(url) else url for url in urls]
    known = {url: shard for url in urls if (shard := _beside(url)) is not None}
    _beside_rows.cache_clear()
    return urls, known, [url for url in urls if url not in known]


def _beside(url: str) -> Shard | None:
    """What the index beside a local shard says of it, if it is there and of this very file: size and second agree."""
    if not source.is_local(url):
        return None
    folder, name = Path(url).parent, Path(url).name
    row = _beside_rows(folder).get(name)
    if row is None or not (folder / row["sidecar"]).is_file():
        return None
    status = os.stat(url)
    if row["bytes"] != status.st_size or row["modified"] != int(status.st_mtime):
        return None
    return Shard(url, row["count"], row["bytes"], row["sha256"], folder / row["sidecar"])


@functools.cache
def _beside_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Read once for all shards of a folder."""
    return listed(folder)[0]


def listed(folder: Path) -> tuple[dict[str, dict[str, Any]], bool]:
    """(the shards that a folder's `index.json` lists, by name; whether it is of this format, or not there at all)."""
    try:
        content = json.loads((folder / "index.json").read_bytes())
        rows = {row["name"]: row for row in content["shards"] if row.keys() >= _ROW}
        return rows, content.get("format") == 1 and all(row.keys() >= _ROW for row in content["shards"])
    except FileNotFoundError:
        return {}, True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # somebody else's
        return {}, False


def _cached(urls: Sequence[str], folder: Path, prefix: str) -> dict[str, Shard]:
    """Shards from sidecars in `folder`; what is missing there, or older than its shard, is scanned."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise UserError(
            f"cannot write the index to `{folder}` ({failure.strerror}): name another folder by {prefix}index_dir"
        ) from None
    sidecars = _sidecars(urls, folder)
    shards = {url: shard for url in urls if (shard := from_sidecar(url, sidecars[url])) is not None}
    missing = [url for url in urls if url not in shards]
    if missing:
        for shard in _scan_all({url: sidecars[url] for url in missing}, prefix):
            shards[shard.url] = shard
    return shards


def _cache(foreign: Sequence[str], index_dir: str | None) -> Path:
    """Where the index of shards that come without one is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    digest = hashlib.sha256("\n".join(foreign).encode()).hexdigest()[:16]
    return Path(index_dir or os.path.join(cache, "pretrain", "index")) / digest


def _sidecars(urls: Sequence[str], folder: Path) -> dict[str, Path]:
    return {url: folder / f"{number:06d}-{_safe_name(url)}.idx" for number, url in enumerate(urls)}


def _safe_name(url: str) -> str:
    """The last component of a shard's address, as a file may be called."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", url.rstrip("/").rpartition("/")[2].partition("?")[0])


def _scan_all(sidecars: dict[str, Path], prefix: str) -> list[Shard]:
    """Scans shards several at a time, and reports all that are damaged in one message."""
    mistakes = []

    def attempt(url: str) -> Shard | None:
        try:
            return scan(url, sidecars[url], prefix)
        except UserError as mistake:
            mistakes.append(str(mistake))
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        scanned = list(
            tqdm(pool.map(attempt, sidecars), total=len(sidecars), desc="indexing shards", unit="shard", delay=1)
        )
    if mistakes:
        more = f"\nand {len(mistakes) - 10} more" if len(mistakes) > 10 else ""
        raise UserError("\n".join(sorted(mistakes)[:10]) + more)
    return [shard for shard in scanned if shard is not None]

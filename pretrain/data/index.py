"""The index of a set of shards: how many samples each has, its hash, and where every sample's members lie.

`index.json` lists the shards (name, count, bytes, sha256); beside it each shard has a binary sidecar,
`NAME.tar.idx`, with the offsets, which is memory-mapped when a sample of that shard is first asked for. Our tools
write both beside the shards. For foreign, read-only or remote shards they are built once into a cache folder, one
shard whole at a time, so that a build that was killed goes on where it stopped.

Only members with an allow-listed extension are recorded; nothing else in a shard, a pickle say, is ever read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
import re
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from pretrain.data import source
from pretrain.data.tar import DamagedTarError, Member, members
from pretrain.files import replace_file
from pretrain.records import UserError

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
LABELS = ("cls",)
EXTENSIONS = (*IMAGES, *LABELS)  # stored by their number: append only

_MAGIC = b"PRTIDX1\n"
_ROW = {"name", "count", "bytes", "sha256", "modified", "sidecar"}  # of a shard in index.json
_THREADS = 8


@dataclass(frozen=True)
class Shard:
    """A shard: where it is, and what its index says of it."""

    url: str
    count: int
    size: int
    sha256: str
    sidecar: Path

    @property
    def name(self) -> str:
        return self.url.rstrip("/").rpartition("/")[2]


class Part(NamedTuple):
    """A member of a sample: its extension and where its bytes are in the shard."""

    extension: str
    start: int
    stop: int


class AmbiguousSampleError(ValueError):
    """Which member of a sample is its image or its label cannot be told."""


class Index:
    """Shards with the places of all their samples. Small: a sidecar is mapped when it is first needed."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self._sidecars: dict[int, Sidecar] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "_sidecars": {}}

    @property
    def counts(self) -> list[int]:
        return [shard.count for shard in self.shards]

    @property
    def num_samples(self) -> int:
        return sum(self.counts)

    @property
    def digest(self) -> str:
        """Identifies the samples and their order, wherever the shards lie."""
        lines = [f"{shard.count} {shard.size} {shard.sha256}\n" for shard in self.shards]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def parts(self, shard: int, member: int) -> list[Part]:
        """The allow-listed members of a sample."""
        return self._sidecar(shard).parts(member)

    def key(self, shard: int, member: int) -> str:
        """The shard's own name for a sample."""
        return self._sidecar(shard).key(member)

    def _sidecar(self, shard: int) -> Sidecar:
        if shard not in self._sidecars:
            self._sidecars[shard] = Sidecar(self.shards[shard].sidecar)
        return self._sidecars[shard]


class Sidecar:
    """A memory-mapped sidecar file.

    Layout: magic, length of the header, the header (json, padded to 8 bytes), then little-endian int64 arrays: the
    end of each sample's members [n], the members' (extension, start, stop) [m, 3], the end of each key [n]; then
    the keys.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self._map[: len(_MAGIC)] != _MAGIC:
            raise UserError(f"`{path}` is no index of this version: delete it, and it is built again")
        (length,) = struct.unpack_from("<q", self._map, len(_MAGIC))
        at = len(_MAGIC) + 8
        self.header: dict[str, Any] = json.loads(self._map[at : at + length])
        count, parts = self.header["count"], self.header["members"]
        at += length
        self._ends = np.frombuffer(self._map, "<i8", count, at)
        self._members = np.frombuffer(self._map, "<i8", 3 * parts, at + 8 * count).reshape(parts, 3)
        self._key_ends = np.frombuffer(self._map, "<i8", count, at + 8 * count + 24 * parts)
        self._keys = at + 16 * count + 24 * parts

    def parts(self, member: int) -> list[Part]:
        first = int(self._ends[member - 1]) if member else 0
        rows = self._members[first : int(self._ends[member])].tolist()
        return [Part(EXTENSIONS[extension], start, stop) for extension, start, stop in rows]

    def key(self, member: int) -> str:
        first = int(self._key_ends[member - 1]) if member else 0
        raw = self._map[self._keys + first : self._keys + int(self._key_ends[member])]
        return raw.decode("utf-8", errors="replace")


def _safe_name(url: str) -> str:
    """The last component of a shard's address, as a file may be called."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", url.rstrip("/").rpartition("/")[2].partition("?")[0])


def scan(url: str, sidecar: Path) -> Shard:
    """Reads a shard once from end to end and writes its sidecar, atomically.

    Raises:
        UserError: the shard is damaged or cannot be read.
    """
    try:
        samples, header = source.retry(f"`{url}`", lambda: _scan(url))
        write_sidecar(sidecar, samples, header)
        return Shard(url, len(samples), header["bytes"], header["sha256"], sidecar)
    except source.ReadError as failure:
        raise UserError(str(failure)) from None
    except DamagedTarError as damage:
        raise UserError(f"`{url}` is no whole tar: {damage}. Write it again, or leave it out of the list") from None
    except AmbiguousSampleError as failure:
        raise UserError(f"`{url}`: {failure}") from None
    except OSError as failure:
        raise UserError(
            f"cannot write the index `{sidecar}`: {failure.strerror}; free some room, or name another folder "
            "by data.index_dir"
        ) from None


def _scan(url: str) -> tuple[list[tuple[str, list[tuple[int, int, int]]]], dict[str, Any]]:
    """(samples, header) of a shard's sidecar."""
    before = _modified(url)
    with source.stream(url) as read:
        digest, size = hashlib.sha256(), 0

        def hashed(count: int) -> bytes:
            nonlocal size
            data = read(count)
            digest.update(data)
            size += len(data)
            return data

        samples = group(members(hashed))
    return samples, {"url": url, "bytes": size, "sha256": digest.hexdigest(), "modified": before}


def group(found: Iterable[Member]) -> list[tuple[str, list[tuple[int, int, int]]]]:
    """Members as samples, by WebDataset's rule: neighbours whose names agree up to the first dot of the last component.

    What follows that dot is a member's extension. `a.jpg` beside `a.seg.jpg` is one sample whose image is the first;
    a `jpg` after further dots counts where it is the only image (`IMG.2020.jpg`).

    Returns:
        (key, members as (extension number, start, stop)) of every sample that has an image.

    Raises:
        AmbiguousSampleError: a sample has an extension twice, or several images none of which is plainly the one.
    """
    samples: list[tuple[str, list[tuple[str, Member]]]] = []
    for member in found:
        match = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]*)", member.name, flags=re.DOTALL)
        if match is None:
            continue
        if not samples or match[1] != samples[-1][0]:
            samples.append((match[1], []))
        samples[-1][1].append((match[2].lower(), member))
    chosen = [(key, _choose(key, parts)) for key, parts in samples]
    return [sample for sample in chosen if any(EXTENSIONS[part[0]] in IMAGES for part in sample[1])]


def _choose(key: str, members: Sequence[tuple[str, Member]]) -> list[tuple[int, int, int]]:
    """The members of a sample that are recorded."""
    chosen = [(extension, member) for extension, member in members if extension in EXTENSIONS]
    if not any(extension in IMAGES for extension, _ in chosen):
        last = [(extension.rpartition(".")[2], member) for extension, member in members]
        chosen += [(extension, member) for extension, member in last if extension in IMAGES]
        images = [extension for extension, _ in chosen if extension in IMAGES]
        ambiguous = len(images) > 1
    else:
        ambiguous = len({extension for extension, _ in chosen}) < len(chosen)
    if ambiguous:
        listed = ", ".join(f"`{member.name}`" for _, member in chosen[:4])
        raise AmbiguousSampleError(
            f"{listed} are one sample, since its key `{key}` ends at the first dot of a name, and which of them is "
            "meant cannot be told. Rename the members, or leave the shard out of the list"
        )
    return [(EXTENSIONS.index(extension), member.offset, member.offset + member.size) for extension, member in chosen]


def write_sidecar(
    path: Path, samples: Sequence[tuple[str, list[tuple[int, int, int]]]], header: dict[str, Any]
) -> None:
    """Writes a sidecar beside its place and renames it, so that one that is there is whole."""
    keys = [key.encode("utf-8", errors="replace") for key, _ in samples]
    rows = [row for _, parts in samples for row in parts]
    text = json.dumps(header | {"count": len(samples), "members": len(rows)}).encode()
    text += b" " * (-len(text) % 8)
    arrays = [
        np.cumsum([len(parts) for _, parts in samples]),
        np.array(rows).reshape(-1, 3),
        np.cumsum([len(key) for key in keys]),
    ]
    body = b"".join(array.astype("<i8").tobytes() for array in arrays)
    replace_file(path, _MAGIC + struct.pack("<q", len(text)) + text + body + b"".join(keys))


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Writes `index.json` for local shards whose sidecars stand beside them; it keeps those listed there before."""
    names = {shard.name for shard in shards}
    rows = [row for row in _rows_in(folder).values() if row["name"] not in names and (folder / row["name"]).is_file()]
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


def describe_shard(path: Path) -> Shard | None:
    """A local shard by the sidecar beside it, None if there is none or it is of another file."""
    url = str(path.absolute())
    return _from_sidecar(url, path.with_name(f"{path.name}.idx")) if path.is_file() else None


def open_index(urls: Sequence[str], index_dir: str | None = None) -> Index:
    """The index of shards: from beside them, from the cache, or built now with a progress bar.

    Args:
        urls: the shards, as `source.expand` gives them.
        index_dir: where to keep what is built; None means `~/.cache/pretrain/index`. A folder named by the digest of
            the list is made in it.

    Raises:
        UserError: shards are damaged or cannot be read (all of them are named), or the cache cannot be written.
    """
    urls, known, foreign = _known(urls)
    if foreign:
        known.update(_cached(foreign, _cache(foreign, index_dir)))
    return Index([known[url] for url in urls])


def count_known(urls: Sequence[str], index_dir: str | None = None) -> int | None:
    """How many samples shards have, None if one of them has no index yet; reads no shard."""
    _, known, foreign = _known(urls)
    sidecars = _sidecars(foreign, _cache(foreign, index_dir))
    shards = [*known.values(), *(_from_sidecar(url, sidecar) for url, sidecar in sidecars.items())]
    return sum(shard.count for shard in shards if shard) if all(shards) else None


def _known(urls: Sequence[str]) -> tuple[list[str], dict[str, Shard], list[str]]:
    """(the shards, local ones by their whole path; those that come with an index; the others)."""
    urls = [os.path.abspath(url) if source.is_local(url) else url for url in urls]
    known = {url: shard for url in urls if (shard := _beside(url)) is not None}
    _beside_rows.cache_clear()
    return urls, known, [url for url in urls if url not in known]


def _cache(foreign: Sequence[str], index_dir: str | None) -> Path:
    """Where the index of shards that come without one is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    digest = hashlib.sha256("\n".join(foreign).encode()).hexdigest()[:16]
    return Path(index_dir or os.path.join(cache, "pretrain", "index")) / digest


def _sidecars(urls: Sequence[str], folder: Path) -> dict[str, Path]:
    return {url: folder / f"{number:06d}-{_safe_name(url)}.idx" for number, url in enumerate(urls)}


@functools.cache
def _beside_rows(folder: Path) -> dict[str, dict[str, Any]]:
    return _rows_in(folder)


def owns_index(folder: Path) -> bool:
    """Whether the folder's `index.json`, if there is one, is of this format."""
    try:
        content = json.loads((folder / "index.json").read_bytes())
        return content.get("format") == 1 and all(row.keys() >= _ROW for row in content["shards"])
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _rows_in(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        rows = json.loads((folder / "index.json").read_bytes())["shards"]
        return {row["name"]: row for row in rows if row.keys() >= _ROW}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or somebody else's
        return {}


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


def _cached(urls: Sequence[str], folder: Path) -> dict[str, Shard]:
    """Shards from sidecars in `folder`; what is missing there, or older than its shard, is scanned."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise UserError(
            f"cannot write the index to `{folder}` ({failure.strerror}): name another folder by data.index_dir"
        ) from None
    sidecars = _sidecars(urls, folder)
    shards = {url: shard for url in urls if (shard := _from_sidecar(url, sidecars[url])) is not None}
    missing = [url for url in urls if url not in shards]
    if missing:
        for shard in _scan_all({url: sidecars[url] for url in missing}):
            shards[shard.url] = shard
    return shards


def _from_sidecar(url: str, sidecar: Path) -> Shard | None:
    if not sidecar.is_file():
        return None
    header = Sidecar(sidecar).header
    if header["url"] != url or header["modified"] != _modified(url):
        return None
    return Shard(url, header["count"], header["bytes"], header["sha256"], sidecar)


def _scan_all(sidecars: dict[str, Path]) -> list[Shard]:
    """Scans shards several at a time, and reports all that are damaged in one message."""
    mistakes = []

    def attempt(url: str) -> Shard | None:
        try:
            return scan(url, sidecars[url])
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


def _modified(url: str) -> int | None:
    """When a local shard was last written (ns), None for others."""
    return os.stat(url).st_mtime_ns if source.is_local(url) else None

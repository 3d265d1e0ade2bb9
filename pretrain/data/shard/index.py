"""The index of a set of shards: how many samples each has, its hash, and where every sample's members lie.

`listing.py` says what is known of shards without reading them, `crew.py` scans the others; each shard has its sidecar
(`sidecar.py`), which is mapped when a sample of that shard is asked for.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config.problem import UserError
from pretrain.data.shard import listing
from pretrain.data.shard.crew import scan_all
from pretrain.data.shard.listing import owns_index as owns_index
from pretrain.data.shard.listing import write_index as write_index
from pretrain.data.shard.sidecar import Part, Shard, Sidecar
from pretrain.data.shard.skip import Members, Paths, skipped_of
from pretrain.data.store import source
from pretrain.files import remove_leftovers

_MAPPED = 4096  # sidecars at a time: Linux lets a process map 65,530 files


class Index:
    """Shards with the places of all their samples, and how they are reached; for any number of threads.

    Small: the sidecars used last are mapped, and only they.

    Args:
        shards: the shards.
        access: to remote ones.
        skipped: samples that are left out: number of the shard → their numbers in it, sorted. The others count as if
            these were not there: `counts`, and the `member` that the methods take, are of those that are kept.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        access: source.Access | None = None,
        skipped: Mapping[int, Members] | None = None,
    ) -> None:
        self.shards = list(shards)
        self.skipped = dict(skipped or {})
        self.access = access or source.PLAIN
        self._lock = threading.Lock()  # guards the next
        self._sidecars: OrderedDict[int, Sidecar] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "access": self.access, "skipped": self.skipped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @classmethod
    def joined(cls, parts: Sequence[Index]) -> Index:
        """The shards of several end to end."""
        shards: list[Shard] = []
        skipped: dict[int, Members] = {}
        for part in parts:
            skipped |= {len(shards) + number: members for number, members in part.skipped.items()}
            shards += part.shards
        return cls(shards, parts[0].access, skipped)

    @cached_property
    def counts(self) -> list[int]:
        return [shard.count - len(self.skipped.get(number, ())) for number, shard in enumerate(self.shards)]

    @cached_property
    def names(self) -> list[str]:
        """What each shard is called in messages: its name, or as much of its address as tells it from all others."""
        paths = [re.sub(r"^[a-z0-9]+://[^/]*@|[?#].*$", "", shard.url).rstrip("/").split("/") for shard in self.shards]
        names = ["/".join(path[-1:]) for path in paths]
        for length in range(2, max(map(len, paths), default=1) + 1):
            often = Counter(names)
            if len(often) == len(names):
                break
            names = [
                "/".join(path[-length:]) if often[name] > 1 else name for path, name in zip(paths, names, strict=True)
            ]
        return names

    @cached_property
    def num_samples(self) -> int:
        return sum(self.counts)

    @cached_property
    def digest(self) -> str:
        """Identifies the samples and their order, wherever the shards lie."""
        lines = [f"{shard.count} {shard.size} {shard.sha256}\n" for shard in self.shards]
        lines += [
            f"{self.shards[number].sha256} without {' '.join(map(str, members.tolist()))}\n"
            for number, members in sorted(self.skipped.items())
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
        skipped = self.skipped.get(shard)
        if skipped is None:
            return member
        before = skipped - np.arange(len(skipped))  # how many samples are kept before each that is not
        return member + int(np.searchsorted(before, member, side="right"))

    def _sidecar(self, shard: int) -> Sidecar:
        with self._lock:
            found = self._sidecars.get(shard)
            if found is not None:
                self._sidecars.move_to_end(shard)
                return found
        found = self._map(self.shards[shard])
        with self._lock:
            self._sidecars[shard] = found
            while len(self._sidecars) > _MAPPED:
                self._sidecars.popitem(last=False)
        return found

    @staticmethod
    def _map(shard: Shard) -> Sidecar:
        try:
            sidecar = Sidecar(shard.sidecar)
        except FileNotFoundError:
            raise UserError(f"`{shard.sidecar}` is gone since the run began: start again, and it is built") from None
        if (sidecar.header["count"], sidecar.header["sha256"]) != (shard.count, shard.sha256):
            raise UserError(f"`{shard.sidecar}` is of another `{shard.name}`: delete it, and it is built again")
        return sidecar


def open_index(
    urls: Sequence[str],
    index_dir: str | None = None,
    prefix: str = "data.",
    access: source.Access | None = None,
    skip: Paths = None,
) -> Index:
    """The index of shards: from beside them, from the cache, or built now with a progress bar.

    Args:
        urls: the shards, as `source.expand` gives them.
        index_dir: where to keep what is built; None means `~/.cache/pretrain/index`.
        prefix: what keys begin with where a mistake's advice names them: `data.` in a run, nothing in a script.
        access: to remote shards.
        skip: lists of samples that are left out (`skip.py`).

    Raises:
        UserError: shards are damaged or cannot be read (all of them are named), or the cache cannot be written.
    """
    urls = listing.absolute(urls)
    known = listing.beside(urls)
    foreign = [url for url in urls if url not in known]
    if foreign:
        known.update(_cached(foreign, index_dir, prefix, access or source.PLAIN))
    shards = [known[url] for url in urls]
    return Index(shards, access, skipped_of(shards, skip))


def _cached(urls: Sequence[str], index_dir: str | None, prefix: str, access: source.Access) -> dict[str, Shard]:
    """Shards by the cache; those that it does not know are scanned."""
    folder = listing.cache_folder(index_dir)
    shards, from_table = listing.cached(urls, folder)
    if missing := [url for url in urls if url not in shards]:
        _make_writable(folder, prefix)
        remove_leftovers(folder)
        shards |= {shard.url: shard for shard in scan_all(listing.sidecars(missing, folder), prefix, access)}
    if not from_table:
        listing.write_table(urls, shards, folder)
    return shards


def _make_writable(folder: Path, prefix: str) -> None:
    """Finds out that an index cannot be kept before shards are read for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as failure:
        raise UserError(
            f"cannot write the index to `{folder}` ({failure.strerror}): name another folder by {prefix}index_dir"
        ) from None


def count_known(urls: Sequence[str], index_dir: str | None = None, skip: Paths = None) -> int | None:
    """How many samples shards have, None if one of them has no index yet; reads no shard."""
    urls = listing.absolute(urls)
    known = listing.beside(urls)
    foreign = [url for url in urls if url not in known]
    known |= listing.cached(foreign, listing.cache_folder(index_dir))[0]
    if len(known) < len(urls):
        return None
    shards = [known[url] for url in urls]
    return Index(shards, skipped=skipped_of(shards, skip)).num_samples

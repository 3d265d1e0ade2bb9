"""Writes copies of damaged shards that hold every sample which is whole, in front of a damage and behind it.

The shards themselves are never changed. A sample is kept with all its members, byte by byte, if its image can be
decoded and nothing says that it lost a member; what is left out is listed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

from tqdm import tqdm

from pretrain.data.pack.write import make_folder, write_tar
from pretrain.data.shard.index import write_index
from pretrain.data.shard.sidecar import Shard, scan
from pretrain.data.store import source
from pretrain.doctor.finding import Finding
from pretrain.doctor.parallel import ordered
from pretrain.doctor.shard import Content, is_unsafe, local_copy, read_member, read_shard, safe_key
from pretrain.doctor.verify import check_content
from pretrain.records import UserError

_FATAL = ("sample", "image")  # kinds of findings for which a sample is left out


@dataclass
class Repair:
    """What was done: which shards were written, how many samples they hold, and what is missing in them."""

    written: list[Shard] = field(default_factory=list)
    whole: int = 0  # shards in which nothing is wrong
    empty: list[str] = field(default_factory=list)  # shards of which no sample could be saved
    kept: int = 0
    lost: list[Finding] = field(default_factory=list)

    def summary(self) -> str:
        dropped = len({(one.shard, one.byte) for one in self.lost if one.kind in _FATAL})
        empty = f"; nothing could be saved of {', '.join(self.empty)}" if self.empty else ""
        return (
            f"{len(self.written)} repaired shards with {self.kept} samples written, {dropped} samples left out; "
            f"{self.whole} shards need no repair{empty}"
        )


def repair(urls: Sequence[str], out: Path, workers: int) -> Repair:
    """Writes a copy of every damaged shard to another folder under its name, and their index.

    Raises:
        UserError: the folder holds something that would be overwritten.
    """
    names = _names(urls, out)
    result = Repair()
    with ThreadPoolExecutor(workers) as pool, tqdm(urls, desc="repairing", unit="shard") as bar:
        for url in bar:
            try:
                with local_copy(url) as file:
                    _repair_shard(file, url, out / names[url], pool, result)
            except source.ReadError as failure:  # not what the copy cannot be written for
                result.lost.append(Finding(url, "read", str(failure)))
    if result.written:
        write_index(out, result.written)
    return result


def _names(urls: Sequence[str], out: Path) -> dict[str, str]:
    """What the copies are called."""
    names = {url: url.partition("?")[0].rstrip("/").rpartition("/")[2] for url in urls}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    there = [name for one in names.values() for name in (one, f"{one}.idx") if os.path.lexists(out / name)]
    if twice:
        raise UserError(f"out={out}: two shards are called {twice[0]}; repair them in two calls, to two folders")
    if there:
        raise UserError(f"out={out}: it already holds {there[0]}; choose another folder")
    make_folder(out)
    return names


def _repair_shard(file: IO[bytes], url: str, path: Path, pool: ThreadPoolExecutor, result: Repair) -> None:
    reading = read_shard(file)
    checked = list(ordered(pool, partial(check_content, file, url), reading.contents))
    lost = [one for found in checked for one in found if one.kind in _FATAL]
    names = [member.name for content in reading.contents for _, member in content.members]
    lost += [
        Finding(url, "name", f"`{member.name}` is part of no sample, and leads out of a folder", byte=member.offset)
        for member in reading.loose
        if is_unsafe(member.name)
    ]
    if not (lost or reading.damages or any(map(is_unsafe, names))):
        result.whole += 1
        return
    result.lost += [Finding(url, "tar", damage.cause, byte=damage.byte) for damage in reading.damages] + lost
    good = [
        content
        for content, found in zip(reading.contents, checked, strict=True)
        if not any(one.kind in _FATAL for one in found)
    ]
    if not any(content.number is not None for content in good):
        result.empty.append(url)
        return
    loose = [member for member in reading.loose if not is_unsafe(member.name)]
    write_tar(path, chain(_members(file, good), ((member.name, read_member(file, member)) for member in loose)))
    shard = scan(str(path.absolute()), path.with_name(f"{path.name}.idx"), "")
    result.written.append(shard)
    result.kept += shard.count


def _members(file: IO[bytes], contents: Sequence[Content]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of what is kept."""
    for content, key in zip(contents, distinct(content.key for content in contents), strict=True):
        for _, member in content.members:
            yield key + member.name[len(content.key) :], read_member(file, member)


def distinct(keys: Iterable[str]) -> Iterator[str]:
    """Keys that lead out of no folder, and of which no two neighbours are equal: they would be one sample."""
    before = ""
    for key in keys:
        safe = safe_key(key)
        before = f"{safe}-2" if safe == before else safe
        yield before

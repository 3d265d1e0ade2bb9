"""Samples that a run leaves out: lists that the shard doctor writes and the index honours.

A sample is named by the content of its shard (sha256) and its number there, so that a shard may be moved or renamed,
and a list says nothing of a shard that changed. Keys, names and reasons are for people.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain.config.problem import UserError
from pretrain.data.shard.sidecar import Shard
from pretrain.files import replace_file

log = logging.getLogger(__name__)

Paths = str | Sequence[str] | None
Members = NDArray[np.int64]  # sorted numbers of samples of a shard


class Skipped(NamedTuple):
    """A sample to be left out: its shard's hash and name, its number and key there, and why."""

    sha256: str
    shard: str
    member: int
    key: str
    reason: str


def write_skip_list(path: Path, skipped: Iterable[Skipped]) -> None:
    """Writes a list, one line a sample: `{"format": 1, "shards": {SHA256: {"name": …, "samples": […]}}}`."""
    names: dict[str, str] = {}
    rows: dict[str, list[str]] = {}
    for one in sorted(skipped, key=lambda one: (one.shard, one.sha256, one.member)):
        names[one.sha256] = one.shard
        row = {"member": one.member, "key": one.key, "reason": one.reason}
        rows.setdefault(one.sha256, []).append(json.dumps(row))
    shards = [
        f'"{sha256}": {{"name": {json.dumps(names[sha256])}, "samples": [\n  ' + ",\n  ".join(lines) + "\n ]}"
        for sha256, lines in rows.items()
    ]
    replace_file(path, ('{"format": 1, "shards": {\n ' + ",\n ".join(shards) + "\n}}\n").encode())


def mistakes(paths: Paths) -> list[str]:
    """What is wrong with lists, a line each that names the file; no shard is needed to find out."""
    lines = []
    for path in _each(paths):
        try:
            _read(path)
        except UserError as mistake:
            lines.append(str(mistake))
    return lines


def skipped_of(shards: Sequence[Shard], paths: Paths) -> dict[int, Members]:
    """The samples that lists leave out of shards: number of the shard → numbers of its samples.

    Raises:
        UserError: a list cannot be read, or names a sample that its shard does not have.
    """
    lists = {path: _read(path) for path in _each(paths)}
    skipped: dict[int, Members] = {}
    for number, shard in enumerate(shards):
        here = {path: found[shard.sha256] for path, found in lists.items() if shard.sha256 in found}
        for path, members in here.items():
            if members[-1] >= shard.count:
                raise UserError(
                    f"`{path}` leaves out sample {members[-1]} of `{shard.name}`, which has {shard.count}: "
                    "make the list again"
                )
        if here:
            skipped[number] = np.unique(np.concatenate(list(here.values())))
    _report(shards, lists, skipped)
    return skipped


def _report(shards: Sequence[Shard], lists: Mapping[str, dict[str, Members]], skipped: dict[int, Members]) -> None:
    there = {shard.sha256 for shard in shards}
    for path, found in lists.items():
        strange = len(found.keys() - there)
        if strange:
            log.info("%d of the %d shards that `%s` speaks of are not among these", strange, len(found), path)
    if lists:
        log.info("%d samples of %d shards are left out", sum(map(len, skipped.values())), len(skipped))


def _each(paths: Paths) -> list[str]:
    return [] if paths is None else [paths] if isinstance(paths, str) else list(paths)


def _read(path: str) -> dict[str, Members]:
    """Hash of a shard → its samples that are left out."""
    try:
        content = json.loads(Path(path).expanduser().read_bytes())
    except OSError as failure:
        raise UserError(f"`{path}` cannot be read ({failure.strerror})") from None
    except (ValueError, RecursionError):
        raise UserError(f"`{path}` is no skip list: it is not json") from None
    if not isinstance(content, dict) or content.get("format") != 1 or not isinstance(content.get("shards"), dict):
        raise UserError(
            f"`{path}` is no skip list of this version: write one by `pretrain shards action=verify … skip=FILE`"
        )
    found = {sha256: _members(path, sha256, entry) for sha256, entry in content["shards"].items()}
    return {sha256: members for sha256, members in found.items() if len(members)}


def _members(path: str, sha256: str, entry: Any) -> Members:
    try:
        numbers = [row["member"] for row in entry["samples"]]
    except (TypeError, KeyError):
        numbers = [None]
    if not re.fullmatch(r"[0-9a-f]{64}", sha256) or not all(type(one) is int and 0 <= one < 2**40 for one in numbers):
        raise UserError(f"`{path}` is no skip list: what it says of the shard {sha256[:16]} cannot be understood")
    return np.unique(np.array(numbers, dtype=np.int64))

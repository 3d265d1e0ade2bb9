"""Shards and their index, written in parallel; each appears under its name only when it is whole.

A run that is killed leaves no shard that looks whole and no `index.json`; the same call goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TypeVar

import webdataset
from tqdm import tqdm

from pretrain.data.shard.index import owns_index, write_index
from pretrain.data.shard.label import CLASSES
from pretrain.data.shard.sidecar import Shard, describe_shard, scan
from pretrain.files import remove_leftovers, replace_file, replacing
from pretrain.records import UserError

_THREADS = 8

T = TypeVar("T")


def write_sets(
    out: Path,
    sets: Mapping[str, Sequence[tuple[str, T]]],
    load: Callable[[T], dict[str, bytes]],
    samples_per_shard: int,
    classes: Sequence[str] = (),
    settings: object = None,
    threads: int = _THREADS,
) -> list[Shard]:
    """Writes `NAME-000000.tar`, `NAME-000001.tar`, … of each set, their sidecars and `index.json`, with a progress bar.

    None of the sets is listed there before all are: a call that was killed is started again.

    Args:
        out: the folder.
        sets: what the shards' names begin with → (key, what to load) of every sample, in their order.
        load: gives a sample's members, extension → bytes.
        samples_per_shard: of all shards of a set but the last, which may have fewer.
        classes: the name of each class number, for `classes.json`; one that is there already stays as it is.
        settings: what else decides what `load` gives, with a `repr` that says so: a killed call goes on for the same
            keys and settings alone.
        threads: shards that are written at once.

    Raises:
        UserError: the folder holds such shards already, not left by this very call.
    """
    marker = out / f".{'+'.join(sets)}.writing"
    digest = hashlib.sha256(repr((list(sets), samples_per_shard, settings)).encode())
    for keys in sets.values():
        for key in keys:
            digest.update(repr(key).encode())
    _claim(out, sets, marker, digest.hexdigest())
    if classes and not (out / CLASSES).exists():
        replace_file(out / CLASSES, json.dumps(list(classes), indent=1).encode())
    shards = []
    for name, keys in sets.items():
        shards += _write_set(out, name, keys, load, samples_per_shard, threads)
    write_index(out, shards)
    marker.unlink()
    return shards


def _write_set(
    out: Path,
    name: str,
    keys: Sequence[tuple[str, T]],
    load: Callable[[T], dict[str, bytes]],
    samples_per_shard: int,
    threads: int,
) -> list[Shard]:
    starts = range(0, len(keys), samples_per_shard)
    paths = [out / f"{name}-{number:06d}.tar" for number in range(len(starts))]

    def write(path: Path, start: int) -> Shard:
        done = describe_shard(path)
        if done is None:
            _write_tar(path, keys[start : start + samples_per_shard], load)
            done = scan(str(path.absolute()), path.with_name(f"{path.name}.idx"))
        bar.update(done.count)
        return done

    with (
        tqdm(total=len(keys), desc=f"writing {out / name}-*.tar", unit="sample") as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        return list(pool.map(write, paths, starts))


def _claim(out: Path, names: Iterable[str], marker: Path, digest: str) -> None:
    """Refuses a folder that holds shards of such a name, unless a killed call with the same samples left them."""
    make_folder(out)
    if marker.is_file() and marker.read_text(encoding="utf-8") == digest:
        return
    if found := sorted(path for name in names for path in out.glob(f"{name}-[0-9]*.tar")):
        raise UserError(
            f"out={out}: it already holds {len(found)} shards, first {found[0].name}; choose another folder"
        )
    replace_file(marker, digest.encode())


def make_folder(out: Path) -> None:
    """Makes the folder that shards and their index are written to, and takes out what killed calls were writing.

    Raises:
        UserError: it cannot be made, or somebody else's `index.json` is there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise UserError(f"out={out}: {failure.strerror}; choose another folder") from None
    if not owns_index(out):
        raise UserError(f"out={out}: its index.json is not one of ours and would be overwritten; choose another folder")
    remove_leftovers(out)


def _write_tar(path: Path, keys: Sequence[tuple[str, T]], load: Callable[[T], dict[str, bytes]]) -> None:
    with _appearing(path) as file, webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
        for key, item in keys:
            tar.write({"__key__": key, **load(item)})


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A tar of (name, bytes) in that order, which appears under its name when it is whole."""
    with _appearing(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o444
            tar.addfile(member, io.BytesIO(content))


def _appearing(path: Path) -> AbstractContextManager[IO[bytes]]:
    """A shard being written. It always has the same other name: what a killed call left is written over."""
    return replacing(path, path.with_name(f".{path.name}.tmp"))

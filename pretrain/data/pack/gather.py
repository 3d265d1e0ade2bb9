"""Image files as people have them: in folders, in a tar, in a folder of tars or in a tar of tars, each a class.

Nothing is unpacked: a tar's headers alone are read, and images later from where they lie in it. Names of members serve
as names, never as paths.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from pretrain.config.problem import UserError
from pretrain.data.shard.sample import IMAGES
from pretrain.data.shard.tar import DamagedTarError, Member, members

_THREADS = 8


class Picture(NamedTuple):
    """An image file: `size` bytes of `path` from `start` on, its own name, and its class, None if there is none."""

    path: str
    start: int
    size: int
    name: str
    label: str | None

    @property
    def extension(self) -> str:
        return _extension(self.name)

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0]

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            data = file.read(self.size)
        if len(data) < self.size:
            raise UserError(f"`{self.path}` became shorter while it was read")
        return data


class Gathered(NamedTuple):
    """Images in the order of their places, and how many other files lie among them."""

    pictures: list[Picture]
    others: int


class _Archive(NamedTuple):
    """A tar: `size` bytes of `path` from `start` on; all of it is of class `label`, unless that is None."""

    path: str
    start: int
    size: int
    label: str | None


def gather(place: Path) -> Gathered:
    """All images of a folder or an archive. Subfolders, and tars inside, are classes.

    Raises:
        UserError: it is not there, there are none, a tar is damaged, or there are both tars and other images.
    """
    if place.is_file():
        found = _in_tar(place)
    elif not place.is_dir():
        raise UserError(f"`{place}`: there is no such folder or archive")
    elif archives := sorted(path for path in place.glob("*.tar") if path.is_file()):
        if image := next((path for path in _files_in(place) if _extension(path.name) in IMAGES), None):
            raise UserError(
                f"`{place}`: it holds tars (`{archives[0].name}`) beside images (`{image.relative_to(place)}`), so "
                "that either could be the classes; move one or the other elsewhere"
            )
        found = _in_archives([_Archive(str(path), 0, path.stat().st_size, path.stem) for path in archives])
    else:
        found = _in_folder(place)
    if not found.pictures:
        raise UserError(f"`{place}`: there is no image in it ({', '.join(IMAGES)})")
    if len({picture.label is None for picture in found.pictures}) > 1:
        raise UserError(f"`{place}`: it holds images beside class folders; move them into a folder of their own")
    return found


def _in_folder(folder: Path) -> Gathered:
    files = sorted(_files_in(folder))
    images = [path for path in files if _extension(path.name) in IMAGES]
    pictures = [
        Picture(str(path), 0, path.stat().st_size, path.name, None if path.parent == folder else _class(folder, path))
        for path in images
    ]
    return Gathered(pictures, len(files) - len(images))


def _class(folder: Path, path: Path) -> str:
    return path.relative_to(folder).parts[0]


def _files_in(folder: Path) -> Iterator[Path]:
    """All files below a folder, through links to other folders (each visited once), without what is hidden."""
    visited = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(parent))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(parent, name)) not in visited
        )
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _in_tar(path: Path) -> Gathered:
    """Images of a tar, those inside the tars in it included."""
    whole = _Archive(str(path), 0, path.stat().st_size, None)
    found = _members(whole)
    archives = [
        _Archive(str(path), member.offset, member.size, _base(member.name).rpartition(".")[0])
        for member in found
        if _extension(member.name) == "tar"
    ]
    plain = _pictures(whole, [member for member in found if _extension(member.name) != "tar"])
    inside = _in_archives(archives) if archives else Gathered([], 0)
    return Gathered(plain.pictures + inside.pictures, plain.others + inside.others)


def _in_archives(archives: Sequence[_Archive]) -> Gathered:
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = pool.map(lambda archive: _pictures(archive, _members(archive)), archives)
        listed = list(tqdm(parts, total=len(archives), desc="looking into tars", unit="tar", delay=1))
    return Gathered([picture for part in listed for picture in part.pictures], sum(part.others for part in listed))


def _pictures(archive: _Archive, found: Sequence[Member]) -> Gathered:
    """Images among members. Where the archive is of no class, the folder that a member lies in is its class."""
    pictures = [
        Picture(
            archive.path,
            archive.start + member.offset,
            member.size,
            _base(member.name),
            archive.label or _parent(member),
        )
        for member in found
        if _extension(member.name) in IMAGES and not _base(member.name).startswith(".")
    ]
    return Gathered(pictures, len(found) - len(pictures))


def _members(archive: _Archive) -> list[Member]:
    """What lies where in a tar, counted from its start."""
    with open(archive.path, "rb", buffering=0) as file:
        if os.pread(file.fileno(), 2, archive.start) == b"\x1f\x8b":
            raise UserError(
                f"`{archive.path}` is compressed, so nothing can be found in it: unpack it with gunzip first"
            )
        try:
            return list(members(*_window(file.fileno(), archive.start, archive.start + archive.size)))
        except DamagedTarError as damage:
            inside = f", in the tar for `{archive.label}` at byte {archive.start}" if archive.start else ""
            raise UserError(f"`{archive.path}` is no whole tar{inside}: {damage}") from None


def _window(file: int, start: int, stop: int) -> tuple[Callable[[int], bytes], Callable[[int], None]]:
    """(reads the next of a file's bytes between two places, passes over some)."""
    at = start

    def read(size: int) -> bytes:
        nonlocal at
        data = os.pread(file, max(0, min(size, stop - at)), at)
        at += len(data)
        return data

    def seek(size: int) -> None:
        nonlocal at
        at = min(at + size, stop)

    return read, seek


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _parent(member: Member) -> str | None:
    """The folder that a member lies in, whatever way its name takes there."""
    folder = posixpath.basename(posixpath.normpath(member.name.rpartition("/")[0]))
    return None if folder in ("", ".", "..") else folder


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""

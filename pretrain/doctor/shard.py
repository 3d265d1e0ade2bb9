"""A shard read as far as it can be: behind a damage, from the next header on.

The index refuses a shard at its first damage (`pretrain/data/shard/tar.py`). Here what lies behind is found too:
headers of the ustar family name themselves and hold a checksum, so that the next whole one can be searched for, at any
byte. A member whose bytes hold such a header has lost some of its own, so that its size takes in what follows: it is
given up, and reading goes on inside. So is one that is not followed by zeros up to the next block. (No checksum is of
the members' bytes: an image in which some were changed is only found if it cannot be decoded, or by the index's hash.)
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from pretrain.data.shard.sample import EXTENSIONS, IMAGES, AmbiguousSampleError, choose, has_image, neighbours
from pretrain.data.shard.tar import DamagedTarError, Member, is_header, members
from pretrain.data.store import source
from pretrain.records import UserError

_BLOCK = 512
_MAGIC_AT = 257
_ARCHIVES = ("tar", "zip")  # members that may hold headers of their own


@dataclass(frozen=True)
class Damage:
    """Where an archive is not whole, and why; `member` is the one that it cost."""

    byte: int
    cause: str
    member: Member | None = None


@dataclass
class Content:
    """What a sample holds: all its members with their extensions, and which of them the index records.

    `number` is its number in the shard, None where it has no image; `trouble` says why it cannot be used.
    """

    key: str
    members: list[tuple[str, Member]]
    recorded: list[tuple[int, int, int]] = field(default_factory=list)
    number: int | None = None
    trouble: str = ""

    def image(self) -> tuple[str, Member] | None:
        """The extension and the member that is its image."""
        places = {start: number for number, start, _ in self.recorded}
        extensions = [(extension, member) for extension, member in self.members if member.offset in places]
        by_kind = {extension.rpartition(".")[2]: member for extension, member in extensions}
        return next(((kind, by_kind[kind]) for kind in IMAGES if kind in by_kind), None)

    def images(self) -> list[Member]:
        """All its recorded images: runs of colours take the first, and those of arrays the last."""
        places = {start for number, start, _ in self.recorded if EXTENSIONS[number] in IMAGES}
        return [member for _, member in self.members if member.offset in places]

    def member(self, extension: str) -> Member | None:
        return next((member for kind, member in self.members if kind == extension), None)


@dataclass(frozen=True)
class Reading:
    """A shard's hash and size, its samples in their order (others too, without a number), and its damages."""

    sha256: str
    size: int
    contents: list[Content]
    damages: list[Damage]
    loose: list[Member]  # members whose names make them part of no sample

    @property
    def count(self) -> int:
        """Samples, as the index counts them."""
        return sum(content.number is not None for content in self.contents)

    @property
    def is_whole(self) -> bool:
        """Whether an index of it can be made."""
        return not self.damages and not any(content.trouble for content in self.contents)


@contextmanager
def local_copy(url: str) -> Iterator[IO[bytes]]:
    """A shard as a file: a local one itself, another in an unnamed temporary file.

    Raises:
        source.ReadError: it cannot be read.
    """
    if source.is_local(url):
        with source.retry(f"`{url}`", lambda: open(url, "rb")) as file:
            yield file
        return
    with tempfile.TemporaryFile() as spool:
        source.retry(f"`{url}`", lambda: _copy(url, spool))
        yield spool


def _copy(url: str, file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()
    with source.stream(url) as read:
        while chunk := read(1 << 20):
            file.write(chunk)
    file.flush()


def read_shard(file: IO[bytes]) -> Reading:
    """Everything in a shard but its members' bytes."""
    size = os.fstat(file.fileno()).st_size
    sha256 = _hash(file)
    found, damages = _salvage(file, size)
    contents = [Content(key, parts) for key, parts in neighbours(found)]
    number = 0
    for content in contents:
        try:
            content.recorded = choose(content.key, content.members)
        except AmbiguousSampleError as failure:
            content.trouble = str(failure)
        if has_image((content.key, content.recorded)) or content.trouble:
            content.number, number = number, number + 1
    _mark_incomplete(contents, damages)
    _mark_scattered(contents)
    taken = {member for content in contents for _, member in content.members}
    return Reading(sha256, size, contents, damages, [member for member in found if member not in taken])


def _hash(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def read_member(file: IO[bytes], member: Member) -> bytes:
    """The bytes of a member, from any thread."""
    return os.pread(file.fileno(), member.size, member.offset)


def is_unsafe(name: str) -> bool:
    """Whether a careless unpacker would write a member of this name outside its folder."""
    return name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts


def safe_key(key: str) -> str:
    """A key without what would lead out of a folder."""
    parts = key.replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "sample"


def refuse_their_folder(urls: Sequence[str], out: Path) -> None:
    """Refuses to write to a folder that the shards themselves lie in.

    Raises:
        UserError: it is one of theirs.
    """
    place = os.path.realpath(out)
    for url in urls:
        if source.is_local(url) and os.path.realpath(os.path.dirname(url) or ".") == place:
            raise UserError(f"out={out}: `{os.path.basename(url)}` lies there itself; choose another folder")


def _salvage(file: IO[bytes], size: int) -> tuple[list[Member], list[Damage]]:
    """(the members, the damages)."""
    if not size:
        return [], [Damage(0, "it is empty")]
    found: list[Member] = []
    damages: list[Damage] = []
    zeros: list[int] = []
    start: int | None = 0
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while start is not None:
            data.seek(start)
            start = None
            try:
                for member in members(data.read, start=data.tell(), on_zeros=zeros.append):
                    inside = _header_inside(data, member)
                    if inside is not None:
                        cause = f"`{member.name}` has lost bytes: others begin in it"
                        damages.append(Damage(member.offset, cause, member))
                        start = inside
                        break
                    if member.offset + member.size > size:
                        continue  # cut off: the next header is missing
                    if not _is_padded(data, member):
                        cause = f"`{member.name}` is damaged: behind it are other bytes than zeros"
                        damages.append(Damage(member.offset, cause, member))
                    found.append(member)
            except DamagedTarError as damage:
                if all(damage.byte != one.byte for one in damages):
                    damages.append(Damage(damage.byte, str(damage)))
                start = _next_header(data, damage.byte + 1, size)
    damages += [Damage(byte, f"zeros at byte {byte}, where other readers stop, and more behind them") for byte in zeros]
    return found, damages


def _header_inside(data: mmap.mmap, member: Member) -> int | None:
    """Where another member begins in the bytes of one that cannot hold any, since it is no archive or is cut off."""
    end = member.offset + -(-member.size // _BLOCK) * _BLOCK
    is_archive = member.name.rpartition(".")[2].lower() in _ARCHIVES
    return None if is_archive and end <= len(data) else _next_header(data, member.offset, min(end, len(data)))


def _is_padded(data: mmap.mmap, member: Member) -> bool:
    """Whether zeros follow a member up to the next block."""
    end = member.offset + member.size
    return not any(data[end : end + -member.size % _BLOCK])


def _next_header(data: mmap.mmap, start: int, stop: int) -> int | None:
    """Where the first whole header begins in start … stop, at any byte."""
    at = data.find(b"ustar", start + _MAGIC_AT, stop + _MAGIC_AT)
    while at >= 0:
        begin = at - _MAGIC_AT
        if is_header(data[begin : begin + _BLOCK]):
            return begin
        at = data.find(b"ustar", at + 1, stop + _MAGIC_AT)
    return None


def _mark_incomplete(contents: list[Content], damages: list[Damage]) -> None:
    """Notes the samples that lost a member, or that lack one which the shard's samples usually have beside a damage."""
    usual = Counter(frozenset(extension for extension, _ in content.members) for content in contents).most_common(1)
    firsts = [content.members[0][1].offset for content in contents]
    for damage in damages:
        after = bisect_right(firsts, damage.byte)
        for content in contents[max(0, after - 1) : after + 1]:
            if content.number is None or content.trouble:
                continue
            missing = usual[0][0] - {extension for extension, _ in content.members}
            if damage.member is not None and content.key == next((key for key, _ in neighbours([damage.member])), None):
                content.trouble = f"`{damage.member.name}` of it is damaged"
            elif missing:
                content.trouble = f"beside a damage, and without {', '.join(sorted(missing))}: it may be in part lost"


def _mark_scattered(contents: list[Content]) -> None:
    """Notes pieces of one sample that do not stand together; whole samples may have the same key."""
    pieces: dict[str, list[Content]] = {}
    for content in contents:
        pieces.setdefault(content.key, []).append(content)
    for found in pieces.values():
        extensions = [extension for content in found for extension in {extension for extension, _ in content.members}]
        if len(found) > 1 and len(set(extensions)) == len(extensions):
            for content in found:
                names = ", ".join(
                    f"`{member.name}`" for one in found if one is not content for _, member in one.members
                )
                content.trouble = content.trouble or f"its members do not stand together: {names} are elsewhere"

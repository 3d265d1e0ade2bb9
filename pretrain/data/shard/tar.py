"""Where the members of a tar lie, found in one strict pass over its bytes.

Readers of WebDataset shards that skip what they do not understand lose samples without a word: a damaged header
ends the archive early. This one checks every header's checksum and the end-of-archive marker, and says at which byte
it is wrong; links and sparse files, which have no bytes of their own to point at, are refused by name. It reads ustar,
GNU long names and pax headers, from a stream that need not seek, and never looks inside a member.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_BLOCK = 512
_ZERO = bytes(_BLOCK)
_CHUNK = 1 << 20
_DIGITS = 20  # no number has more: 2^64 is of 20
_REGULAR = (b"0", b"\0", b"7")
_LINKS = (b"1", b"2")  # hard and symbolic
_WITHOUT_DATA = (b"3", b"4", b"5", b"6")  # devices, folders, pipes


class DamagedTarError(ValueError):
    """The archive is not whole; says what is wrong, and `byte` where: there the header at fault begins."""

    def __init__(self, message: str, byte: int) -> None:
        super().__init__(message)
        self.byte = byte


class Member(NamedTuple):
    """A regular file in the archive: its name and where its bytes are."""

    name: str
    offset: int
    size: int


class _Stream:
    """A stream that is read in large pieces, and counts what was taken of it."""

    def __init__(self, read: Callable[[int], bytes], seek: Callable[[int], None] | None, offset: int) -> None:
        self._read = read
        self._seek = seek
        self._size = _CHUNK if seek is None else _BLOCK
        self._piece = b""
        self._at = 0  # in the piece
        self.offset = offset

    def take(self, size: int) -> bytes:
        """Exactly `size` bytes, or fewer at the end."""
        data = self._piece[self._at : self._at + size]
        self._at += len(data)
        if len(data) < size:
            parts, left = [data], size - len(data)
            while left and self._next():
                parts.append(self._piece[:left])
                self._at = len(parts[-1])
                left -= self._at
            data = b"".join(parts)
        self.offset += len(data)
        return data

    def skip(self, size: int) -> bool:
        """Passes `size` bytes over; False if the stream ends before."""
        self.offset += size
        self._at += size
        while (beyond := self._at - len(self._piece)) > 0:
            if self._seek is not None:
                self._seek(beyond)
                self._piece, self._at = b"", 0
                return True  # beyond the end, the next header is missing
            if not self._next():
                return False
            self._at = beyond
        return True

    def _next(self) -> bool:
        """Goes on to the next piece, if there is one."""
        self._piece, self._at = self._read(self._size), 0
        return bool(self._piece)


def is_header(block: bytes) -> bool:
    """Whether 512 bytes are a header of the ustar family whose checksum is right."""
    try:
        return block[257:262] == b"ustar" and _size_in(block, 0) >= 0
    except DamagedTarError:
        return False


def members(
    read: Callable[[int], bytes],
    seek: Callable[[int], None] | None = None,
    start: int = 0,
    on_zeros: Callable[[int], None] | None = None,
) -> Iterator[Member]:
    """The regular files of a tar, in order.

    Args:
        read: gives at most so many of the next bytes, b"" at the end.
        seek: passes over so many bytes. If there is none all bytes are read; else only the headers.
        start: the byte of the archive, a header's first, that `read` begins with.
        on_zeros: is told at which byte blocks of zeros begin that a header follows: an end in the midst.

    Raises:
        DamagedTarError: a header's checksum is wrong, or the archive was cut off.
    """
    stream = _Stream(read, seek, start)
    long_name, pax, ended, end = None, {}, False, 0
    while header := stream.take(_BLOCK):
        at = stream.offset - len(header)
        if header == _ZERO:
            end = end if ended else at
            ended = True
            continue
        size = _size_in(header, at)
        if ended and on_zeros is not None:
            on_zeros(end)
        ended = False  # an archive may be followed by another
        kind = header[156:157]
        padded = -(-size // _BLOCK) * _BLOCK
        if kind in b"LKxg":
            body = stream.take(padded)
            if len(body) < padded:
                raise DamagedTarError(f"it was cut off inside the header at byte {at}", at)
            if kind == b"L":
                long_name = _text(body[:size])
            elif kind == b"x":
                pax = _pax_records(body[:size], at)
            continue
        if (stated := pax.get("size", "")).isdecimal():
            if len(stated) > _DIGITS:
                raise DamagedTarError(f"the extended header at byte {at} states a size of {len(stated)} digits", at)
            size = int(stated)
        padded = -(-size // _BLOCK) * _BLOCK
        name = pax.get("path") or long_name or _name_in(header)
        offset = stream.offset
        if kind in _LINKS:
            raise DamagedTarError(
                f"`{name}` is a link to another member (GNU tar: --hard-dereference --dereference)", at
            )
        if kind == b"S" or any(key.startswith("GNU.sparse.") for key in pax):
            raise DamagedTarError(f"`{name}` is stored as a sparse file (write the tar without --sparse)", at)
        if kind in _REGULAR:
            yield Member(name, offset, size)
        if kind not in _WITHOUT_DATA and not stream.skip(padded):
            raise DamagedTarError(f"it was cut off inside `{name}`, which begins at byte {at}", at)
        long_name, pax = None, {}
    if not ended:
        raise DamagedTarError(
            f"it ends at byte {stream.offset} without the end-of-archive marker, so it was probably cut off",
            stream.offset,
        )


def _size_in(header: bytes, at: int) -> int:
    """The size that a header states, once its checksum is found right."""
    if len(header) < _BLOCK:
        raise DamagedTarError(f"it was cut off inside the header at byte {at}", at)
    expected = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if _number(header[148:156]) != expected:
        raise DamagedTarError(f"the header at byte {at} is damaged (its checksum is wrong)", at)
    size = _number(header[124:136])
    if size is None or size < 0:
        raise DamagedTarError(f"the header at byte {at} states no size", at)
    return size


def _number(field: bytes) -> int | None:
    """An octal number, or a binary one as GNU writes those that are too large for it."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return None


def _name_in(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", errors="surrogateescape")


def _pax_records(body: bytes, at: int) -> dict[str, str]:
    """The `length key=value` records of a pax header."""
    records = {}
    while body:
        match = re.match(rb"(\d{1,%d}) ([^=]+)=" % _DIGITS, body)
        length = int(match[1]) if match else 0
        if match is None or not match.end() < length <= len(body):
            raise DamagedTarError(f"the extended header at byte {at} is damaged", at)
        value = body[match.end() : length - 1]
        records[_text(match[2])] = value.decode("utf-8", errors="surrogateescape")
        body = body[length:]
    return records

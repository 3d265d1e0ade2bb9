"""The sidecar of a shard, `NAME.tar.idx`: where every sample's members lie, found by reading the shard once.

It is a binary file that is memory-mapped; what it is of, and how many samples that has, stands in its header. Nothing
here imports torch before a sidecar is mapped: processes that only scan start in an instant.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from pretrain.config import secret
from pretrain.config.problem import UserError
from pretrain.data.shard.sample import EXTENSIONS, AmbiguousSampleError, Sample, group
from pretrain.data.shard.tar import DamagedTarError, members
from pretrain.data.store import source
from pretrain.files import replace_file

_MAGIC = b"PRTIDX2\n"
_START = 1024  # bytes, more than most headers have
_HEADER = {"url": str, "bytes": int, "sha256": str, "count": int, "members": int}


@dataclass(frozen=True)
class Shard:
    """A shard: where it is, and what its index says of it. Lists of thousands are made and sent to processes."""

    url: str
    count: int
    size: int
    sha256: str
    sidecar_file: str

    def __reduce__(self) -> tuple[Any, ...]:
        return Shard, (self.url, self.count, self.size, self.sha256, self.sidecar_file)

    @property
    def name(self) -> str:
        """The last part of its address, without signatures."""
        return secret.address(self.url).rstrip("/").rpartition("/")[2]

    @property
    def sidecar(self) -> Path:
        return Path(self.sidecar_file)


class Part(NamedTuple):
    """A member of a sample: its extension and where its bytes are in the shard."""

    extension: str
    start: int
    stop: int


class Sidecar:
    """A memory-mapped sidecar file. It holds no file descriptor, so thousands may be mapped.

    Layout: magic, length of the header, the header (json, padded to 8 bytes), then little-endian int64 arrays: the
    end of each sample's members [n], the members' (extension, start, stop) [m, 3], the end of each key [n]; then
    the keys.
    """

    def __init__(self, path: Path) -> None:
        import torch  # it closes the file that it maps; Python's own mmap keeps a descriptor for each

        header = read_header(path)
        if header is None:
            raise UserError(f"`{path}` is no index of this version: delete it, and it is built again")
        self.header, at = header
        count, parts = self.header["count"], self.header["members"]
        size = os.path.getsize(path)
        bytes_ = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
        self._ends = np.frombuffer(bytes_, "<i8", count, at)
        self._members = np.frombuffer(bytes_, "<i8", 3 * parts, at + 8 * count).reshape(parts, 3)
        self._key_ends = np.frombuffer(bytes_, "<i8", count, at + 8 * count + 24 * parts)
        self._keys = bytes_[at + 16 * count + 24 * parts :]

    def parts(self, member: int) -> list[Part]:
        first = int(self._ends[member - 1]) if member else 0
        rows = self._members[first : int(self._ends[member])].tolist()
        return [Part(EXTENSIONS[extension], start, stop) for extension, start, stop in rows]

    def key(self, member: int) -> str:
        first = int(self._key_ends[member - 1]) if member else 0
        return self._keys[first : int(self._key_ends[member])].tobytes().decode("utf-8", errors="replace")


def read_header(path: Path) -> tuple[dict[str, Any], int] | None:
    """A sidecar's header and where its arrays begin, None if it is of another version.

    Raises:
        UserError: it is damaged: the header says nothing, or not as many bytes follow as it says.
    """
    with open(path, "rb") as file:
        start, size = file.read(_START), os.fstat(file.fileno()).st_size
        if start[: len(_MAGIC)] != _MAGIC:
            return None
        try:
            (length,) = struct.unpack_from("<q", start, len(_MAGIC))
            at = len(_MAGIC) + 8
            if 0 < length <= size - at:
                text = start[at : at + length]
                header: dict[str, Any] = json.loads(text + file.read(length - len(text)))
                if _is_header(header) and _bytes_after(file, at + length, header) == size - at - length:
                    return header, at + length
        except (struct.error, ValueError, RecursionError):
            pass
    raise UserError(f"`{path}` is damaged: delete it, and it is built again")


def _is_header(header: Any) -> bool:
    return (
        isinstance(header, dict)
        and all(type(header.get(name)) is kind for name, kind in _HEADER.items())
        and (header.get("modified") is None or type(header["modified"]) is int)
        and header["count"] >= 0
        and header["members"] >= 0
    )


def _bytes_after(file: IO[bytes], at: int, header: dict[str, Any]) -> int:
    """How many bytes the arrays, which begin at byte `at`, and the keys have. The last number is that of the keys."""
    arrays = 16 * header["count"] + 24 * header["members"]
    if not header["count"]:
        return arrays
    last = os.pread(file.fileno(), 8, at + arrays - 8) if at + arrays < 1 << 63 else b""
    return arrays + int(struct.unpack("<q", last)[0])


def describe_shard(path: Path) -> Shard | None:
    """A local shard by the sidecar beside it, None if there is none or it is of another file."""
    url = str(path.absolute())
    return from_sidecar(url, path.with_name(f"{path.name}.idx")) if path.is_file() else None


def from_sidecar(url: str, sidecar: Path) -> Shard | None:
    """A shard by its sidecar, None if there is none, or it is damaged, of another version or of another file."""
    try:
        found = read_header(sidecar)
    except (FileNotFoundError, UserError):
        return None
    if found is None or found[0]["url"] != secret.address(url) or found[0]["modified"] != modified(url):
        return None
    header = found[0]
    return Shard(url, header["count"], header["bytes"], header["sha256"], str(sidecar))


def scan(url: str, sidecar: Path, prefix: str = "data.", access: source.Access | None = None) -> Shard:
    """Reads a shard once from end to end and writes its sidecar, atomically; the rest as for `source.expand`.

    Raises:
        UserError: the shard is damaged or cannot be read.
    """
    try:
        samples, header = source.retry(f"`{url}`", lambda: _scan(url, access or source.PLAIN))
        _write(sidecar, samples, header)
        return Shard(url, len(samples), header["bytes"], header["sha256"], str(sidecar))
    except source.ReadError as failure:
        raise UserError(str(failure)) from None
    except DamagedTarError as damage:
        raise UserError(f"`{url}` is no whole tar: {damage}. Write it again, or leave it out of the list") from None
    except AmbiguousSampleError as failure:
        raise UserError(f"`{url}`: {failure}") from None
    except OSError as failure:
        raise UserError(
            f"cannot write the index `{sidecar}`: {failure.strerror}; free some room, or name another folder "
            f"by {prefix}index_dir"
        ) from None


def _scan(url: str, access: source.Access) -> tuple[list[Sample], dict[str, Any]]:
    """(samples, header) of a shard's sidecar."""
    before = modified(url)
    with source.stream(url, access) as read:
        digest, size = hashlib.sha256(), 0

        def hashed(count: int) -> bytes:
            nonlocal size
            data = read(count)
            digest.update(data)
            size += len(data)
            return data

        samples = group(members(hashed))
    return samples, {"url": secret.address(url), "bytes": size, "sha256": digest.hexdigest(), "modified": before}


def _write(path: Path, samples: Sequence[Sample], header: dict[str, Any]) -> None:
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


def modified(url: str) -> int | None:
    """When a local shard was last written (ns), None for others."""
    return os.stat(url).st_mtime_ns if source.is_local(url) else None

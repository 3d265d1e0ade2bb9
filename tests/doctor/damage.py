"""Shards with something wrong in them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from tests.data.shards import image_bytes, write_tar


def header_of(path: Path, name: str) -> int:
    """The byte at which a member's header begins."""
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


def hit_header(path: Path, name: str) -> int:
    """Changes a byte of a member's header; returns where the header begins."""
    at = header_of(path, name)
    data = bytearray(path.read_bytes())
    data[at + 3] ^= 0xFF
    path.write_bytes(data)
    return at


def hit_image(path: Path, name: str) -> None:
    """Overwrites the beginning of a member's bytes."""
    at = header_of(path, name) + 512
    data = bytearray(path.read_bytes())
    data[at : at + 20] = b"x" * 20
    path.write_bytes(data)


def cut_out(path: Path, start: int, size: int) -> None:
    """Takes bytes out of a file."""
    data = path.read_bytes()
    path.write_bytes(data[:start] + data[start + size :])


def hostile(path: Path) -> Path:
    """A tar of which a careless program would write outside its folder."""
    names = ["../../evil.png", "/abs/evil.png", "a/../../up.png", "good.png"]
    write_tar(path, [(name, image_bytes(number)) for number, name in enumerate(names)])
    return path


def with_link(path: Path) -> Path:
    """A tar whose second sample is a symbolic link out of the archive."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, name in enumerate(["a.png", "b.png", "c.png"]):
            info = tarfile.TarInfo(name)
            if name == "b.png":
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
                continue
            info.size = len(image_bytes(number))
            tar.addfile(info, io.BytesIO(image_bytes(number)))
    return path

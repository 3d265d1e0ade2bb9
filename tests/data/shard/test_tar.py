"""The tar reader agrees with Python's, and no damage passes it by."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from pretrain.data.shard.tar import DamagedTarError, Member, members
from tests.data.shards import write_tar

MEMBERS = [("a.jpg", b""), ("b.jpg", b"x" * 700), ("c.cls", b"7"), ("d.jpg", b"y" * 512)]


def read(data: bytes) -> list[Member]:
    return list(members(io.BytesIO(data).read))


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_tarfile_finds_them(tmp_path: Path, tar_format: int) -> None:
    names = ["plain.jpg", "d" * 80 + "/" + "e" * 90 + ".jpg", "ü" * 40 + ".jpg", "deep/er/x.tar.jpg"]
    path = write_tar(tmp_path / "t.tar", [(name, name.encode() * 20) for name in names], tar_format)
    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar]
    data = path.read_bytes()
    found = read(data)
    assert found == expected
    for member in found:
        assert data[member.offset : member.offset + member.size] == member.name.encode() * 20


def test_folders_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("d")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
        info = tarfile.TarInfo("a.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert [member.name for member in read(path.read_bytes())] == ["a.jpg"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_refused_by_name(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("l.jpg")
        info.type, info.linkname = kind, "a.jpg"
        tar.addfile(info)
    with pytest.raises(DamagedTarError, match=r"`l\.jpg` is a link"):
        read(path.read_bytes())


@pytest.mark.parametrize("pax", ["0.0", "0.1", "1.0", ""])
def test_sparse_files_are_refused_by_name(tmp_path: Path, pax: str) -> None:
    with open(tmp_path / "s.jpg", "wb") as file:
        for block in range(0, 12, 2):
            file.seek(block << 20)
            file.write(b"x" * 4096)
    form = ["--format=pax", f"--sparse-version={pax}"] if pax else ["--format=gnu"]
    command = ["tar", "--sparse", *form, "-cf", str(tmp_path / "t.tar"), "-C", str(tmp_path), "s.jpg"]
    subprocess.run(command, check=True)
    with pytest.raises(DamagedTarError, match=r"s\.jpg` is stored as a sparse file"):
        read((tmp_path / "t.tar").read_bytes())


def test_archives_may_be_put_end_to_end(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "t.tar", MEMBERS).read_bytes()
    assert [member.name for member in read(one + one)] == [name for name, _ in MEMBERS] * 2


def damaged(kind: str, data: bytes) -> bytes:
    second = 512 + 0  # the header of b.jpg: a.jpg is empty
    return {
        "corrupt header": data[: second + 10] + b"\xff\xff\xff" + data[second + 13 :],
        "zeroed header": data[:second] + bytes(512) + data[second + 512 :],
        "cut between members": data[: second + 512 + 1024],
        "cut inside a member": data[: second + 512 + 100],
        "cut inside a header": data[: second + 100],
        "garbage": b"\x07garbage" * 500,
        "empty": b"",
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("corrupt header", "header at byte 512 is damaged"),
        ("zeroed header", "header at byte 1024 is damaged"),
        ("cut between members", "ends at byte 2048 without the end-of-archive marker"),
        ("cut inside a member", "cut off inside `b.jpg`"),
        ("cut inside a header", "cut off inside the header at byte 512"),
        ("garbage", "header at byte 0 is damaged"),
        ("empty", "ends at byte 0"),
    ],
)
def test_damage_is_found_and_placed(tmp_path: Path, kind: str, message: str) -> None:
    data = write_tar(tmp_path / "t.tar", MEMBERS).read_bytes()
    with pytest.raises(DamagedTarError, match=message):
        read(damaged(kind, data))


@pytest.mark.parametrize("record", [b"%d size=" % 5100 + b"9" * 5090 + b"\n", b"9" * 5000 + b" size=1\n"])
def test_numbers_of_thousands_of_digits_are_damage(record: bytes) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    data = info.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % 512)
    data += tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT) + bytes(1024)
    with pytest.raises(DamagedTarError, match="extended header"):
        read(data)

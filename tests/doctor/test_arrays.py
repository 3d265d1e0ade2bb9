"""What the doctor says of arrays: they are well, counted, copied; what is none is found, without a traceback."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.data.shard.index import open_index
from pretrain.doctor import image
from pretrain.doctor.repair import repair
from pretrain.doctor.shrink import shrink
from pretrain.doctor.stats import stats
from pretrain.doctor.verify import verify
from pretrain.view.pixels import DecodeError, Pixels
from tests.data.shards import image_bytes, write_tar
from tests.doctor.photos import encoded


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def bands() -> dict[str, bytes]:
    numbers = np.arange(6 * 20 * 30, dtype=np.uint16).reshape(6, 20, 30)
    return {
        "floats.tif": tiff(
            numbers.transpose(1, 2, 0).astype(np.float32), photometric="minisblack", planarconfig="contig"
        ),
        "planar.tiff": tiff(numbers, photometric="minisblack", planarconfig="separate"),
        "four.tif": tiff(numbers[:4].transpose(1, 2, 0), photometric="minisblack", planarconfig="contig"),
        "one.tif": tiff(numbers[0].astype(np.float32)),
        "array.npy": npy(numbers),
    }


def test_arrays_that_a_run_takes_are_well(tmp_path: Path) -> None:
    report = verify([str(write_tar(tmp_path / "t.tar", list(bands().items())))], 1)
    assert (report.samples, report.findings) == (5, [])


def test_arrays_that_are_damaged_are_found(tmp_path: Path) -> None:
    members = [(name, data[: len(data) - 500]) for name, data in bands().items()]
    members += [("zero.npy", npy(np.zeros((0, 5)))), ("objects.npy", npy(np.array([[None]])))]
    report = verify([str(write_tar(tmp_path / "t.tar", members))], 1)
    assert [(one.kind, one.key) for one in report.findings] == [
        ("image", name.partition(".")[0]) for name, _ in members
    ]


def test_what_cannot_be_checked_is_said_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(data: bytes) -> Pixels:
        raise DecodeError("unsupported", "pip install tifffile")

    monkeypatch.setattr(image, "decode_stored", without)
    members = [("a.npy", npy(np.zeros((3, 3)))), ("b.png", image_bytes(1)), ("c.png", b"none")]
    shard = str(write_tar(tmp_path / "t.tar", members))
    report = verify([shard], 1)
    assert [(one.kind, one.key) for one in report.findings] == [("unchecked", "a"), ("image", "c")]
    assert [one.key for one in report.skipped] == ["c"]
    assert repair([shard], tmp_path / "out", 1).kept == 2


def test_every_image_of_a_sample_is_checked(tmp_path: Path) -> None:
    """Runs of colours take the first, and those of arrays the last."""
    array = npy(np.zeros((8, 8), np.float32))
    members = [("a.jpg", image_bytes(1)), ("a.npy", array[:-9]), ("b.jpg", image_bytes(1)), ("b.npy", array)]
    (finding,) = verify([str(write_tar(tmp_path / "t.tar", members))], 1).findings
    assert finding.line().endswith("t.tar: `a`: `a.npy` cannot be decoded: " + finding.cause.rpartition(": ")[2])
    assert finding.kind == "image"


def test_arrays_that_are_none_are_counted_as_unreadable(tmp_path: Path) -> None:
    broken = bytearray(npy(np.zeros((3, 5))))
    broken[10:11] = b"("  # never closed: Python's tokenizer says so
    members = [("a.npy", npy(np.zeros((0, 5)))), ("b.npy", bytes(broken)), ("c.npy", npy(np.zeros((3, 5, 2))))]
    index = open_index([str(write_tar(tmp_path / "t.tar", members))], str(tmp_path / "i"))
    found = stats(index, 1)
    assert found.counts["unreadable"] == {"npy": 2}
    assert found.counts["mode"] == {"float64×2": 1}


def png_of_16_bits() -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes(range(240)) for _ in range(40))  # 40 pixels of 6 bytes
    header = struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colours_of_16_bits_are_not_made_a_jpeg_of_8() -> None:
    data = png_of_16_bits()
    assert image.pixels_of(data).shape == (40, 40, 3)
    assert shrink("png", data, 8, 90) == ("other", "png", data)


def test_an_image_too_long_for_a_jpeg_stays_as_it_is() -> None:
    data = encoded(Image.new("L", (80000, 300)), "PNG")
    assert shrink("png", data, 256, 90) == ("other", "png", data)

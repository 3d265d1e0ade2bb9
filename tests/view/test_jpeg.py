"""JPEGs: whole ones however they were written, and damaged ones never with parts made up."""

from __future__ import annotations

import base64
import io
import random
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from pretrain.view import jpeg
from pretrain.view.decode import decode
from pretrain.view.pixels import DecodeError

y, x = np.mgrid[0:64, 0:80]
PHOTO = np.stack([127 + 100 * np.sin(x / 20), 127 + 100 * np.cos(y / 17), 127 + 80 * np.sin((x + y) / 30)], 2)
PHOTO = PHOTO.astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, PHOTO.shape, dtype=np.uint8)
END = b"\xff\xd9"

# 8×8 pixels, red rising to the right by 30 and green downwards, arithmetic-coded, sequential and progressive: Pillow
# writes no such file.
ARITHMETIC = [
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
    "AQH/2wBDAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQH/yQARCAAIAAgDAREAAhEB"
    "AxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AN1j2BA6ovwv8uZ3gPJgYZWvC3m2VThThWy9EjjMymhb56cDLamumWI1C0CqzOtQ/9k=",
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
    "AQH/2wBDAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQH/ygARCAAIAAgDAREAAhEB"
    "AxEB/8wABgAQARD/2gAMAwEAAhADEAAAAf8AuuZyzsD/zAAEEAX/2gAIAQEAAQUCFnGmVv/MAAQRBf/aAAgBAwEBPwEWqcdARKjYfdRHVc+A/8wABBEF"
    "/9oACAECAQE/ATtEkAltJpGyB3z/zAAEEAX/2gAIAQEABj8CGeV/HHD/zAAEEAX/2gAIAQEAAT8hqQ4QQ7T/2gAMAwEAAgADAAAAEMD/zAAEEQX/2gAI"
    "AQMBAT8Q6yUoF4D/zAAEEQX/2gAIAQIBAT8Qpj6Feab/zAAEEAX/2gAIAQEAAT8Q0wjD8Pj/2Q==",
]


def encoded(image: np.ndarray | Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, "JPEG", **options)
    return file.getvalue()


def distance(pixels: np.ndarray, expected: np.ndarray) -> int:
    assert pixels.shape == expected.shape
    return int(np.abs(pixels.astype(int) - expected).max())


def kind_of(data: bytes) -> str:
    with pytest.raises(DecodeError) as refused:
        decode(data)
    return refused.value.kind


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 2}, {"keep_rgb": True}, {"optimize": True}],
    ids=str,
)
def test_every_way_of_coding_gives_the_picture(options: dict[str, object]) -> None:
    assert distance(decode(encoded(PHOTO, quality=95, **options)), PHOTO) <= 12


@pytest.mark.parametrize("text", ARITHMETIC, ids=["sequential", "progressive"])
def test_arithmetic_coding_is_read(text: str) -> None:
    row, column = np.mgrid[0:8, 0:8]
    expected = np.stack([30 * column, 30 * row, 0 * row + 128], 2)
    assert distance(decode(base64.b64decode(text)), expected) <= 1


def test_grey_is_repeated() -> None:
    gray = Image.fromarray(PHOTO).convert("L")
    pixels = decode(encoded(gray, quality=100))
    assert distance(pixels, np.asarray(gray)[..., None].repeat(3, 2)) <= 2
    assert np.array_equal(jpeg.decode(encoded(gray, quality=100), gray=True), pixels[..., :1])


def test_inks_are_inverted_where_adobe_wrote_them_and_only_there() -> None:
    """Pillow writes CMYK as Adobe does, 255 for no ink. Others, without Adobe's marker, write what the numbers mean."""
    inks = np.dstack([255 - PHOTO, np.full(PHOTO.shape[:2], 51, np.uint8)])  # a fifth of black over all
    data = encoded(Image.fromarray(inks, "CMYK"), quality=100)
    expected = np.round(PHOTO * 0.8).astype(int)
    assert distance(decode(data), expected) <= 3
    straight = encoded(Image.fromarray(255 - inks, "CMYK"), quality=100)  # what Pillow inverts is straight
    start = straight.index(b"\xff\xee")
    assert straight[start + 4 : start + 9] == b"Adobe"
    assert distance(decode(straight[:start] + straight[start + 16 :]), expected) <= 3


def test_ycck_is_turned_back_into_inks() -> None:
    """YCCK is YCbCr of the inverse of what the three inks' bytes are to be, beside black as it is."""
    ycc = np.asarray(Image.fromarray(255 - PHOTO).convert("YCbCr"))
    stored = np.dstack([ycc, np.full(ycc.shape[:2], 255, np.uint8)])
    data = bytearray(encoded(Image.fromarray(255 - stored, "CMYK"), quality=100))
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data[transform] = 2
    assert distance(decode(bytes(data)), PHOTO) <= 4


def test_what_changes_no_pixel_does_not_cost_the_sample() -> None:
    data = encoded(NOISE, quality=90)
    whole, scan, sizes = decode(data), data.index(b"\xff\xda"), data.index(b"\xff\xdb")
    strange = bytearray(data)
    strange[data.index(b"JFIF") + 5] = 7  # a version of JFIF that nobody knows
    harmless = {
        "bytes after the end": data + b"garbage" * 99,
        "zeros after the end": data + bytes(5000),
        "no end": data[:-2],
        "half an end": data[:-1],
        "bytes before the scan": data[:scan] + bytes(7) + data[scan:],
        "bytes before the tables": data[:sizes] + b"\x01\x02" + data[sizes:],
        "bytes before the end": data[:-2] + bytes(300) + END,
        "version": bytes(strange),
        "two at once": bytes(strange[:scan]) + bytes(7) + data[scan:-2],
        "padding": data[:scan] + b"\xff\xff" + data[scan:],
    }
    for name, one in harmless.items():
        assert np.array_equal(decode(one), whole), name


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"mode": "CMYK"}], ids=str)
def test_what_libjpeg_would_make_up_is_no_image(options: dict[str, object]) -> None:
    """A part with an end-of-image marker behind it: libjpeg shows grey below, and Pillow says nothing of it."""
    options = dict(options)
    data = encoded(Image.fromarray(NOISE).convert(str(options.pop("mode", "RGB"))), quality=90, **options)
    middle = len(data) // 2
    half = data[:middle] + END
    with Image.open(io.BytesIO(half)) as image:
        image.load()
    assert kind_of(half) == "damaged"
    assert kind_of(data[:middle]) == "truncated"
    assert (
        kind_of(data[: data.index(b"\xff\xda")] + bytes(7) + data[data.index(b"\xff\xda") : middle] + END) == "damaged"
    )
    assert kind_of(data[:middle] + bytes(9) + data[-2:] + data) in ("damaged", "truncated")  # another image behind it


def test_a_scan_that_is_missing_is_missed() -> None:
    """Cut between two scans of a progressive image, libjpeg has nothing to complain of; the picture is blurred."""
    data = encoded(NOISE, quality=90, progressive=True)
    starts = [place for place in range(len(data) - 1) if data[place : place + 2] == b"\xff\xda"]
    assert len(starts) > 5
    tables = data.rindex(b"\xff\xc4", 0, starts[4])
    assert starts[3] < tables
    assert kind_of(data[:tables]) == "truncated"


def test_headers_are_refused_for_what_is_wrong_with_them() -> None:
    data = encoded(PHOTO)
    frame = data.index(b"\xff\xc0")
    assert kind_of(data[:frame]) == "truncated"
    assert kind_of(data[:frame] + data[frame + 19 :]) == "damaged"  # no frame
    for end in range(2, frame):
        assert kind_of(data[:end]) == "truncated"
    huge = bytearray(data)
    huge[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    assert kind_of(bytes(huge)) == "too_large"


def exif_block(order: str, entries: list[tuple[int, int, int, bytes]], data: bytes = b"") -> bytes:
    """A TIFF block of a camera's notes: (tag, type, count, four bytes) each."""
    begin = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    rows = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    return begin + rows + struct.pack(f"{order}I", 0) + data


def pillows(data: bytes) -> int:
    with Image.open(io.BytesIO(data)) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jpeg.orientation_of(image)


def noted() -> list[bytes]:
    """Segments with notes of cameras: plain ones, odd ones, and ones with random damages."""
    blocks = []
    for order in "<>":
        for value in range(10):
            short = struct.pack(f"{order}HH", value, 7)
            blocks += [
                exif_block(order, [(0x0112, 3, 1, short)]),
                exif_block(order, [(0x010F, 2, 6, struct.pack(f"{order}I", 38)), (0x0112, 3, 1, short)], b"Maker\0"),
                exif_block(order, [(0x010F, 2, 6, struct.pack(f"{order}I", 999)), (0x0112, 3, 1, short)]),
                exif_block(order, [(0x0112, 4, 1, struct.pack(f"{order}I", value))]),
                exif_block(order, [(0x0112, 3, 2, short)]),
                exif_block(order, [(0x0112, 1, 1, bytes([value, 0, 0, 0]))]),
                exif_block(order, [(0x0111, 99, 7, bytes(4)), (0x0112, 3, 1, short)]),
                exif_block(order, [(0x0112, 3, 1, short), (0x0112, 3, 1, struct.pack(f"{order}HH", 3, 0))]),
                exif_block(order, [(0x0100, 4, 1, bytes(4))]),
            ]
    draw = random.Random(0)
    for block in [one for one in blocks for _ in range(4)]:
        broken = bytearray(block)
        for _ in range(draw.randint(1, 3)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        blocks += [bytes(broken), block[: draw.randrange(len(block))]]
    segments = [segment(0xE1, b"Exif\0\0" + block) for block in blocks]
    xmp = [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + text) for text in (
        b'<x tiff:Orientation="6"/>', b"<tiff:Orientation>3</tiff:Orientation>", b'<x tiff:Orientation="12"/>', b"<x/>"
    )]  # fmt: skip
    segments += [*xmp, b"", segments[3] + segments[8], b"".join(xmp)]
    segments += [one + xmp[0] for one in segments[:20]] + [xmp[1] + one for one in segments[:20]]
    return [*segments, segment(0xE1, b"Exif\0\0Exif\0\0" + blocks[54]), segment(0xE1, b"Exif\0\0")]


def test_orientations_are_those_that_pillow_reads() -> None:
    plain = encoded(PHOTO)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in noted():
            data = plain[:2] + one + plain[2:]
            seen.append(jpeg.read_header(data).orientation)
            assert seen[-1] == pillows(data), one
    assert set(range(1, 9)) <= set(seen)
    assert len(seen) > 1500


def test_plain_notes_are_read_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "A maker of cameras", 8
    data = encoded(PHOTO, exif=exif)

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("slow")

    monkeypatch.setattr(Image, "open", opened)
    assert jpeg.read_header(data).orientation == 8
    assert jpeg.read_header(encoded(PHOTO)).orientation == 1
    assert decode(data).shape == (80, 64, 3)

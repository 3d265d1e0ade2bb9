"""Bytes to pixels, for what people's shards hold."""

from __future__ import annotations

import contextlib
import io
import random
import re
import struct
import tracemalloc
import warnings
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.view import crop
from pretrain.view import pixels as module
from pretrain.view.decode import decode
from pretrain.view.pixels import DecodeError
from pretrain.view.spec import ViewSpec

PHOTO = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
LEVELS = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)  # of 16-bit grey, all upper and some lower bits
GRAY8 = np.repeat((LEVELS >> 8).astype(np.uint8)[..., None], 3, axis=2)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_come_back_exactly(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode(encoded(Image.fromarray(PHOTO), kind, **options)), PHOTO)


def test_jpeg_is_what_pillow_makes_of_it() -> None:
    data = encoded(Image.fromarray(PHOTO), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    pixels = decode(data)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= 2  # two builds of one library may round apart


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1", "RGBA", "LA", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    """A grey of 128 stays one, in 16 bits too; what is transparent shows white."""
    grey = Image.new("L", (6, 4), 128)
    image = {
        "I;16": lambda: Image.fromarray(np.full((4, 6), 128 * 257, dtype=np.uint16)),
        "RGBA": lambda: Image.new("RGBA", (6, 4), (10, 20, 30, 0)),
        "LA": lambda: Image.new("LA", (6, 4), (10, 0)),
        "CMYK": lambda: grey.convert("RGB").convert("CMYK"),
    }.get(mode, lambda: grey.convert(mode))()
    pixels = decode(encoded(image, "JPEG" if mode == "CMYK" else "PNG"))
    assert pixels.shape == (4, 6, 3)
    expected = {"RGBA": (255,), "LA": (255,), "1": (0, 255)}.get(mode, (127, 128, 129))
    assert np.isin(pixels, expected).all()


def near(pixels: np.ndarray, expected: np.ndarray, tolerance: int = 0) -> bool:
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    return bool(np.abs(pixels.astype(int) - expected).max() <= tolerance)


def test_alpha_and_transparent_colours_are_laid_over_white() -> None:
    alpha = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 64, np.uint8)])
    expected = np.round(PHOTO * (64 / 255) + 255 * (191 / 255)).astype(int)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert near(decode(encoded(Image.fromarray(alpha), kind, **options)), expected, 1)
    gray = decode(encoded(Image.fromarray(np.ascontiguousarray(alpha[..., 2:]), "LA"), "PNG"))
    assert near(gray, expected[..., 2:].repeat(3, 2), 1)
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    colours = np.array([[10, 20, 30], [200, 100, 50]])[[[0, 1], [1, 0]]]
    for kind in ("PNG", "GIF"):
        assert near(decode(encoded(palette, kind)), colours)
        colours[0, 1] = colours[1, 0] = 255
        assert near(decode(encoded(palette, kind, transparency=1)), colours)
        colours[0, 1] = colours[1, 0] = [200, 100, 50]
    keyed = PHOTO.copy()
    keyed[5, 7] = [1, 2, 3]
    expected = keyed.copy()
    expected[5, 7] = 255
    assert near(decode(encoded(Image.fromarray(keyed), "PNG", transparency=(1, 2, 3))), expected)


def test_of_16_bits_the_upper_8_are_taken() -> None:
    gray = Image.fromarray(LEVELS)
    for data in (encoded(gray, "PNG"), encoded(gray, "TIFF"), encoded(Image.fromarray(LEVELS.astype(">u2")), "TIFF")):
        assert near(decode(data), GRAY8)
    dark = encoded(gray, "TIFF", tiffinfo={262: 0})  # white is zero
    assert near(decode(dark), 255 - GRAY8)
    packed = b"\x00\x01\x23\x80\x0f\xff"  # four numbers of 12 bits
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    twelve = b"II*\0" + struct.pack("<I", 14) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert decode(twelve)[0, :, 0].tolist() == [0x00, 0x12, 0x80, 0xFF]
    rows = np.dstack([LEVELS, LEVELS[::-1], LEVELS.T])  # Pillow writes no 16-bit colours
    assert near(decode(png_of_16_bits(rows)), (rows >> 8).astype(np.uint8))


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """[H, W, 3] uint16 as a PNG, by hand."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return png([(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")])


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    whole = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def test_numbers_without_a_white_are_refused() -> None:
    for image in (Image.fromarray(LEVELS.astype(np.int32)), Image.fromarray(LEVELS.astype(np.float32) / 65535)):
        with pytest.raises(DecodeError, match="`full_scale`") as refused:
            decode(encoded(image, "TIFF"))
        assert refused.value.kind == "wrong_type"
    file = io.BytesIO()
    np.save(file, PHOTO)
    with pytest.raises(DecodeError, match="`pixels` of the view") as refused:
        decode(file.getvalue())
    assert refused.value.kind == "wrong_type"


def test_lab_and_ycbcr_become_rgb() -> None:
    lab = np.zeros((4, 4, 3), np.uint8)
    lab[..., 0] = 255  # the greatest lightness, and no colour
    assert near(decode(encoded(Image.fromarray(lab, "LAB"), "TIFF")), np.full((4, 4, 3), 255), 1)
    ycbcr = Image.fromarray(PHOTO).convert("YCbCr")
    assert near(decode(encoded(ycbcr, "TIFF")), np.asarray(ycbcr.convert("RGB")))


ORIENTED = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8))[..., None].repeat(3, 2)
UPRIGHT = {  # what a person sees of ORIENTED, by EXIF's figure of eight letters F
    1: ORIENTED,
    2: ORIENTED[:, ::-1],
    3: ORIENTED[::-1, ::-1],
    4: ORIENTED[::-1],
    5: ORIENTED.transpose(1, 0, 2),
    6: ORIENTED[::-1].transpose(1, 0, 2),
    7: ORIENTED[::-1, ::-1].transpose(1, 0, 2),
    8: ORIENTED[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("compression", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied_once(compression: str, orientation: int) -> None:
    kind, _, way = compression.partition(" ")
    options = {
        "WEBP": {"lossless": True},
        "TIFF": {"compression": f"tiff_{way}" if way else None},
        "JPEG": {"quality": 95},
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(ORIENTED), kind, exif=exif, **options.get(kind, {}))
    assert near(decode(data), UPRIGHT[orientation], 4 if kind == "JPEG" else 0)


def test_a_wrong_orientation_turns_nothing() -> None:
    for orientation in (0, 9, 255):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("JPEG", "PNG"):
            assert decode(encoded(Image.fromarray(PHOTO), kind, exif=exif)).shape == PHOTO.shape


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.fromarray(np.full((8, 9, 3), level, np.uint8)) for level in (40, 90, 200)]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert near(decode(data), np.full((8, 9, 3), 40))


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (2, 3)])
def test_images_of_any_shape_are_decoded_and_cut(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert near(decode(encoded(Image.fromarray(pixels), "PNG")), pixels)
    jpeg = decode(encoded(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0))
    assert jpeg.shape == pixels.shape
    spec = ViewSpec(8)
    draws = crop.draws(0, torch.arange(20), [spec])
    for box in (crop.central_box(*size, spec), *(crop.random_box(draw[0], *size, spec) for draw in draws)):
        assert 0 <= box.top <= box.top + box.height <= size[0]
        assert 0 <= box.left <= box.left + box.width <= size[1]
        assert crop.crop(jpeg, box, spec).shape == (3, 8, 8)


def test_what_the_bytes_are_decides_and_few_formats_are_tried() -> None:
    """A PostScript file would be given to a program; others have no place in shards."""
    postscript = encoded(Image.fromarray(PHOTO), "EPS")
    for data in (
        postscript,
        encoded(Image.fromarray(PHOTO), "PPM"),
        random.Random(0).randbytes(5000),
        b"<html>404</html>",
    ):
        with pytest.raises(DecodeError, match="no format that is read; it begins with b") as refused:
            decode(data)
        assert refused.value.kind == "not_an_image"


WAYS = [
    ("PNG", {}), ("WEBP", {"lossless": True}), ("WEBP", {"quality": 80}), ("GIF", {}), ("BMP", {}), ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", {"compression": "jpeg"}),
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"restart_marker_rows": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), WAYS, ids=lambda value: str(value))
def test_a_file_that_was_cut_off_is_no_image_or_all_of_it(kind: str, options: dict[str, object]) -> None:
    """Nowhere does a part of a picture pass, with grey in place of the rest."""
    y, x = np.mgrid[0:40, 0:52]
    smooth = np.stack([127 + 100 * np.sin(x / 9), 127 + 100 * np.cos(y / 7), 127 + 90 * np.sin((x + y) / 11)], 2)
    data = encoded(Image.fromarray(smooth.astype(np.uint8)), kind, **options)
    whole, causes = decode(data), []
    kinds: Counter[str] = Counter()
    for end in [*range(0, len(data) - 40, max(1, len(data) // 80)), *range(len(data) - 40, len(data))]:
        try:
            assert np.array_equal(decode(data[:end]), whole), end
        except DecodeError as failure:
            kinds[failure.kind] += 1
            causes.append(str(failure))
    assert kinds.keys() <= {"empty", "not_an_image", "truncated", "damaged"}
    assert kinds["truncated"] > 0.4 * kinds.total()
    assert kinds["empty"] == 1
    assert not any("object at 0x" in cause for cause in causes)  # a cause is the same in every run


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>404</html>",
        encoded(Image.fromarray(PHOTO), "JPEG")[:-200],
        encoded(Image.fromarray(PHOTO), "PNG")[:-200],
        b"\xff\xd8" + b"\0" * 100,
    ],
    ids=["empty", "html", "cut jpeg", "cut png", "no jpeg"],
)
def test_what_is_no_whole_image_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError, match=r"."):
        decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bombs_are_refused_from_their_header(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    data = encoded(Image.new("RGB", (400, 300)), kind)
    monkeypatch.setattr(module, "MAX_PIXELS", 100_000)
    with pytest.raises(DecodeError, match="300×400 pixels are more than") as refused:
        decode(data)
    assert refused.value.kind == "too_large"


def test_bombs_of_a_few_bytes_take_no_memory() -> None:
    side = 60_000
    picture = png(
        [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(10**6)))]
    )
    photo = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG"))
    frame = photo.index(b"\xff\xc0")
    photo[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    sheet = encoded(Image.new("RGB", (16, 16)), "TIFF")
    for tag in (256, 257):  # width and height, whatever their type
        entry = struct.pack("<H", tag) + rb"[\x03\x04]\0\x01\0{3}\x10\0{3}"
        sheet, count = re.subn(entry, struct.pack("<HHII", tag, 4, 1, side), sheet)
        assert count == 1
    tracemalloc.start()
    for data in (picture, bytes(photo), sheet):
        with warnings.catch_warnings(action="ignore"), pytest.raises(DecodeError) as refused:  # Pillow's own
            decode(data)
        assert refused.value.kind == "too_large"
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_pixels_can_be_written_to() -> None:
    for kind in ("JPEG", "PNG"):
        assert decode(encoded(Image.fromarray(PHOTO), kind)).flags.writeable


def test_a_broken_note_of_the_camera_does_not_cost_the_sample() -> None:
    """Orientation 6 beside a tag that Pillow reads but cannot write again; and a block that is cut off."""
    image, exif = Image.fromarray(PHOTO), Image.Exif()
    exif[0x0112] = 6
    exif[0x829A] = 0.5  # exposure time, a rational
    block = exif.tobytes()
    whole = encoded(image, "JPEG", exif=block)
    assert decode(whole).shape == (64, 48, 3)
    for position in range(len(block)):
        broken = bytearray(block)
        broken[position] ^= 0xFF
        assert decode(encoded(image, "JPEG", exif=bytes(broken))).shape in ((48, 64, 3), (64, 48, 3))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP", "BMP", "JPEG"])
def test_damaged_bytes_are_an_image_or_a_decode_error(kind: str) -> None:
    data, draw = encoded(Image.fromarray(PHOTO), kind), random.Random(0)
    for _ in range(200):
        broken = bytearray(data)
        for _ in range(draw.randint(1, 8)):
            broken[draw.randrange(min(len(broken), 400))] = draw.randrange(256)
        with contextlib.suppress(DecodeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert decode(bytes(broken)).shape[2] == 3

"""Bytes to pixels, for what people's shards hold."""

from __future__ import annotations

import contextlib
import io
import random
import warnings

import numpy as np
import pytest
from PIL import Image

from pretrain.view import pixels as module
from pretrain.view.decode import decode
from pretrain.view.pixels import DecodeError

PHOTO = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_cameras_orientation_is_applied(kind: str) -> None:
    image, exif = Image.fromarray(PHOTO), Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(image, kind, exif=exif)).shape == (64, 48, 3)
    exif[0x0112] = 1
    assert decode(encoded(image, kind, exif=exif)).shape == (48, 64, 3)


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
    with pytest.raises(DecodeError, match="300×400 pixels are more than"):
        decode(data)


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

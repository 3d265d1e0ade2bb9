"""Arrays of any channels and types: as they are, or refused for what they are."""

from __future__ import annotations

import io
import random
import re
import struct
import sys
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pretrain.view import pixels as module
from pretrain.view.array import decode_array
from pretrain.view.pixels import DecodeError
from tests.view.test_decode import encoded, png_of_16_bits

BANDS = np.random.default_rng(0).integers(0, 65536, (24, 30, 5), dtype=np.uint16)


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    gray = array.ndim == 2
    standard = {"photometric": "minisblack"} | ({} if gray else {"planarconfig": "contig"})
    tifffile.imwrite(file, array, **standard | options)
    return file.getvalue()


def refusal(data: bytes, channels: int = 5, dtype: str = "uint16") -> DecodeError:
    with pytest.raises(DecodeError) as refused:
        decode_array(data, channels, np.dtype(dtype))
    return refused.value


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32"])
def test_numpy_arrays_come_back_exactly(dtype: str) -> None:
    array = (BANDS >> 5).astype(dtype) - np.array(3, dtype)
    forms = [array, np.asfortranarray(array), array.astype(array.dtype.newbyteorder(">"))]
    for one in forms:
        for version in ((1, 0), (2, 0)):
            pixels = decode_array(npy(one, version), 5, np.dtype(dtype))
            assert pixels.dtype == dtype
            assert pixels.dtype.isnative
            assert np.array_equal(pixels, array)
            assert pixels.flags.writeable
            assert pixels.flags.c_contiguous
    flat = decode_array(npy(array[..., 0]), 1, np.dtype(dtype))
    assert np.array_equal(flat, array[..., :1])
    assert np.array_equal(decode_array(npy(array[..., 0]) + b"more", 1, np.dtype(dtype)), flat)


def test_arrays_of_other_numbers_are_refused_with_what_they_are() -> None:
    for array, kind, message in [
        (BANDS[..., :4], "wrong_channels", r"shape \(24, 30, 4\): 4 channels \(the last axis\), not 5"),
        (BANDS.transpose(2, 0, 1), "wrong_channels", r"shape \(5, 24, 30\): 30 channels"),
        (BANDS[..., 0], "wrong_channels", r"1 channels"),
        (BANDS[None], "wrong_channels", r"shape \(1, 24, 30, 5\) is no image \[H, W\] or \[H, W, C\]"),
        (BANDS.astype(np.float64), "wrong_type", "its numbers are float64, not uint16"),
        (BANDS.astype(np.int16), "wrong_type", "int16, not uint16"),
        (BANDS[:0], "damaged", "no pixel"),
        (np.zeros((2, 2), [("red", "u2")]), "wrong_channels", "1 channels"),
    ]:
        failure = refusal(npy(array))
        assert failure.kind == kind
        assert re.search(message, str(failure))
    named = np.zeros((2, 2, 5), [("red", "u2")])
    assert refusal(npy(named)).kind == "wrong_type"


class Evil:
    """What a pickle in an array would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (sys.exit, ("executed",))


def test_objects_in_an_array_stay_closed() -> None:
    file = io.BytesIO()
    array = np.empty((2, 3, 5), object)
    array[:] = Evil()
    np.save(file, array, allow_pickle=True)
    assert refusal(file.getvalue()).kind == "wrong_type"
    assert refusal(file.getvalue(), dtype="float32").kind == "wrong_type"


def test_an_arrays_header_is_judged_before_room_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def header(shape: str) -> bytes:
        text = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text

    assert refusal(header("(60000, 60000, 5)")).kind == "too_large"
    assert refusal(header("(8000, 8000, 5)")).kind == "truncated"
    assert refusal(header("(-4, -4, 5)") + bytes(1000)).kind in ("damaged", "truncated")
    assert refusal(header("(10**9,)")).kind in ("damaged", "wrong_channels")
    monkeypatch.setattr(module, "MAX_PIXELS", 500)
    assert refusal(npy(BANDS)).kind == "too_large"


def test_a_tiffs_header_is_judged_before_room_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile = pytest.importorskip("tifffile")
    data, wide = tiff(BANDS, compression="zlib"), tiff(BANDS.astype(np.float64), compression="zlib")

    def read(*_: object, **__: object) -> None:
        raise RuntimeError("read all the same")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", read)
    assert refusal(data).kind == "damaged"
    assert refusal(data, channels=4).kind == "wrong_channels"
    assert refusal(wide).kind == "wrong_type"
    monkeypatch.setattr(module, "MAX_PIXELS", 500)
    assert refusal(data).kind == "too_large"


def test_what_is_not_finite_is_refused() -> None:
    values = (BANDS / 65535).astype(np.float32)
    for bad in (np.nan, np.inf):
        values[3, 4, 1] = bad
        assert refusal(npy(values), dtype="float32").kind == "not_finite"


@pytest.mark.parametrize("size", [0, 3, 9, 50, 200, -1])
def test_arrays_that_were_cut_off_are_truncated(size: int) -> None:
    failure = refusal(npy(BANDS)[:size])
    assert failure.kind == {0: "empty", 3: "not_an_image"}.get(size, "truncated")


def test_common_formats_give_their_plain_numbers() -> None:
    """8-bit ones of all formats, and 16-bit grey; what Pillow would cut to 8 bits is refused."""
    gray, colours = np.ascontiguousarray(BANDS[..., 0] >> 8).astype(np.uint8), (BANDS[..., :4] >> 8).astype(np.uint8)
    for kind in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(decode_array(encoded(Image.fromarray(gray), kind), 1, np.dtype("u1"))[..., 0], gray)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(decode_array(encoded(Image.fromarray(colours), kind), 4, np.dtype("u1")), colours)
        wide = encoded(Image.fromarray(BANDS[..., 0]), kind)
        assert np.array_equal(decode_array(wide, 1, np.dtype("u2"))[..., 0], BANDS[..., 0])
    jpeg = decode_array(encoded(Image.fromarray(gray), "JPEG", quality=100), 1, np.dtype("u1"))
    assert jpeg.shape == (24, 30, 1)
    assert np.abs(jpeg[..., 0].astype(int) - gray).max() <= 3
    photo = decode_array(encoded(Image.fromarray(colours[..., :3]), "JPEG", quality=100), 3, np.dtype("u1"))
    assert photo.shape == (24, 30, 3)
    for name in ("uint8", "uint16"):
        assert refusal(png_of_16_bits(BANDS[..., :3]), 3, name).kind == "unsupported"
    assert refusal(encoded(Image.fromarray(gray).convert("P"), "PNG"), 1, "uint8").kind == "wrong_type"
    cut = encoded(Image.fromarray(gray), "JPEG", quality=100)
    assert refusal(cut[: len(cut) // 2], 1, "uint8").kind == "truncated"


TIFFS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "5 channels": (BANDS, {}),
    "5 channels deflate": (BANDS, {"compression": "zlib", "predictor": True}),
    "5 channels lzw": (BANDS, {"compression": "lzw"}),
    "5 channels in planes": (BANDS, {"planarconfig": "separate"}),
    "5 channels in tiles": (BANDS, {"planarconfig": "separate", "tile": (16, 16), "compression": "zlib"}),
    "4 channels": (BANDS[..., :4], {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    "colours": (BANDS[..., :3], {"photometric": "rgb"}),
    "big": (BANDS[..., :3], {"photometric": "rgb", "bigtiff": True}),
    "other end first": (BANDS, {"byteorder": ">"}),
    "signed": (BANDS.astype(np.int16), {}),
    "signed grey": (BANDS[..., :1].astype(np.int16), {}),
    "floats": ((BANDS / 65535).astype(np.float32), {}),
    "grey floats": ((BANDS[..., :1] / 65535).astype(np.float32), {}),
    "half floats": ((BANDS / 65535).astype(np.float16), {}),
    "8 bits": ((BANDS >> 8).astype(np.uint8), {}),
    "8 bits and one more": ((BANDS[..., :4] >> 8).astype(np.uint8), {"photometric": "rgb", "extrasamples": [0]}),
}


@pytest.mark.parametrize("name", TIFFS)
def test_tiffs_come_back_exactly(name: str) -> None:
    array, options = TIFFS[name]
    planes = options.get("planarconfig") == "separate"
    shown = np.ascontiguousarray(array.transpose(2, 0, 1)) if planes else array
    data = tiff(shown[..., 0] if array.shape[2] == 1 else shown, **options)
    channels = array.shape[2]
    pixels = decode_array(data, channels, array.dtype)
    assert pixels.dtype == array.dtype
    assert np.array_equal(pixels, array)
    assert refusal(data, channels + 1, str(array.dtype)).kind == "wrong_channels"
    assert refusal(data, channels, "float64").kind == "wrong_type"


def test_of_a_tiff_the_first_page_is_taken_and_it_is_turned() -> None:
    pages = np.stack([BANDS[..., :3], BANDS[..., 2:]])
    data = tiff(pages, photometric="rgb")
    assert np.array_equal(decode_array(data, 3, np.dtype("u2")), BANDS[..., :3])
    turned = tiff(BANDS, extratags=[(274, 3, 1, 6, True)])
    assert np.array_equal(decode_array(turned, 5, np.dtype("u2")), np.rot90(BANDS, -1))


def test_without_tifffile_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    five, gray = tiff(BANDS), encoded(Image.fromarray(BANDS[..., 0]), "TIFF")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    failure = refusal(five)
    assert failure.kind == "unsupported"
    assert "pip install tifffile imagecodecs" in str(failure)
    assert np.array_equal(decode_array(gray, 1, np.dtype("u2"))[..., 0], BANDS[..., 0])  # Pillow is enough
    assert refusal(five[: len(five) // 2]).kind in ("truncated", "unsupported")


@pytest.mark.parametrize("name", ["npy", "5 channels", "5 channels lzw", "5 channels in tiles", "floats"])
def test_damaged_bytes_are_an_array_or_a_decode_error(name: str, caplog: pytest.LogCaptureFixture) -> None:
    array, options = TIFFS.get(name, (BANDS, {}))
    planes = options.get("planarconfig") == "separate"
    shown = np.ascontiguousarray(array.transpose(2, 0, 1)) if planes else array
    data, draw = npy(array) if name == "npy" else tiff(shown, **options), random.Random(0)
    kinds: Counter[str] = Counter()
    for number in range(120):
        broken = bytearray(data)
        for _ in range(draw.randint(1, 6)):
            broken[draw.randrange(min(len(broken), 400))] = draw.randrange(256)
        cut = len(broken) if number % 2 else draw.randrange(len(broken))
        try:
            with warnings.catch_warnings(action="ignore"):
                assert decode_array(bytes(broken[:cut]), 5, array.dtype).shape[2] == 5
        except DecodeError as failure:
            kinds[failure.kind] += 1
    assert kinds["truncated"] > 20
    assert kinds["damaged"] > 5

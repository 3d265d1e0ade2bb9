"""Images whose numbers are kept as they are: of any number of channels, 8 or 16 bits, floats.

They come as NumPy's `.npy` ([H, W] or [H, W, C]), as TIFF, or in any format whose images are plain numbers. A header is
judged before room is made for what it states, and nothing in a file is executed.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Sequence
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from pretrain.view import jpeg
from pretrain.view.decode import failures, is_tiff, opened
from pretrain.view.pixels import DecodeError, Pixels, refuse_bombs, turned

_PLAIN = {  # Pillow's modes whose numbers are those of the file, and the types that they hold exactly
    "L": ("uint8",), "LA": ("uint8",), "RGB": ("uint8",), "RGBA": ("uint8",), "CMYK": ("uint8",),
    "I;16": ("uint16",), "I;16B": ("uint16",), "I": ("int16", "int32"), "F": ("float32",),
}  # fmt: skip
_SAMPLES, _BITS, _FORMAT, _ORIENTATION = 277, 258, 339, 274  # TIFF's tags
_KINDS = {1: "uint", 2: "int", 3: "float"}  # values of TIFF's sample format
_DAMAGES = (  # what NumPy and tifffile raise for bytes that are none of theirs
    *jpeg.DAMAGES, RuntimeError, ArithmeticError, AssertionError, AttributeError, MemoryError, zlib.error, TokenError,
)  # fmt: skip
_ADVICE = "tifffile reads more of them: pip install tifffile imagecodecs"

DType = np.dtype[Any]


def decode_array(data: bytes | memoryview, channels: int, dtype: DType) -> Pixels:
    """Bytes of a file → [H, W, channels] of `dtype`, the right way up.

    Raises:
        DecodeError: truncated, damaged, too large, no image at all, or one of other numbers.
    """
    data = bytes(data)
    if data.startswith(npy.MAGIC_PREFIX):
        pixels = _of_npy(data, channels, dtype)
    elif jpeg.is_jpeg(data):
        pixels = _of_jpeg(data)
    elif is_tiff(data):
        pixels = _of_tiff(data, channels, dtype)
    else:
        with opened(data) as image:
            pixels = turned(_of_pillow(image), jpeg.orientation_of(image))
    return finished(pixels, channels, dtype)


def finished(pixels: Pixels, channels: int, dtype: DType) -> Pixels:
    """An array [H, W] or [H, W, C] as an image [H, W, channels] of `dtype`, which it must be already.

    Raises:
        DecodeError: it is of other numbers, or too large.
    """
    _refuse_others(pixels.shape, pixels.dtype, channels, dtype)
    pixels = np.array(pixels, dtype, order="C").reshape(*pixels.shape[:2], channels)
    if dtype.kind == "f" and not np.isfinite(pixels).all():
        raise DecodeError("not_finite", "some of its numbers are nan or infinite")
    return pixels


def _refuse_others(shape: Sequence[int], found: DType, channels: int | None, dtype: DType | None) -> None:
    """Raises DecodeError unless an array is an image of so many numbers of such a type a pixel (None: of any)."""
    if len(shape) not in (2, 3):
        raise DecodeError("wrong_channels", f"an array of shape {tuple(shape)} is no image [H, W] or [H, W, C]")
    height, width, there = (*shape, 1)[:3]
    if channels is not None and there != channels:
        raise DecodeError("wrong_channels", f"shape {tuple(shape)}: {there} channels (the last axis), not {channels}")
    if dtype is not None and found.newbyteorder("=") != dtype:
        raise DecodeError("wrong_type", f"its numbers are {found}, not {dtype}")
    if min(shape) < 1:  # a header may say what it likes
        raise DecodeError("damaged", f"shape {tuple(shape)}: there is no pixel in it")
    refuse_bombs(height, width)


def decode_stored(data: bytes | memoryview) -> Pixels:
    """Bytes of a file → its numbers as they are, [H, W] or [H, W, C], of whatever type.

    Raises:
        DecodeError: truncated, damaged, too large, or no image.
    """
    data = bytes(data)
    if data.startswith(npy.MAGIC_PREFIX):
        shape, by_columns, found, start = read_npy_header(data)
        return _npy_numbers(data, shape, by_columns, found, start)
    if is_tiff(data):
        return _of_tiff(data, None, None)
    with opened(data) as image:
        return turned(_of_pillow(image), jpeg.orientation_of(image))


def _of_npy(data: bytes, channels: int, dtype: DType) -> Pixels:
    shape, by_columns, found, start = _read_npy_header(data)
    _refuse_others(shape, found, channels, dtype)  # before what may be objects, or huge, is touched
    return _npy_numbers(data, shape, by_columns, found, start)


def read_npy_header(data: bytes) -> tuple[tuple[int, ...], bool, DType, int]:
    """The same as `_read_npy_header`, of an image of plain numbers.

    Raises:
        DecodeError: truncated, damaged, too large, or no image.
    """
    header = _read_npy_header(data)
    shape, _, found, _ = header
    _refuse_others(shape, found, None, None)
    if found.kind not in "buif":
        raise DecodeError("wrong_type", f"its elements are {found}, no plain numbers")
    return header


def _read_npy_header(data: bytes) -> tuple[tuple[int, ...], bool, DType, int]:
    """(shape, whether columns come first, type, where the numbers begin)."""
    file = io.BytesIO(data)
    try:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
        shape, by_columns, found = read(file)
    except _DAMAGES as failure:
        truncated = len(data) < 10 or len(data) < 10 + int(struct.unpack_from("<H", data, 8)[0])
        reason = (str(failure) or type(failure).__name__).splitlines()[0]
        raise DecodeError("truncated" if truncated else "damaged", f"its NumPy header: {reason}") from None
    return shape, by_columns, found, file.tell()


def _npy_numbers(data: bytes, shape: tuple[int, ...], by_columns: bool, found: DType, start: int) -> Pixels:
    if len(data) - start < math.prod(shape) * found.itemsize:
        raise DecodeError("truncated", f"its header states {tuple(shape)} numbers of {found}, and it ends before")
    flat = np.frombuffer(data, found, math.prod(shape), start)
    return flat.reshape(shape, order="F" if by_columns else "C")


def _of_jpeg(data: bytes) -> Pixels:
    try:
        return jpeg.decode(data, gray=True)
    except DecodeError:
        raise
    except ValueError as failure:
        raise DecodeError("damaged", str(failure)) from None


def array_of(image: Image.Image, channels: int, dtype: DType) -> Pixels:
    """An image that Pillow has opened → [H, W, channels] of `dtype`, the right way up.

    Raises:
        DecodeError: truncated, damaged, too large, or of other numbers.
    """
    with failures():
        refuse_bombs(image.height, image.width)
        pixels = _of_pillow(image)  # which turns a TIFF
        upright = pixels if image.format == "TIFF" else turned(pixels, jpeg.orientation_of(image))
        return finished(upright, channels, dtype)


def _of_pillow(image: Image.Image) -> Pixels:
    if loses_bits(image):
        raise DecodeError("unsupported", "Pillow reads 8 of the 16 bits of a PNG's colours: store it as .npy or TIFF")
    if image.mode not in _PLAIN:
        raise DecodeError("wrong_type", f"an image of Pillow's mode {image.mode} is no array of plain numbers")
    return np.asarray(image)


def loses_bits(image: Image.Image) -> bool:
    """Whether Pillow shows 8 of the 16 bits that a file has."""
    tiles = getattr(image, "tile", [])  # where its bytes are, and in which form
    return any(";16" in str(tile) for tile in tiles) and not image.mode.startswith("I;16")


def _of_tiff(data: bytes, channels: int | None, dtype: DType | None) -> Pixels:
    """What Pillow reads exactly, by Pillow; other TIFFs by tifffile, if that is there."""
    try:
        with opened(data) as image:
            stored = _stored(image)
            if stored in _PLAIN.get(image.mode, ()):
                return np.asarray(image).astype(stored)  # Pillow turns a TIFF itself
    except DecodeError as failure:
        if failure.kind != "damaged":
            raise
    try:
        import tifffile
    except ImportError:
        raise DecodeError("unsupported", f"Pillow cannot read this TIFF to the last bit; {_ADVICE}") from None
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return _of_page(file.pages.first, len(data), channels, dtype)
    except DecodeError:
        raise
    except _DAMAGES as failure:
        reason = (str(failure) or type(failure).__name__).splitlines()[0]
        if "imagecodecs" in reason:
            raise DecodeError("unsupported", f"{reason}: pip install tifffile imagecodecs") from None
        raise DecodeError("damaged", reason) from None


def _stored(image: Image.Image) -> str:
    """The type of a TIFF's numbers, "" where Pillow shows other channels than it has."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits, formats = set(tags.get(_BITS, (1,))), set(tags.get(_FORMAT, (1,)))
    if len(bits) > 1 or len(formats) > 1 or tags.get(_SAMPLES, 1) != len(image.getbands()):
        return ""
    return f"{_KINDS.get(formats.pop(), '')}{bits.pop()}"


def _of_page(page: Any, size: int, channels: int | None, dtype: DType | None) -> Pixels:
    """The pixels of tifffile's page, with channels last, however they lie in the file of so many bytes."""
    if page.axes not in ("YX", "YXS", "SYX"):
        raise DecodeError("wrong_channels", f"the axes of its first page are {page.axes}, not YX, YXS or SYX")
    first = page.axes == "SYX"
    shape = (*page.shape[1:], page.shape[0]) if first else page.shape
    _refuse_others(shape, page.dtype, channels, dtype)
    if any(start + count > size for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)):
        raise DecodeError("truncated", "some of its pixels lie beyond its end")
    pixels: Pixels = page.asarray(maxworkers=1)
    orientation = page.tags.get(_ORIENTATION)
    pixels = np.moveaxis(pixels, 0, -1) if first else pixels
    return turned(pixels, 1 if orientation is None else int(orientation.value))

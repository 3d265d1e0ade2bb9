"""JPEG files to pixels by libjpeg-turbo, upright and whole.

libjpeg fills with grey what a damaged file does not say, and only warns; here that is no image. What it warns of and
has the whole picture all the same is one: strange notes in the header, bytes too many, a missing end-of-image marker.
The header is walked in Python, for size, orientation and inks: a few microseconds, where asking a library for each
costs more than a hundred.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from pretrain.view.pixels import DecodeError, Pixels, refuse_bombs, turned

ORIENTATION = 0x0112
DAMAGES = (  # what Pillow raises for bytes that are no whole image of their format
    OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, OverflowError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip

_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_SEQUENTIAL = {0xC0, 0xC1, 0xC9}  # one scan may hold all
_LONE = {0x00, 0x01, *range(0xD0, 0xD9)}  # without a length
_APP1, _ADOBE, _SCAN, _COMMENT = 0xE1, 0xEE, 0xDA, 0xFE
_END = b"\xff\xd9"  # of the image
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_ABSENT = -1  # in place of an orientation
_SHORT = 3  # TIFF's type of 16-bit numbers
_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8)  # of a number of each TIFF type


class Header(NamedTuple):
    """What is known of a JPEG before it is decoded; sizes are those before it is turned."""

    height: int
    width: int
    channels: int
    orientation: int
    adobe: bool  # has Adobe's marker, whose CMYK is inverted: 0 is all ink
    one_scan: bool  # a single scan holds all of the picture


def is_jpeg(data: bytes) -> bool:
    return data[:2] == b"\xff\xd8"


def decode(data: bytes, gray: bool = False) -> Pixels:
    """Bytes of a JPEG file → [H, W, 3] uint8 RGB, or [H, W, 1] if `gray` and it is.

    Raises:
        DecodeError: truncated, damaged, too large.
        ValueError: it is of a rare kind that libjpeg-turbo's plain interface refuses.
    """
    header = read_header(data)
    refuse_bombs(header.height, header.width)
    colors = "CMYK" if header.channels == 4 else "GRAY" if gray and header.channels == 1 else "RGB"
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace=colors)
    except ValueError:
        pixels = _decode_mended(data, header, colors)
    if colors == "CMYK":
        pixels = _rgb_of_inks(pixels if header.adobe else 255 - pixels)
    return turned(pixels, header.orientation)


def _decode_mended(data: bytes, header: Header, colors: str) -> Pixels:
    """Decodes without what does not matter, since libjpeg says no more than the first thing that it finds wrong."""
    parts, scan = [data[:2]], 0
    for marker, at, stop in _segments(data):
        scan = at - 4
        if marker == _ADOBE or not (0xE0 <= marker <= 0xEF or marker in (_COMMENT, _SCAN)):
            parts.append(data[scan:stop])
    ended = _END in data[scan:]
    mended = b"".join([*parts, data[scan:], b"" if ended or not header.one_scan else _END])
    try:
        return simplejpeg.decode_jpeg(mended, colorspace=colors)
    except ValueError as failure:
        reason = str(failure)
    if "extraneous bytes before marker 0xd9" in reason:  # all of the picture came before
        return simplejpeg.decode_jpeg(mended, colorspace=colors, strict=False)
    if reason.startswith(("Corrupt JPEG data", "Premature end", "Inconsistent progression")):
        raise DecodeError("damaged" if ended else "truncated", reason)
    raise ValueError(reason)


def _rgb_of_inks(inverted: Pixels) -> Pixels:
    """Inverted CMYK [H, W, 4], 255 where there is no ink → RGB, without a colour profile."""
    light = inverted.astype(np.uint16)
    return ((light[..., :3] * light[..., 3:] + 127) // 255).astype(np.uint8)


def read_header(data: bytes) -> Header:
    """Walks the segments up to the first scan.

    Raises:
        DecodeError: there is no scan, or no frame before it.
    """
    frame, kind, adobe, exif, xmp = None, 0, False, [], None
    try:
        for marker, at, stop in _segments(data):
            if marker == _APP1:
                if data.startswith(_EXIF, at):
                    exif.append(data[at + len(_EXIF) : stop])
                elif data.startswith(_XMP, at):
                    xmp = data[at + len(_XMP) : stop]
            elif marker == _ADOBE:
                adobe = adobe or data.startswith(b"Adobe", at)
            elif marker in _FRAMES:
                kind, frame = marker, struct.unpack_from(">HHB", data, at + 1)
        scans = data[at]
    except (IndexError, ValueError, struct.error):
        raise DecodeError("truncated", "it ends inside its header") from None
    if frame is None:
        raise DecodeError("damaged", "its header states no size")
    height, width, channels = frame
    one_scan = kind in _SEQUENTIAL and scans == channels
    return Header(height, width, channels, _orientation(data, exif, xmp), adobe, one_scan)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, stop) of what each segment of the header holds, the last one the first scan's.

    Raises:
        IndexError, ValueError: the file ends before.
    """
    at, marker = 2, 0
    while marker != _SCAN:
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF:  # libjpeg passes over what is between segments, too
            at = data.index(b"\xff", at + 1)
        elif marker in _LONE:
            at += 2
        else:
            stop = at + 2 + (data[at + 2] << 8 | data[at + 3])
            yield marker, at + 4, stop
            at = stop


def _orientation(data: bytes, exif: list[bytes], xmp: bytes | None) -> int:
    """The orientation that the camera noted: in its EXIF block, or else in XMP. 1, upright, if that cannot be read."""
    value = _ABSENT if not exif else _noted(exif[0]) if len(exif) == 1 else None
    if value is None:
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                return orientation_of(image)
        except DAMAGES:
            return 1
    if value != _ABSENT:
        return value
    match = None if xmp is None else re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
    return 1 if match is None else int(match[1])


def orientation_of(image: Image.Image) -> int:
    """The orientation that Pillow finds noted, 1 (upright) where it finds none that can be read."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except DAMAGES:
        return 1
    return value if isinstance(value, int) else 1


def _noted(block: bytes) -> int | None:
    """The orientation in a plain EXIF block: None if the block is not plain, and Pillow shall judge."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return None
    (at,) = struct.unpack_from(f"{order}I", block, 4)
    if at + 2 > len(block):
        return None
    (count,) = struct.unpack_from(f"{order}H", block, at)
    entries = block[at + 2 : at + 2 + 12 * count]
    if len(entries) < 12 * count:
        return None
    for tag, kind, length, value in struct.iter_unpack(f"{order}HHI4s", entries):
        if tag == ORIENTATION:
            if kind != _SHORT or length != 1:
                return None
            number: int = struct.unpack_from(f"{order}H", value)[0]
            return number
        size = length * _BYTES[kind] if kind < len(_BYTES) else 0
        if size > 4 and struct.unpack(f"{order}I", value)[0] + size > len(block):
            return None
    return _ABSENT

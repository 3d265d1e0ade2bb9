"""Compressed images to colours: JPEG by libjpeg-turbo (`jpeg.py`), everything else (and what it refuses) by Pillow.

Every image becomes uint8 RGB: grey is repeated, a palette looked up, inks mixed, alpha laid over white, 16 bits cut to
the upper 8, and the orientation that a camera noted is applied. An animation gives its first frame. What the bytes are
decides how they are read, not the name of the file.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from pretrain.view import jpeg
from pretrain.view.pixels import TURNS, DecodeError, Pixels, refuse_bombs, turned

# What Pillow may try; its other formats include one that runs a program, PostScript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

_BITS, _PHOTOMETRIC = 258, 262  # TIFF's tags
_TIFFS = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}  # those with + are BigTIFFs
_BEGINNINGS = {b"\x89PNG": "PNG", b"\xff\xd8": "JPEG", b"GIF8": "GIF", b"BM": "BMP"} | dict.fromkeys(_TIFFS, "TIFF")


def decode(data: bytes | memoryview) -> Pixels:
    """Bytes of an image file → [H, W, 3] uint8 RGB.

    Raises:
        DecodeError: truncated, damaged, too large, or no image at all.
    """
    data = bytes(data)  # nothing is copied where they are bytes already
    if jpeg.is_jpeg(data):
        try:
            return jpeg.decode(data)
        except DecodeError:
            raise
        except ValueError:
            pass  # a rare kind that Pillow may know
    return _decode_by_pillow(data)


def size_of_upright_jpeg(data: bytes | memoryview) -> tuple[int, int] | None:
    """(height, width) of a JPEG of grey or colours that is not to be turned and not too large; None for all else."""
    data = bytes(data)
    if not jpeg.is_jpeg(data):
        return None
    try:
        header = jpeg.read_header(data)
        refuse_bombs(header.height, header.width)
    except DecodeError:
        return None
    plain = header.channels in (1, 3) and header.orientation not in TURNS
    return (header.height, header.width) if plain else None


def is_tiff(data: bytes) -> bool:
    return data[:4] in _TIFFS


def _decode_by_pillow(data: bytes) -> Pixels:
    with opened(data) as image:
        return _colors(image)


def colors_of(image: Image.Image) -> Pixels:
    """An image that Pillow has opened → [H, W, 3] uint8 RGB, as `decode` makes them of its file.

    Of a JPEG, Pillow's decoder may round some colours otherwise than `decode` does.

    Raises:
        DecodeError: its file is truncated, damaged or too large.
    """
    with failures():
        refuse_bombs(image.height, image.width)
        return _colors(image)


def _colors(image: Image.Image) -> Pixels:
    colors = np.array(_to_rgb(image))  # Pillow turns a TIFF itself, when its pixels are asked for
    return colors if image.format == "TIFF" else turned(colors, jpeg.orientation_of(image))


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """A file as Pillow sees it, if it is not too large. What Pillow raises inside is a DecodeError, too."""
    if not data:
        raise DecodeError("empty", "it has no bytes")
    with failures(data), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        refuse_bombs(image.height, image.width)
        yield image


@contextmanager
def failures(data: bytes = b"") -> Iterator[None]:
    """What Pillow raises inside, of a file with these bytes, is a DecodeError."""
    try:
        yield
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise _unidentified(data) from None
    except Image.DecompressionBombError as failure:
        raise DecodeError("too_large", str(failure)) from None
    except jpeg.DAMAGES as failure:
        reason = str(failure) or type(failure).__name__
        truncated = "truncated" in reason.lower() or (bool(data) and _ends_early(data))
        raise DecodeError("truncated" if truncated else "damaged", reason) from None


def _unidentified(data: bytes) -> DecodeError:
    name = next((name for begin, name in _BEGINNINGS.items() if data.startswith(begin)), None)
    if data[:4] == b"RIFF" and data[8:12] in b"WEBP":
        name = "WEBP"
    if data.startswith(b"\x93NUMPY"):
        return DecodeError("wrong_type", "it is an array: `pixels` of the view says which arrays are images")
    if name is None:
        return DecodeError("not_an_image", f"it is of no format that is read; it begins with {data[:16]!r}")
    if _ends_early(data):
        return DecodeError("truncated", f"this {name} ends before its header says")
    return DecodeError("damaged", f"the header of this {name} cannot be read")


def _ends_early(data: bytes) -> bool:
    """Whether a file is shorter than it must be by its first bytes, where these say it."""
    if data[:4] == b"RIFF" and len(data) >= 8:
        return len(data) < 8 + int(struct.unpack_from("<I", data, 4)[0])
    if is_tiff(data) and len(data) >= 16:
        big = b"+" in data[:4]
        place = struct.unpack_from(_TIFFS[data[:4]] + ("Q" if big else "I"), data, 8 if big else 4)
        return len(data) < 2 + int(place[0])  # of the first directory
    return len(data) < 32  # less than any header


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray(_upper_bits(image)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DecodeError(
            "wrong_type",
            f"its numbers are {'signed or of 32 bits' if image.mode == 'I' else 'floats'}, and what is white is not "
            "said: `pixels` and `full_scale` of the view say it of all images",
        )
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _upper_bits(image: Image.Image) -> Pixels:
    """Grey of 12 or 16 bits → the upper 8, [H, W]."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    (bits, *_), white_is_zero = tags.get(_BITS, (16,)), tags.get(_PHOTOMETRIC) == 0
    gray = (np.asarray(image).astype(np.uint16) >> (bits - 8)).astype(np.uint8)
    return 255 - gray if white_is_zero else gray

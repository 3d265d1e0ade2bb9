"""Compressed images to pixels: JPEG by libjpeg-turbo, everything else (and what it refuses) by Pillow.

Every image becomes uint8 RGB: grey is repeated, a palette looked up, alpha laid over white, 16 bits cut to the upper 8,
and the orientation that a camera noted is applied. An animation gives its first frame.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import simplejpeg
from PIL import Image

MAX_PIXELS = 64_000_000  # larger images are refused from their header: a bomb of a few kB would fill the memory

_TURNS = {  # EXIF 2.32, tag 0x0112
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DAMAGES = (  # what Pillow raises for bytes that are no whole image of their format
    OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, OverflowError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip

Pixels = np.ndarray


class DecodeError(ValueError):
    """These bytes are no image that can be decoded; says why."""


def decode(data: bytes | memoryview) -> Pixels:
    """Bytes of an image file → [H, W, 3] uint8 RGB.

    Raises:
        DecodeError: truncated, damaged, too large, or no image at all.
    """
    if bytes(data[:2]) == b"\xff\xd8" and not _is_rotated(data):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            _refuse_bombs(height, width)
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        except DecodeError:
            raise
        except (ValueError, KeyError):  # KeyError: it has no name for 4:4:1
            pass  # CMYK, or damaged: Pillow knows
    return _decode_by_pillow(data)


def jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """(height, width) of a JPEG that `decode` neither turns nor refuses for its header; None for all else."""
    if bytes(data[:2]) != b"\xff\xd8" or _is_rotated(data):
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):
        return None
    return (height, width) if height * width <= MAX_PIXELS else None


def _decode_by_pillow(data: bytes | memoryview) -> Pixels:
    try:
        with Image.open(io.BytesIO(data)) as image:
            _refuse_bombs(image.height, image.width)
            turn = _TURNS.get(_orientation(image))
            return np.array(_to_rgb(image if turn is None else image.transpose(turn)))
    except DecodeError:
        raise
    except _DAMAGES as failure:
        raise DecodeError(str(failure) or type(failure).__name__) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _is_rotated(data: bytes | memoryview) -> bool:
    """Whether a JPEG's header notes an orientation other than upright."""
    if b"Exif\0\0" not in bytes(data[:65536]):
        return False
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _orientation(image) in _TURNS
    except _DAMAGES:
        return False


def _orientation(image: Image.Image) -> int:
    """The orientation that the camera noted, 1 (upright) where it noted none that can be read."""
    try:
        value = image.getexif().get(0x0112, 1)
    except _DAMAGES:
        return 1
    return value if isinstance(value, int) else 1


def _refuse_bombs(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise DecodeError(
            f"{height}×{width} pixels are more than the {MAX_PIXELS // 1_000_000} million that are decoded"
        )

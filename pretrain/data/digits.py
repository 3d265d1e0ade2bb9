"""A handwritten digit as a scene: somewhere, in some colour, on textured ground.

scikit-learn's digits are small, centred and white on black, so that pixels alone tell them apart (97 % by the nearest
neighbour). In a scene the place, the size, both colours and the ground change from one drawing of a digit to the next
(21 %): what stays is its shape, and an encoder must have learned to look past the rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_HEIGHT = (0.55, 0.7)  # of the digit, as a share of the scene's side
_ASPECT = (0.85, 1.15)  # of its width to its height
_CONTRAST = 0.6  # between the colours of digit and ground, at least; black and white are √3 apart
_TEXTURE = (0.03, 0.1)  # standard deviation of the ground's brightness and tint
_CELLS = (3, 9)  # least and greatest number of the texture's cells along a side, which limits its band
_NOISE = 0.02  # standard deviation of each pixel

Floats = NDArray[np.float32]


def scene(digit: NDArray[np.floating], rng: np.random.Generator, side: int = 32) -> NDArray[np.uint8]:
    """Draws a digit.

    Args:
        digit: [8, 8], how much ink there is, from 0 to 16.
        rng: where place, size, colours and ground come from.
        side: of the scene, in pixels.

    Returns:
        [side, side, 3] colours.
    """
    ink, ground = _colours(rng)
    cells = int(rng.integers(*_CELLS, endpoint=True))
    strength = rng.uniform(*_TEXTURE)
    texture = strength * np.stack([_smooth_noise(rng, cells, side) for _ in range(3)], axis=-1)
    cover = _place(digit, rng, side)[..., None]
    pixels = cover * ink + (1 - cover) * (ground + texture) + _NOISE * rng.standard_normal((side, side, 3))
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def _colours(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Two random colours, [3] each, that can be told apart."""
    while True:
        ink, ground = rng.random((2, 3), dtype=np.float32)
        if np.linalg.norm(ink - ground) >= _CONTRAST:
            return ink, ground


def _smooth_noise(rng: np.random.Generator, cells: int, side: int) -> Floats:
    """[side, side] with a standard deviation of about one at the cells' middles, smooth between them."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def _place(digit: NDArray[np.floating], rng: np.random.Generator, side: int) -> Floats:
    """The share of ink [side, side] of an enlarged digit at a random place, wholly inside."""
    height = round(side * rng.uniform(*_HEIGHT))
    width = min(side, round(height * rng.uniform(*_ASPECT)))
    top, left = (int(rng.integers(side - size, endpoint=True)) for size in (height, width))
    ink = Image.fromarray((digit / 16).astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    cover = np.zeros((side, side), dtype=np.float32)
    cover[top : top + height, left : left + width] = np.asarray(ink).clip(0, 1)
    return cover

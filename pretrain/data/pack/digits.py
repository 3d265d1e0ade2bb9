"""A handwritten digit as a scene: written several times, anywhere, in some colours, on textured ground.

scikit-learn's digits are small, centred and white on black, so that pixels alone tell them apart (97 % by the nearest
neighbour). In a scene the places, the size, both colours and the ground change from one drawing of a digit to the next
(20 %): what stays is its shape, and an encoder must have learned to look past the rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_COPIES = 7  # of the digit, as far as there is room
_TRIES = 20  # to find room for one of them
_HEIGHT = (0.26, 0.32)  # of the digits, as a share of the scene's side
_ASPECT = (0.85, 1.15)  # of their width to their height
_LUMINANCE = (0.75, 0.2)  # of ink and ground: ink is always the lighter
_CHROMA = 0.4  # how colourful both are: 0 is grey, 1 any colour of that luminance
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_TEXTURE = (0.03, 0.08)  # standard deviation of the ground's brightness and tint
_CELLS = (3, 9)  # least and greatest number of the texture's cells along a side, which limits its band
_NOISE = 0.02  # standard deviation of each pixel

Floats = NDArray[np.float32]


def scene(digit: NDArray[np.floating], rng: np.random.Generator, side: int = 32) -> NDArray[np.uint8]:
    """Draws a digit.

    Args:
        digit: [8, 8], how much ink there is, from 0 to 16.
        rng: where places, sizes, colours and ground come from.
        side: of the scene, in pixels.

    Returns:
        [side, side, 3] colours.
    """
    ink, ground = (_colour(rng, luminance) for luminance in _LUMINANCE)
    cells = int(rng.integers(*_CELLS, endpoint=True))
    strength = rng.uniform(*_TEXTURE)
    texture = strength * np.stack([_smooth_noise(rng, cells, side) for _ in range(3)], axis=-1)
    cover = _scattered(digit, rng, side)[..., None]
    pixels = cover * ink + (1 - cover) * (ground + texture) + _NOISE * rng.standard_normal((side, side, 3))
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def _colour(rng: np.random.Generator, luminance: float) -> Floats:
    """A random colour [3] of that luminance."""
    while True:
        colour = rng.random(3, dtype=np.float32)
        colour *= np.float32(luminance) / (colour @ _LUMA)
        if colour.max() <= 1:
            return luminance + _CHROMA * (colour - luminance)


def _smooth_noise(rng: np.random.Generator, cells: int, side: int) -> Floats:
    """[side, side] with a standard deviation of about one at the cells' middles, smooth between them."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def _scattered(digit: NDArray[np.floating], rng: np.random.Generator, side: int) -> Floats:
    """The share of ink [side, side] of copies of a digit at random places; no ink of one lies on that of another."""
    cover = np.zeros((side, side), dtype=np.float32)
    for _ in range(_COPIES):
        for _ in range(_TRIES):
            one = _place(digit, rng, side)
            if not ((one > 0.1) & (cover > 0.1)).any():
                cover = np.maximum(cover, one)
                break
    return cover


def _place(digit: NDArray[np.floating], rng: np.random.Generator, side: int) -> Floats:
    """The share of ink [side, side] of a digit at a random place, wholly inside."""
    height = round(side * rng.uniform(*_HEIGHT))
    width = min(side, round(height * rng.uniform(*_ASPECT)))
    top, left = (int(rng.integers(side - size, endpoint=True)) for size in (height, width))
    ink = Image.fromarray((digit / 16).astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    cover = np.zeros((side, side), dtype=np.float32)
    cover[top : top + height, left : left + width] = np.asarray(ink).clip(0, 1)
    return cover

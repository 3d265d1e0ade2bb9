"""Images that differ from one another, as photographs do, and what people do to them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def scene(seed: int, size: tuple[int, int] = (240, 320)) -> Image.Image:
    """A smooth, colourful picture with some texture."""
    rng = np.random.default_rng(seed)
    height, width = size
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    noise = rng.normal(0, 6, (height, width, 1))
    return Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()

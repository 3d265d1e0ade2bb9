"""A picture of pairs of images that look the same, the least certain first: to judge by eye what is left out."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from PIL import Image, ImageOps

from pretrain.doctor.dedupe import Copy
from pretrain.doctor.image import pixels_of
from pretrain.doctor.sample import Samples

_PAIRS = 48
_ACROSS = 6
_SIDE, _GAP = 96, 8


def sheet(copies: Sequence[Copy], samples: Mapping[int, Samples]) -> bytes | None:
    """A PNG of at most 48 pairs, copy and original side by side; None if none looks the same without being it.

    Args:
        copies: as `dedupe` finds them.
        samples: of the indexes that they speak of.
    """
    shown = sorted((copy for copy in copies if copy.how == "looks the same"), key=lambda copy: -copy.apart)[:_PAIRS]
    if not shown:
        return None
    rows = -(-len(shown) // _ACROSS)
    width, height = 2 * _SIDE + _GAP, _SIDE + _GAP
    paper = Image.new("RGB", (_ACROSS * width, rows * height), "white")
    for place, copy in enumerate(shown):
        for half, (where, shard, member) in enumerate((copy.sample, copy.original)):
            part = samples[where].image(shard, member)
            image = Image.fromarray(pixels_of(samples[where].read(shard, part)))
            paper.paste(
                ImageOps.contain(image, (_SIDE, _SIDE)),
                (place % _ACROSS * width + half * _SIDE, place // _ACROSS * height),
            )
    file = io.BytesIO()
    paper.save(file, "PNG")
    return file.getvalue()

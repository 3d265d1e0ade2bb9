"""Times decoding large JPEGs at a smaller scale (`data.scaled_decode`) against full size, and how alike views are.

    python scripts/bench_scaled.py data=SHARDS out=scaled.json

Photographs of a million pixels and more are made of smaller ones in two ways, since their sharpness decides how much
the low-pass of a smaller scale shows: `mosaic` lays 3 × 3 of them side by side, as sharp as they are, sharper than a
camera's at that size; `enlarged` makes one three times as wide and high, smoother than a camera's. Both are JPEGs of
quality 90, 4:2:0. For MAE's view and DINO's: images/s of one core at full size and scaled, by each image's least
processor time over rounds in which both take turns; the share of images decoded at each factor; and the likeness in dB,
over all views that are scaled, to those from full size. `psnr_aligned` is that of boxes whose edges need no rounding:
what is left there is the low-pass alone.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F

from pretrain.config.arguments import script
from pretrain.data.opening import open_shards
from pretrain.data.shard.sample import IMAGES
from pretrain.data.store.source import Reader
from pretrain.records import UserError
from pretrain.view import crop
from pretrain.view.crop import Box
from pretrain.view.decode import DecodeError, Pixels, decode
from pretrain.view.region import LEAST_TO_SCALE, decode_for, scale_factor
from pretrain.view.spec import ViewSpec

VIEWS = {
    "mae": (ViewSpec(224, scale=(0.2, 1.0)),),
    "dino": (ViewSpec(224, count=2, scale=(0.4, 1.0)), ViewSpec(96, count=8, scale=(0.05, 0.4))),
}
_TIMES = 3  # photographs side by side, or pixels for one


@dataclass(frozen=True)
class Arguments:
    data: str
    images: int = 40
    rounds: int = 3
    out: str | None = None


def photographs(data: str) -> Iterator[Pixels]:
    """What the shards hold, from the first on."""
    index, reader = open_shards(data, prefix=""), Reader()
    for shard, where in enumerate(index.shards):
        for member in range(where.count):
            part = next(part for part in index.parts(shard, member) if part.extension in IMAGES)
            try:
                yield decode(reader.read(where.url, part.start, part.stop, where.size))
            except DecodeError:
                continue


def enlarged(data: str, count: int) -> list[bytes]:
    """JPEGs of single photographs, resized."""
    made: list[bytes] = []
    for pixels in photographs(data):
        height, width = (_TIMES * side for side in pixels.shape[:2])
        if height * width >= LEAST_TO_SCALE and len(made) < count:
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
            larger = F.interpolate(image, size=(height, width), mode="bicubic")[0].permute(1, 2, 0)
            made.append(jpeg(larger.numpy()))
    return made


def mosaics(data: str, count: int) -> list[bytes]:
    """JPEGs of photographs side by side, each cut to the least height and width of its nine."""
    made: list[bytes] = []
    tiles: list[Pixels] = []
    for pixels in photographs(data):
        if len(made) == count:
            break
        if min(pixels.shape[:2]) * _TIMES < math.sqrt(LEAST_TO_SCALE):
            continue
        tiles.append(pixels)
        if len(tiles) == _TIMES**2:
            height, width = min(tile.shape[0] for tile in tiles), min(tile.shape[1] for tile in tiles)
            cut = [tile[:height, :width] for tile in tiles]
            rows = [np.concatenate(cut[i : i + _TIMES], axis=1) for i in range(0, len(cut), _TIMES)]
            made.append(jpeg(np.concatenate(rows)))
            tiles = tiles[_TIMES:]  # neighbours share some: there are too few photographs otherwise
    return made


def jpeg(pixels: Pixels) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 90, "RGB", "420")
    return data


def main(arguments: Arguments) -> None:
    a = arguments
    if refused := [f"{name} must be at least 1" for name in ("images", "rounds") if getattr(a, name) < 1]:
        raise UserError("; ".join(refused))
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for kind, make in (("mosaic", mosaics), ("enlarged", enlarged)):
        files = make(a.data, a.images)
        if not files:
            raise UserError(f"data={a.data}: its images are too few or too small to make large ones of")
        sizes = [simplejpeg.decode_jpeg_header(data)[:2] for data in files]
        about = {"images": len(files), "megapixels": float(np.mean([h * w for h, w in sizes])) / 1e6}
        result[kind] = about | {name: compared(files, specs, a.rounds) for name, specs in VIEWS.items()}
        show(kind, result[kind])
    result["run"] = {"images": a.images, "rounds": a.rounds, "torch": torch.__version__}
    if a.out is not None:
        Path(a.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compared(files: Sequence[bytes], specs: Sequence[ViewSpec], rounds: int) -> dict[str, Any]:
    """Speeds, factors and likeness for one objective's views."""
    each = [spec for spec in specs for _ in range(spec.count)]
    sizes = [spec.height_width for spec in each]
    draws = crop.draws(0, torch.arange(len(files)), specs)

    def views(data: bytes, boxes_of: Callable[[int, int], list[Box]], scaled: bool) -> list[torch.Tensor]:
        if scaled:
            pixels, boxes = decode_for(data, boxes_of, sizes)
        else:
            pixels = decode(data)
            boxes = boxes_of(pixels.shape[0], pixels.shape[1])
        return [crop.crop(pixels, box, spec) for box, spec in zip(boxes, each, strict=True)]

    seconds = {scaled: np.full(len(files), np.inf) for scaled in (False, True)}
    factors: Counter[int] = Counter()
    alike: dict[bool, list[float]] = {False: [], True: []}  # by whether boxes are aligned
    for i, (data, numbers) in enumerate(zip(files, draws, strict=True)):
        boxes_of = partial(crop.boxes, numbers, specs=specs)
        for _ in range(rounds):
            for scaled, times in seconds.items():
                start = time.process_time()
                views(data, boxes_of, scaled)
                times[i] = min(times[i], time.process_time() - start)
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        factor = scale_factor((height, width), boxes_of(height, width), sizes)
        factors[factor] += 1
        if factor > 1:
            exact = [aligned(box, factor) for box in boxes_of(height, width)]
            for is_aligned, boxes in ((False, boxes_of), (True, lambda height, width, exact=exact: exact)):
                pairs = zip(views(data, boxes, True), views(data, boxes, False), strict=True)
                alike[is_aligned] += [decibels(small, whole) for small, whole in pairs]
    rates = {scaled: len(files) / times.sum() for scaled, times in seconds.items()}
    return {
        "full": rates[False],
        "scaled": rates[True],
        "ratio": rates[True] / rates[False],
        "share_by_factor": {str(factor): factors[factor] / len(files) for factor in sorted(factors)},
        "psnr_mean": float(np.mean(alike[False])) if alike[False] else None,
        "psnr_p5": float(np.percentile(alike[False], 5)) if alike[False] else None,
        "psnr_aligned_mean": float(np.mean(alike[True])) if alike[True] else None,
        "psnr_aligned_p5": float(np.percentile(alike[True], 5)) if alike[True] else None,
    }


def aligned(box: Box, factor: int) -> Box:
    """The largest box inside whose edges fall between pixels of the scaled image."""
    top, left = (-(-side // factor) * factor for side in (box.top, box.left))
    bottom, right = ((side // factor) * factor for side in (box.top + box.height, box.left + box.width))
    return Box(top, left, bottom - top, right - left)


def decibels(one: torch.Tensor, other: torch.Tensor) -> float:
    error = (one.double() - other.double()).square().mean().item()
    return 10 * math.log10(255**2 / error) if error else 100.0


def show(kind: str, result: dict[str, Any]) -> None:
    for name in VIEWS:
        r = result[name]
        likeness = "" if r["psnr_p5"] is None else f"   mean {r['psnr_mean']:.1f}, p5 {r['psnr_p5']:.1f} dB"
        print(
            f"{kind:8s} {result['megapixels']:.1f} MP   {name:4s} full {r['full']:5.0f}   scaled {r['scaled']:5.0f} "
            f"images/s a core   {r['ratio']:.2f} times   factors {r['share_by_factor']}{likeness}"
        )


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

"""Times what a core makes of JPEG shards, and the whole loader, against the official recipes, in one run.

    python scripts/bench_data.py data=SHARDS out=bench.json

`mae` and `dino` are the work on one image by one core, from the bytes of its file to what leaves the loader: ours
decodes once and cuts uint8 views (flip, colours and normalisation follow on the device, whose time stands apart);
`official` are the transforms of facebookresearch/mae and facebookresearch/dino (`baselines.py`), on Pillow images.
Where the extension of `native/` is installed, `ours_region` decodes only what the views need. `loader` are batches by
`workers` workers, files included: ours, torchvision's ImageFolder and WebDataset, both with the official MAE transform.
The variants take turns, so that a noisy machine slows all of them alike; each one's least time over the rounds counts.
`psnr_p5` is the 5th percentile of the likeness, in dB, of our crops to Pillow's bicubic of the same boxes. It needs the
extra `bench`.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from baselines import Work, by_pillow, imagefolder, official_dino, official_mae, webdataset_loader
from pretrain.config.arguments import script
from pretrain.data.module import ShardData
from pretrain.data.opening import open_shards
from pretrain.data.shard.index import Index
from pretrain.data.shard.sample import IMAGES
from pretrain.data.store.source import Reader
from pretrain.records import Batch, UserError
from pretrain.view import color, crop, region
from pretrain.view.color import Prepare
from pretrain.view.decode import decode
from pretrain.view.pixels import DecodeError, Pixels
from pretrain.view.spec import Colors, ViewSpec

MAE = (ViewSpec(224, scale=(0.2, 1.0)),)
DINO = (
    ViewSpec(
        224, count=2, scale=(0.4, 1.0), colors=Colors(blur=[1.0, 0.1], blur_sigma=[0.1, 2.0], solarize=[0.0, 0.2])
    ),
    ViewSpec(96, count=8, scale=(0.05, 0.4), colors=Colors(blur_sigma=[0.1, 2.0])),
)
_FIRST = 3  # batches of a loader that are not timed


@dataclass(frozen=True)
class Arguments:
    data: str
    images: int = 200
    rounds: int = 5
    workers: int = 2
    batch: int = 64
    batches: int = 16
    out: str | None = None


# ── an image ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def decode_whole(data: bytes, boxes_of: region.Boxes) -> tuple[Pixels, list[crop.Box]]:
    """What `region.decode_for` does without its extension."""
    pixels = decode(data)
    return pixels, boxes_of(*pixels.shape[:2])


def ours(specs: Sequence[ViewSpec], decode_for: Callable[..., tuple[Pixels, list[crop.Box]]] = decode_whole) -> Work:
    """Decodes once and cuts all views, as `pretrain/data/stream/reader.py` does."""
    each = [spec for spec in specs for _ in range(spec.count)]

    def work(files: Sequence[bytes]) -> None:
        draws = crop.draws(0, torch.arange(len(files)), specs)
        for data, numbers in zip(files, draws, strict=True):
            pixels, boxes = decode_for(data, partial(crop.boxes, numbers, specs=specs))
            for box, spec in zip(boxes, each, strict=True):
                crop.crop(pixels, box, spec)

    return work


def likeness(data: bytes, g: int, specs: Sequence[ViewSpec]) -> Iterator[float]:
    """dB between our crops of an image and Pillow's bicubic of the same boxes."""
    pixels, image = decode(data), Image.open(io.BytesIO(data)).convert("RGB")
    each = [spec for spec in specs for _ in range(spec.count)]
    boxes = crop.boxes(crop.draws(0, torch.tensor([g]), specs)[0], pixels.shape[0], pixels.shape[1], specs)
    for box, spec in zip(boxes, each, strict=True):
        cut = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        theirs = np.asarray(cut.resize(spec.height_width[::-1], Image.Resampling.BICUBIC), np.float64)
        error = np.square(crop.crop(pixels, box, spec).permute(1, 2, 0).numpy() - theirs).mean()
        yield 10 * math.log10(255**2 / error) if error else 100.0


def device_part(specs: Sequence[ViewSpec], count: int) -> Callable[[], object]:
    """Flip, colours and normalisation of a batch, on a GPU if there is one."""
    device, g = torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.arange(count)
    shapes = [(spec.count, count, *spec.height_width, 3) for spec in specs]
    views = tuple(torch.randint(0, 256, shape, dtype=torch.uint8).permute(0, 1, 4, 2, 3) for shape in shapes)
    prepare = Prepare(specs).to(device)

    def work() -> None:
        prepare(Batch(views, g, g, [], seed=0, draws=color.draws(0, g, specs)).to(device))
        if device.type == "cuda":
            torch.cuda.synchronize()

    return work


# ── loaders ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def processes(data: str, batch: int, count: int) -> Iterator[object]:
    """The same by so many reader processes of one thread each, which take turns, instead of one with many threads."""
    shards = ShardData(data, num_workers=1)
    readers = [iter(shards.batches(0, 0, batch, MAE, rank, count)) for rank in range(count)]
    while True:
        yield from map(next, readers)


def rate(batches: Iterable[object], batch: int, count: int) -> float:
    """Images a second of `count` batches, once the first three are there."""
    iterator = iter(batches)
    for _ in range(_FIRST):
        next(iterator)
    start = time.perf_counter()
    for _ in range(count):
        next(iterator)
    return batch * count / (time.perf_counter() - start)


# ── the comparison ───────────────────────────────────────────────────────────────────────────────────────────────────


def main(arguments: Arguments) -> None:
    a = arguments
    refused = [
        f"{name} must be at least 1"
        for name in ("images", "rounds", "workers", "batch", "batches")
        if getattr(a, name) < 1
    ]
    if refused:
        raise UserError("; ".join(refused))
    index = open_shards(a.data, prefix="")
    files = jpegs(index, a.images)
    result: dict[str, Any] = {}
    with tqdm(total=3 * a.rounds, desc="rounds", disable=None) as bar:
        for name, specs, official in (("mae", MAE, official_mae()), ("dino", DINO, official_dino())):
            result[name] = images_a_second(files, specs, official, a.rounds, bar)
        result["loader"] = loaders(a, files, bar)
    result["run"] = {name: value for name, value in vars(a).items() if name not in ("data", "out")}
    result["run"] |= {"torch": torch.__version__, "images": len(files), "bytes": sum(map(len, files))}
    show(result)
    if a.out is not None:
        Path(a.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def jpegs(index: Index, count: int) -> list[bytes]:
    """The first images of the shards that Pillow, too, can read."""
    reader, files = Reader(), []
    for shard, where in enumerate(index.shards):
        for member in range(where.count):
            part = next(part for part in index.parts(shard, member) if part.extension in IMAGES)
            data = reader.read(where.url, part.start, part.stop, where.size)
            try:
                decode(data)
                Image.open(io.BytesIO(data)).convert("RGB")
            except (DecodeError, OSError):
                continue
            files.append(data)
            if len(files) == count:
                return files
    if not files:
        raise UserError(f"none of the {index.num_samples} images can be decoded")
    return files


def images_a_second(
    files: Sequence[bytes], specs: Sequence[ViewSpec], official: Callable[[Image.Image], object], rounds: int, bar: Any
) -> dict[str, float]:
    """What one core does to the files, our way and the official one, and what the device has to do besides."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    work: dict[str, Callable[[], object]] = {
        "ours": partial(ours(specs), files),
        "official": partial(by_pillow(official), files),
    }
    if region.extension is not None:
        work["ours_region"] = partial(ours(specs, region.decode_for), files)
    on_device = device_part(specs, 8)
    times: dict[str, list[float]] = {name: [] for name in (*work, "device")}
    on_device()
    for _ in range(rounds):
        for name, step in work.items():
            times[name].append(timed(step, time.process_time) / len(files))
        times["device"].append(timed(on_device) / 8)
        bar.update()
    torch.set_num_threads(threads)
    ratios = [theirs / mine for mine, theirs in zip(times["ours"], times["official"], strict=True)]
    alike = [value for g, data in enumerate(files) for value in likeness(data, g, specs)]
    found = {} if region.extension is None else {"ours_region": 1 / min(times["ours_region"])} | against_whole(times)
    return {
        "ours": 1 / min(times["ours"]),
        "official": 1 / min(times["official"]),
        "ratio": min(times["official"]) / min(times["ours"]),
        "ratio_least": min(ratios),
        "ratio_greatest": max(ratios),
        "psnr_p5": float(np.percentile(alike, 5)),
        "psnr_mean": float(np.mean(alike)),
        "device_microseconds": 1e6 * min(times["device"]),
    } | found


def against_whole(times: dict[str, list[float]]) -> dict[str, float]:
    """How many times as fast decoding a region is as decoding the whole image."""
    ratios = [whole / part for whole, part in zip(times["ours"], times["ours_region"], strict=True)]
    ratio = min(times["ours"]) / min(times["ours_region"])
    return {"ratio_region": ratio, "ratio_region_least": min(ratios), "ratio_region_greatest": max(ratios)}


def loaders(a: Arguments, files: Sequence[bytes], bar: Any) -> dict[str, float]:
    """Whole loaders, which take turns; each starts its workers anew, outside of the time that counts."""
    with tempfile.TemporaryDirectory() as folder:
        root, urls = Path(folder), [shard.url for shard in open_shards(a.data, prefix="").shards]
        for number, data in enumerate(files):
            path = root / f"class{number % 10}" / f"{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        count = a.batches
        variants: dict[str, Callable[[], Iterable[object]]] = {
            "ours": lambda: ShardData(a.data, num_workers=a.workers).batches(0, 0, a.batch, MAE),
            "ours_one_worker": lambda: ShardData(a.data, num_workers=1).batches(0, 0, a.batch, MAE),
            "ours_processes": lambda: processes(a.data, a.batch, a.workers),
            "imagefolder": lambda: imagefolder(root, a.batch, count + _FIRST, a.workers),
            "webdataset": lambda: webdataset_loader(urls, a.batch, a.workers),
        }
        rates: dict[str, list[float]] = {name: [] for name in (*variants, "decode_and_crop")}
        alone = partial(ours(MAE), files)
        for _ in range(a.rounds):
            for name, make in variants.items():
                rates[name].append(rate(make(), a.batch, count))
            rates["decode_and_crop"].append(len(files) / on_one_thread(alone))
            bar.update()
    best = {name: max(values) for name, values in rates.items()}
    for name in ("imagefolder", "webdataset"):
        ratios = [mine / theirs for mine, theirs in zip(rates["ours"], rates[name], strict=True)]
        best |= {f"ratio_{name}": best["ours"] / best[name]}
        best |= {f"ratio_{name}_least": min(ratios), f"ratio_{name}_greatest": max(ratios)}
    return best | {
        "scaling": best["ours"] / best["ours_one_worker"] / a.workers,
        "overhead": best["decode_and_crop"] / best["ours_one_worker"] - 1,
        "ratio_processes": best["ours"] / best["ours_processes"],
    }


def on_one_thread(step: Callable[[], object]) -> float:
    """Seconds of one call with torch on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = timed(step)
    torch.set_num_threads(threads)
    return seconds


def timed(step: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, by a clock: of the wall, or of the processor for what one thread does alone."""
    start = clock()
    step()
    return clock() - start


def show(result: dict[str, Any]) -> None:
    for name in ("mae", "dino"):
        r = result[name]
        print(
            f"{name:6s} ours {r['ours']:7.0f}   official {r['official']:7.0f} images/s a core   {r['ratio']:.2f} times "
            f"({r['ratio_least']:.2f} to {r['ratio_greatest']:.2f})   p5 {r['psnr_p5']:.1f} dB   device "
            f"{r['device_microseconds']:.0f} µs/image"
        )
        if "ours_region" in r:
            print(
                f"{name:6s} ours, by regions {r['ours_region']:7.0f} images/s a core   {r['ratio_region']:.2f} times "
                f"whole images ({r['ratio_region_least']:.2f} to {r['ratio_region_greatest']:.2f})"
            )
    r = result["loader"]
    print(
        f"loader ours {r['ours']:7.0f}   ImageFolder {r['imagefolder']:.0f} ({r['ratio_imagefolder']:.2f} times)   "
        f"WebDataset {r['webdataset']:.0f} images/s ({r['ratio_webdataset']:.2f} times)"
    )
    print(
        f"       scaling {r['scaling']:.2f}   overhead over decode-and-crop {100 * r['overhead']:.0f} %   processes "
        f"instead of threads {r['ours_processes']:.0f} images/s"
    )


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

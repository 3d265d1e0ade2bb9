"""Times what the device does to the views of a recipe against torchvision's transforms, in one run.

    python scripts/bench_color.py +experiment=dino_vits16 trainer=cpu batch=8 out=bench.json

Flip, jitter, grayscale, blur, solarize and normalisation of uint8 views: ours are batched, and counted with the random
numbers that the reader draws for them; `torchvision` are its v2 transforms, an image at a time as tensors on the same
device; `pillow` are the transforms of the official DINO code, an image at a time on the CPU. The variants take turns,
so that a noisy machine slows all of them alike; a ratio is taken round by round, and its median, least and greatest
are reported (extra `interop`).
"""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.assemble import instantiate, objective_of
from pretrain.config.arguments import script
from pretrain.config.check import composed_without_data
from pretrain.records import Batch, UserError
from pretrain.view import color
from pretrain.view.color import Prepare
from pretrain.view.spec import ViewSpec


@dataclass(frozen=True)
class Arguments:
    batch: int = 8
    rounds: int = 9
    out: str | None = None


def ours(specs: Sequence[ViewSpec], batch: Batch) -> Callable[[], object]:
    prepare, g = Prepare(specs).to(batch.views[0].device), batch.g.cpu()
    return lambda: prepare(replace(batch, draws=color.draws(batch.seed, g, specs)))


def image_by_image(specs: Sequence[ViewSpec], batch: Batch, pillow: bool) -> Callable[[], object]:
    from torchvision.transforms.v2.functional import to_pil_image

    work = [
        (transform(spec, view, pillow), [to_pil_image(image.cpu()) if pillow else image for image in images])
        for spec, views in zip(specs, batch.views, strict=True)
        for view, images in enumerate(views.contiguous())
    ]
    return lambda: [torch.stack([change(image) for image in images]) for change, images in work]


def transform(spec: ViewSpec, view: int, pillow: bool) -> Callable[[Any], Tensor]:
    """Flip and colours of one view of a specification, as transforms of one image."""
    from PIL import ImageFilter, ImageOps
    from torchvision.transforms import v2

    to_float, changes = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)], [v2.RandomHorizontalFlip(spec.flip)]
    if (colors := spec.colors) is not None:
        jitter = v2.ColorJitter(colors.brightness, colors.contrast, colors.saturation, colors.hue)
        changes += [v2.RandomApply([jitter], colors.jitter), v2.RandomGrayscale(colors.grayscale)]
        chances = [one if isinstance(one, int | float) else one[view] for one in (colors.blur, colors.solarize)]
        (least, greatest), threshold = colors.blur_sigma, colors.solarize_threshold
        if pillow:
            blur = v2.Lambda(lambda image: image.filter(ImageFilter.GaussianBlur(random.uniform(least, greatest))))
            changes += [v2.RandomApply([blur], chances[0])]
            changes += [v2.RandomApply([v2.Lambda(lambda image: ImageOps.solarize(image, threshold))], chances[1])]
        else:
            blur = v2.GaussianBlur(2 * math.ceil(3 * greatest) + 1, (least, greatest))
            changes += [v2.RandomApply([blur], chances[0]), v2.RandomSolarize(threshold / 255, chances[1])]
    changes = changes + to_float if pillow else to_float + changes
    composed: Callable[[Any], Tensor] = v2.Compose([*changes, v2.Normalize(list(spec.mean), list(spec.std))])
    return composed


def main(arguments: Arguments, overrides: list[str]) -> None:
    cfg = composed_without_data(overrides, hardware=True)
    specs = objective_of(cfg).views
    if all(spec.colors is None for spec in specs):
        raise UserError("none of the recipe's views has `colors`: there is nothing to compare")
    device, g = instantiate(cfg.trainer).device, torch.arange(arguments.batch)
    shapes = [(spec.count, arguments.batch, *spec.height_width, 3) for spec in specs]
    views = tuple(torch.randint(0, 256, shape, dtype=torch.uint8).permute(0, 1, 4, 2, 3) for shape in shapes)
    batch = Batch(views, g, g, [], seed=0).to(device)
    variants = {"pretrain": ours(specs, batch)}
    variants |= {name: image_by_image(specs, batch, name == "pillow") for name in ("torchvision", "pillow")}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.rounds + 1):
        for name, step in variants.items():
            times[name].append(timed(step, device) / arguments.batch)
    result: dict[str, Any] = {}
    for name, (_, *rounds) in times.items():  # the first warms up
        ratios = [theirs / ours for ours, theirs in zip(times["pretrain"][1:], rounds, strict=True)]
        ratio = {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}
        result[name] = {"microseconds_per_image": 1e6 * statistics.median(rounds), "ratio": ratio}
        print(f"{name:11s} {1e6 * statistics.median(rounds):9.0f} µs/image   {ratio['median']:.2f} times ours ", end="")
        print(f"({ratio['least']:.2f} to {ratio['greatest']:.2f})")
    result["run"] = {"batch": arguments.batch, "rounds": arguments.rounds, "overrides": overrides}
    result["run"] |= {"device": str(device), "torch": torch.__version__, "threads": torch.get_num_threads()}
    if arguments.out is not None:
        Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

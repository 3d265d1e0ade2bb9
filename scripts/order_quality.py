"""Says how well an order mixes shards that are sorted by class, the worst that people have, and what it costs.

    python scripts/order_quality.py samples=50000 classes=10 shard=5000 'batch=[256]' 'streams=[64,16,1]'

The order needs the sizes of shards alone: nothing is read. `samples` lie sorted by class in shards of `shard` samples.
The first row is the first value of `streams`, `run_length`, `run_window` and `window` (`data.shuffle.*` of a run); each
further value is a row with the first ones of the others. In brackets stands what a true shuffle of all samples gives.

classes   in a batch, on average; "fewest" in any batch of the epoch
largest   share of a batch that one class has, on average
distance  total variation between the classes of a batch and those of all samples, over that of a true shuffle
mates     how often two samples of a batch are in one batch again in the next epoch, over that by chance
reads     range reads for a sample
shards    from how many the samples in memory are, and "memory" what they take, in MB of `bytes` a sample

`out` writes all as json, `picture` a chart.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pretrain.config.arguments import script
from pretrain.data.stream.order import Order, Shuffle
from pretrain.data.stream.windows import neighbours
from pretrain.records import UserError

COLUMNS = ["streams", "run length", "run window", "window", "batch", "classes (true)", "fewest (true)"]
COLUMNS += ["largest (true)", "distance", "mates", "reads", "shards", "memory"]

Ints = np.ndarray


@dataclass(frozen=True)
class Arguments:
    samples: int = 1_281_167
    classes: int = 1000
    shard: int = 1281  # samples of one
    batch: list[int] = field(default_factory=lambda: [256, 4096])
    streams: list[int] = field(default_factory=lambda: [Shuffle.streams, 16, 256])
    run_length: list[int] = field(default_factory=lambda: [Shuffle.run_length, 1])
    run_window: list[int] = field(default_factory=lambda: [Shuffle.run_window, 8192])
    window: list[int] = field(default_factory=lambda: [Shuffle.window, 512])
    bytes: int = 110_000  # of a sample
    seed: int = 0
    out: str | None = None
    picture: str | None = None

    @property
    def settings(self) -> list[dict[str, int]]:
        """The arguments of a Shuffle for each row."""
        lists = {name: getattr(self, name) for name in ("streams", "run_length", "run_window", "window")}
        base = {name: values[0] for name, values in lists.items()}
        return [base, *(base | {name: value} for name, values in lists.items() for value in values[1:])]


@dataclass(frozen=True)
class Mix:
    """How well batches of one size are mixed, on average over an epoch; `fewest` is of its worst batch."""

    classes: float
    fewest: int
    largest: float
    distance: float
    mates: float


def mix(first: Ints, second: Ints, classes: Ints, batch: int) -> Mix:
    """Judges two epochs, [N] samples in the order of their visit, given each sample's class."""
    number = len(first) // batch
    kinds = int(classes.max()) + 1
    place = np.arange(number * batch) // batch
    counts = np.bincount(place * kinds + classes[first[: len(place)]], minlength=number * kinds).reshape(number, kinds)
    whole = np.bincount(classes, minlength=kinds) / len(classes)
    distance = np.abs(counts / batch - whole).sum(axis=1) / 2
    held = (counts > 0).sum(axis=1)
    return Mix(
        classes=float(held.mean()),
        fewest=int(held.min()),
        largest=float(counts.max(axis=1).mean() / batch),
        distance=float(distance.mean()),
        mates=_mates(first, second, batch),
    )


def _mates(first: Ints, second: Ints, batch: int) -> float:
    """The share of pairs in one batch of the first epoch that are in one batch of the second, over that by chance."""
    number = len(first) // batch
    batches = np.full((2, len(first)), -1)
    for epoch, samples in enumerate((first, second)):
        batches[epoch, samples[: number * batch]] = np.arange(number * batch) // batch
    both = batches[:, (batches >= 0).all(axis=0)]
    _, together = np.unique(both[0] * number + both[1], return_counts=True)
    pairs = (together * (together - 1) / 2).sum()
    of_first = np.bincount(both[0], minlength=number)
    expected = (of_first * (of_first - 1) / 2).sum() * (batch - 1) / (number * batch - 1)
    return float(pairs / expected)


def visit(order: Order, epoch: int) -> tuple[Ints, float]:
    """(the samples of an epoch in the order of their visit, range reads for each)."""
    starts = np.cumsum(order.counts) - order.counts
    samples, reads = np.empty(order.num_samples, dtype=np.int64), 0
    for stream in range(order.streams):
        for window in itertools.count():
            g = order.numbers(epoch, stream, window)
            if not g:
                break
            here = order.window(epoch, stream, window)
            samples[np.asarray(g) - epoch * order.num_samples] = starts[here.shards] + here.members
            reads += sum(
                1 for _ in neighbours(sorted(zip(here.shards.tolist(), here.members.tolist(), g, strict=True)))
            )
    return samples, reads / order.num_samples


def shards_in_use(order: Order) -> int:
    """From how many shards the samples are that are held in the middle of an epoch."""
    held: set[int] = set()
    for stream in range(order.streams):
        window, _ = order.window_at(stream, order.num_samples // order.streams // 2)
        held |= set(order.window(0, stream, window).shards.tolist())
    return len(held)


def judged(a: Arguments, shuffle: Shuffle, classes: Ints, counts: Sequence[int]) -> dict[str, Any]:
    """One row: a setting, what its batches hold and what it costs."""
    order = Order(counts, a.seed, shuffle)
    (first, reads), (second, _) = (visit(order, epoch) for epoch in range(2))
    return {
        "shuffle": asdict(shuffle),
        "streams": order.streams,
        "batches": {str(size): asdict(mix(first, second, classes, size)) for size in a.batch},
        "reads": reads,
        "shards": shards_in_use(order),
        "memory_mb": order.streams * shuffle.window * a.bytes / 1e6,
    }


def measured(a: Arguments) -> dict[str, Any]:
    """All rows, and what a true shuffle comes to."""
    classes = np.arange(a.samples) * a.classes // a.samples
    whole, rest = divmod(a.samples, a.shard)
    counts = [a.shard] * whole + [rest] * (rest > 0)
    draw = np.random.Generator(np.random.PCG64(a.seed))
    first, second = draw.permutation(a.samples), draw.permutation(a.samples)
    true = {str(size): asdict(mix(first, second, classes, size)) for size in a.batch}
    rows = [judged(a, Shuffle(**one), classes, counts) for one in tqdm(a.settings, desc="settings", delay=2)]
    run = {name: value for name, value in vars(a).items() if name not in ("out", "picture")}
    return {"run": run, "true": true, "settings": rows}


def table(result: dict[str, Any]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for row in result["settings"]:
        shuffle = row["shuffle"]
        setting = [f"{row['streams']}", *(f"{shuffle[name]:,}" for name in ("run_length", "run_window", "window"))]
        cost = [f"{row['reads']:.2f}", f"{row['shards']:,}", f"{row['memory_mb']:,.0f}"]
        for size, here in row["batches"].items():
            true = result["true"][size]
            cells = [
                f"{here['classes']:.1f} ({true['classes']:.1f})",
                f"{here['fewest']} ({true['fewest']})",
                f"{here['largest']:.1%} ({true['largest']:.1%})",
                f"{here['distance'] / true['distance']:.2f}",
                f"{here['mates']:.2f}",
            ]
            lines.append(f"| {' | '.join([*setting, size, *cells, *cost])} |")
    return "\n".join(lines)


def draw_picture(result: dict[str, Any], path: Path) -> None:
    """Bars: the classes of a batch as a share of those that a true shuffle gives it."""
    from matplotlib.figure import Figure

    rows, sizes = result["settings"], list(result["true"])
    figure = Figure(figsize=(7, 1 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(sizes)
    for number, size in enumerate(sizes):
        shares = [row["batches"][size]["classes"] / result["true"][size]["classes"] for row in rows]
        at = np.arange(len(rows)) + (number - (len(sizes) - 1) / 2) * height
        axes.barh(at, shares, height, label=f"batch of {size}")
    names = [
        f"{row['streams']} streams, runs of {row['shuffle']['run_length']} in {row['shuffle']['run_window']:,}, "
        f"window {row['shuffle']['window']:,}"
        for row in rows
    ]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("classes in a batch / those in a batch of a true shuffle")
    figure.legend(loc="outside upper right", ncols=len(sizes), fontsize=8)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main(a: Arguments) -> None:
    lines = [
        f"{name}={value}: must be at least 1"
        for name in ("samples", "classes", "shard", "bytes")
        if (value := getattr(a, name)) < 1
    ]
    lines += [
        f"batch={size}: must be between 2 and samples (={a.samples})" for size in a.batch if not 2 <= size <= a.samples
    ]
    for one in a.settings:
        lines += [f"{name}={one[name]}: {reason}" for name, reason in Shuffle.problems(**one)]
    if lines:
        raise UserError("\n".join(dict.fromkeys(lines)))
    result = measured(a)
    print(table(result))
    if a.out is not None:
        Path(a.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if a.picture is not None:
        draw_picture(result, Path(a.picture))


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

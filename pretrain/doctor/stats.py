"""What shards hold: how many samples, how large, in which formats, of which classes; from the images' headers alone."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from pretrain.data.shard.index import Index
from pretrain.data.shard.sidecar import Part
from pretrain.doctor.image import label_trouble
from pretrain.doctor.parallel import ordered
from pretrain.doctor.sample import Samples
from pretrain.files import remove_leftovers, replace_file
from pretrain.view.array import read_npy_header
from pretrain.view.pixels import DecodeError

_HEAD = 1 << 16  # bytes of an image that are read first: its header is nearly always among them
_QUANTILES = {"least": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "greatest": 1.0}


@dataclass(frozen=True)
class Header:
    """What the header of an image says; sizes are of the image as it is stored, before it is turned upright."""

    format: str
    mode: str
    width: int
    height: int
    orientation: int


@dataclass(frozen=True)
class Stats:
    """Counts, and a row of values for each quantity: one an image whose header can be read."""

    shards: int
    samples: int
    size: int
    values: dict[str, NDArray[np.float64]]
    counts: dict[str, Counter[str]]

    def numbers(self) -> dict[str, Any]:
        """For json: counts, and quantiles of the quantities."""
        return {
            "shards": self.shards,
            "samples": self.samples,
            "bytes": self.size,
            "quantities": {name: _quantiles(values) for name, values in self.values.items() if len(values)},
            "counts": {name: dict(sorted(counter.items())) for name, counter in self.counts.items()},
        }

    def lines(self) -> list[str]:
        """A table."""
        rows = [f"{self.samples} samples in {self.shards} shards, {self.size / 1e6:.1f} MB"]
        rows.append(f"{'':12s}" + "".join(f"{name:>12s}" for name in (*_QUANTILES, "mean")))
        for name, values in self.values.items():
            if len(values):
                rows.append(f"{name:12s}" + "".join(f"{value:12.6g}" for value in _quantiles(values).values()))
        for name, counter in self.counts.items():
            shown = ", ".join(f"{value} ({count})" for value, count in counter.most_common(8))
            more = f", and {len(counter) - 8} more" if len(counter) > 8 else ""
            rows.append(f"{name:12s} {len(counter)}: {shown}{more}" if counter else f"{name:12s} none")
        return rows

    def write(self, out: Path) -> None:
        """`stats.json` and `stats.png` in a folder."""
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        replace_file(out / "stats.json", json.dumps(self.numbers(), indent=1).encode())
        replace_file(out / "stats.png", self._picture())

    def _picture(self) -> bytes:
        """A histogram of each quantity, and of the samples a class has."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        classes = np.array(list(self.counts["class"].values()), float)
        panels = self.values | {"samples of a class": classes}
        figure = Figure(figsize=(12, 3 * -(-len(panels) // 3)), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        for place, (name, values) in enumerate(panels.items()):
            axes = figure.add_subplot(-(-len(panels) // 3), 3, place + 1, title=name)
            if len(values):
                axes.hist(values, bins=_bins(values).tolist())
                axes.set_xscale("log" if _is_wide(values) else "linear")
        file = io.BytesIO()
        canvas.print_png(file)
        return file.getvalue()


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    found = np.quantile(values, list(_QUANTILES.values())).tolist()
    return dict(zip(_QUANTILES, found, strict=True)) | {"mean": float(values.mean())}


def _is_wide(values: NDArray[np.float64]) -> bool:
    return bool(values.min() > 0 and values.max() > 20 * values.min())


def _bins(values: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = float(values.min()), float(values.max())
    if _is_wide(values):
        return np.geomspace(low, high, 41)
    return np.linspace(low, high, 41) if high > low else np.array([low - 0.5, low + 0.5])


def stats(index: Index, workers: int) -> Stats:
    """Reads the header of every image, and every class number, with a progress bar."""
    samples = Samples(index)
    places = samples.places()
    names = ("width", "height", "short side", "aspect", "megapixels", "bytes")
    rows: list[Sequence[float]] = []
    counts = {name: Counter[str]() for name in ("format", "mode", "class", "turned by EXIF", "unreadable")}
    with ThreadPoolExecutor(workers) as pool:
        seen = ordered(pool, lambda place: _one(samples, *place), places)
        for part, header, label in tqdm(seen, total=len(places), desc="reading headers", unit="sample"):
            if label:
                counts["class"][label] += 1
            if header is None:
                counts["unreadable"][part.extension] += 1
                continue
            w, h = header.width, header.height
            rows.append((w, h, min(w, h), w / h, w * h / 1e6, part.stop - part.start))
            counts["format"][header.format] += 1
            counts["mode"][header.mode] += 1
            if header.orientation != 1:
                counts["turned by EXIF"][str(header.orientation)] += 1
    table = np.array(rows, float).reshape(-1, len(names))
    values = {name: table[:, column] for column, name in enumerate(names)}
    return Stats(len(index.shards), len(places), sum(shard.size for shard in index.shards), values, counts)


def _one(samples: Samples, shard: int, member: int) -> tuple[Part, Header | None, str]:
    """(where the image is, its header, the class number or "")."""
    image = samples.image(shard, member)
    header = None
    for stop in dict.fromkeys((min(image.stop, image.start + _HEAD), image.stop)):
        header = header or read_header(image.extension, samples.read(shard, image._replace(stop=stop)))
    label = b""
    for part in samples.index.parts(shard, member):
        if part.extension == "cls":
            label = samples.read(shard, part)
    return image, header, "" if label_trouble("cls", label) else label.decode().strip()


def read_header(extension: str, data: bytes) -> Header | None:
    """The header of an image, None where these bytes do not hold one."""
    if extension == "npy":
        return _array_header(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            orientation = Image.Image.getexif(image).get(0x0112, 1)  # PNG's own reads the whole image
            turned = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
            return Header(image.format or "?", image.mode, image.width, image.height, turned)
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, Image.DecompressionBombError):
        return None


def _array_header(data: bytes) -> Header | None:
    """An array [H, W] or [H, W, C]."""
    try:
        shape, _, dtype, _ = read_npy_header(data)
    except DecodeError:
        return None
    return Header("NPY", f"{dtype}×{(*shape, 1)[2]}", shape[1], shape[0], 1)

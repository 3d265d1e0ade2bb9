"""Writes shards anew: with other numbers of samples, smaller images, in another order.

Every kept sample comes with all its members. A killed call goes on where it stopped.
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.data.pack.write import write_sets
from pretrain.data.shard.index import Index, open_index
from pretrain.data.shard.label import read_classes
from pretrain.data.store import source
from pretrain.doctor.repair import distinct
from pretrain.doctor.sample import Samples, refuse_none
from pretrain.doctor.shard import refuse_their_folder
from pretrain.doctor.shrink import shrink
from pretrain.doctor.speed import Speed, compare
from pretrain.files import replace_file

_TIMED = 200  # images on which the speed is measured


@dataclass(frozen=True)
class Resharding:
    """How shards are written anew.

    Args:
        samples_per_shard: of all but the last, which may have fewer.
        short_side: images are shrunk to; None leaves them as they are.
        quality: of the JPEGs that are made.
        shuffle: the seed by which the order is mixed; None keeps it.
        name: what the shards' names begin with.
    """

    samples_per_shard: int = 1000
    short_side: int | None = None
    quality: int = 90
    shuffle: int | None = None
    name: str = "train"


@dataclass
class Outcome:
    """What was written: sizes are of the images; `images` counts what this call did to them."""

    samples: int
    shards: int
    bytes_before: int
    bytes_after: int
    images: Counter[str]
    speed: Speed | None = None

    def lines(self) -> list[str]:
        share = self.bytes_after / max(1, self.bytes_before)
        words = {"resized": "resized", "small": "small already", "other": "left as they are"}
        what = ", ".join(f"{self.images[how]} {word}" for how, word in words.items() if self.images[how])
        lines = [
            f"{self.samples} samples in {self.shards} shards; images {self.bytes_before / 1e6:.1f} MB before, "
            f"{self.bytes_after / 1e6:.1f} MB after ({share:.2f} times)" + (f"; {what}" if what else "")
        ]
        return lines if self.speed is None else [*lines, self.speed.line()]

    def numbers(self) -> dict[str, Any]:
        """For json."""
        speed = None if self.speed is None else asdict(self.speed)
        return vars(self) | {"images": dict(self.images), "speed": speed}


def reshard(index: Index, out: Path, how: Resharding, workers: int, timed: bool) -> Outcome:
    """Writes an index's samples to another folder, with a progress bar.

    Args:
        index: of the samples, less what is to be left out.
        out: the folder.
        how: what is to be done.
        workers: threads that read, shrink and write.
        timed: whether to measure what decoding and cutting cost before and after.

    Raises:
        UserError: there is no sample; the folder is the shards' own, or holds such shards already.
    """
    refuse_none(index)
    refuse_their_folder([shard.url for shard in index.shards], out)
    samples, done, lock = Samples(index), Counter[str](), threading.Lock()
    places = samples.places()
    if how.shuffle is not None:
        random.Random(how.shuffle).shuffle(places)

    def load(place: tuple[int, int]) -> dict[str, bytes]:
        members: dict[str, bytes] = {}
        for extension, data, is_image in samples.members(*place):
            if is_image and how.short_side is not None:
                what, extension, data = shrink(extension, data, how.short_side, how.quality)
                with lock:
                    done[what] += 1
            if extension and not extension.startswith("_"):  # names that the tar's writer keeps for itself
                members.setdefault(extension, data)
        return members

    keys = list(zip(distinct(index.key(*place) for place in places), places, strict=True))
    settings = (index.digest, how)
    written = write_sets(out, {how.name: keys}, load, how.samples_per_shard, _classes(index), settings, workers)
    after = Samples(open_index([shard.url for shard in written], prefix=""))
    outcome = Outcome(len(places), len(written), _size(samples), _size(after), done)
    if timed:
        outcome.speed = _measure(samples, places, after)
    replace_file(out / "reshard.json", json.dumps({"how": asdict(how)} | outcome.numbers(), indent=1).encode())
    return outcome


def _measure(before: Samples, places: Sequence[tuple[int, int]], after: Samples) -> Speed | None:
    """On at most 200 images, spread over all."""
    step = max(1, len(places) // _TIMED)
    chosen = range(0, len(places), step)[:_TIMED]
    theirs = after.places()
    files = [
        (before.read(old[0], before.image(*old)), after.read(new[0], after.image(*new)))
        for old, new in ((places[number], theirs[number]) for number in chosen)
    ]
    return compare([old for old, _ in files], [new for _, new in files])


def _size(samples: Samples) -> int:
    parts = (samples.image(*place) for place in samples.places())
    return sum(part.stop - part.start for part in parts)


def _classes(index: Index) -> list[str]:
    """The class names beside the shards, if all lie in one folder."""
    folders = {Path(shard.url).parent for shard in index.shards if source.is_local(shard.url)}
    return (read_classes(folders.pop()) or []) if len(folders) == 1 else []

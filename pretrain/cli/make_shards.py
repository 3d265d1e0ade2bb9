"""Packs images, or ImageNet as people have it, into WebDataset shards with their index.

    pretrain shards images=IMAGES out=shards samples_per_shard=1000
    pretrain shards imagenet=FOLDER out=shards

`images` is a folder, a tar, or either of tars for a class each. Subfolders are classes,
numbered in the order of their names; classes.json says which, and a second set written to the
same folder (name=val) is numbered by it. A flat folder has no labels. Files are copied as they
are, in an order that is shuffled by `seed`; nothing is unpacked. A killed run goes on when it
is started again.

`imagenet` is a folder with the official archives, Kaggle's tree, or `train` and `val`; both
sets are written. It stands for images=… val=… val_labels=…, which may be given instead: the
last says which class each image of a flat `val` is of.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.config.arguments import word
from pretrain.config.problem import UserError

if TYPE_CHECKING:
    from pretrain.data.pack.gather import Gathered, Picture


@dataclass(frozen=True)
class Arguments:
    out: str = word("A folder for the shards and their index.", example="shards")
    images: str | None = word(
        "A folder or tar of images, with a subfolder or tar for each class.", None, example="IMAGES"
    )
    imagenet: str | None = word(
        "A folder with ImageNet's archives, Kaggle's tree, or `train` and `val`.", None, example="IMAGENET"
    )
    val: str | None = word("A folder or tar of images for a second set, called val.", None, example="IMAGES/val")
    val_labels: str | None = word("A file that says which class each image of `val` is of.", None, example="val.txt")
    samples_per_shard: int = word("How many images a shard holds.", 1000, example="5000")
    name: str = word("What the set is called: its shards are NAME-000000.tar and so on.", "train", example="val")
    seed: int = word("Of the shuffle.", 0, example="1")


def main(a: Arguments) -> None:
    from pretrain.data.pack.write import write_sets
    from pretrain.data.shard.label import CLASSES, read_classes

    if a.samples_per_shard < 1:
        raise UserError(f"samples_per_shard={a.samples_per_shard}: must be at least 1")
    if not re.fullmatch(r"[\w-]+", a.name):
        raise UserError(f"name={a.name}: must be letters, digits, - and _, for it begins the shards' names")
    out, sets = Path(a.out), gathered(a)
    found = sorted({picture.label for one in sets.values() for picture in one.pictures if picture.label is not None})
    classes = (read_classes(out) or found) if found else []
    if unknown := sorted(set(found) - set(classes)):
        raise UserError(
            f"images={a.images}: {out / CLASSES} does not know the classes {', '.join(unknown[:5])}; write the set "
            "with all classes first, or choose another folder"
        )
    numbers = {name: str(number).encode() for number, name in enumerate(classes)}

    def load(picture: Picture) -> dict[str, bytes]:
        members = {picture.extension: picture.read()}
        return members if picture.label is None else members | {"cls": numbers[picture.label]}

    keys = {name: keyed(one.pictures, a.seed) for name, one in sets.items()}
    shards = write_sets(out, keys, load, a.samples_per_shard, classes)
    images, others = (
        sum(sizes) for sizes in zip(*((len(one.pictures), one.others) for one in sets.values()), strict=True)
    )
    skipped = f"; {others} files that are no images were left out" if others else ""
    print(f"{images} images of {len(found) or 'no'} classes in {len(shards)} shards{skipped}")


def gathered(a: Arguments) -> dict[str, Gathered]:
    """The images of each set, all of them labelled or none.

    Raises:
        UserError: what is asked for is not there, or which classes it is of cannot be told.
    """
    from pretrain.data.pack import imagenet
    from pretrain.data.pack.gather import Gathered, gather

    val, labels = Path(a.val) if a.val else None, None
    if a.images is not None and a.imagenet is None:
        images = Path(a.images)
    elif a.imagenet is not None and a.images is None:
        images, there, labels = imagenet.find(Path(a.imagenet))
        val = val or there
    elif a.images is None:
        raise UserError("images=… is missing: give it, or imagenet=…")
    else:
        raise UserError(f"images={a.images} and imagenet={a.imagenet}: give one of the two, not both")
    if a.val_labels is not None:
        labels = Path(a.val_labels)
        if val is None:
            raise UserError(f"val_labels={a.val_labels}: is for val=…, which is missing")
        if not labels.exists():
            raise UserError(f"val_labels={a.val_labels}: there is no such file")
    for place in (images, val):
        if place is not None and Path(a.out).resolve().is_relative_to(place.resolve()):
            raise UserError(f"out={a.out}: lies in `{place}`, whose images are read; choose a folder outside it")
    sets = {a.name: gather(images)}
    if val is None:
        return sets
    if a.name == "val":
        raise UserError("name=val: is the name of the second set; choose another for the first")
    classes = sorted({picture.label for picture in sets[a.name].pictures if picture.label is not None})
    pictures, others = gather(val)
    if a.val_labels is not None or (labels is not None and pictures[0].label is None):
        assert labels is not None
        pictures = imagenet.labelled(pictures, labels, classes)
    if classes and pictures[0].label is None:
        raise UserError(f"val={val}: which classes its images are of cannot be told: give val_labels=…")
    if strangers := sorted({picture.label for picture in pictures if picture.label is not None} - set(classes)):
        raise UserError(
            f"val={val}: {', '.join(strangers[:5])} are classes without a training image; give val_labels=…"
        )
    return sets | {"val": Gathered(pictures, others)}


def keyed(pictures: Sequence[Picture], seed: int) -> list[tuple[str, Picture]]:
    """Images in their order, by the stems of their names, which are numbered where they are not all different."""
    shuffled = list(pictures)
    random.Random(seed).shuffle(shuffled)
    stems = [re.sub(r"[^0-9A-Za-z_-]", "_", picture.stem)[:64] for picture in shuffled]
    if len(set(stems)) < len(stems) or not all(stems):
        stems = [f"{number:08d}_{stem}" for number, stem in enumerate(stems)]
    return list(zip(stems, shuffled, strict=True))

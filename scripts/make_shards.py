"""Turns a folder of images into WebDataset shards with their index.

    python scripts/make_shards.py images=ImageNet/train out=shards samples_per_shard=1000

Subfolders are classes, numbered in the order of their names; classes.json says which, and a second set written to the
same folder (name=val) is numbered by it. A flat folder has no labels. Files are copied as they are, in an order that is
shuffled by `seed`. A killed run goes on when it is started again.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pretrain.arguments import script
from pretrain.data.sample import IMAGES
from pretrain.data.write import CLASSES, read_classes, write_shards
from pretrain.records import UserError


@dataclass(frozen=True)
class Arguments:
    images: str
    out: str
    samples_per_shard: int = 1000
    name: str = "train"
    seed: int = 0


def main(arguments: Arguments) -> None:
    folder, out = Path(arguments.images), Path(arguments.out)
    if not folder.is_dir():
        raise UserError(f"images={folder}: there is no such folder")
    if arguments.samples_per_shard < 1:
        raise UserError(f"samples_per_shard={arguments.samples_per_shard}: must be at least 1")
    if not re.fullmatch(r"[\w-]+", arguments.name):
        raise UserError(f"name={arguments.name}: must be letters, digits, - and _, for it begins the shards' names")
    files = sorted(files_in(folder))
    images = [path for path in files if path.suffix.lower().lstrip(".") in IMAGES]
    if not images:
        raise UserError(f"images={folder}: there is no image in it ({', '.join(IMAGES)})")
    found = sorted({path.relative_to(folder).parts[0] for path in images if path.parent != folder})
    if found and any(path.parent == folder for path in images):
        raise UserError(f"images={folder}: it holds images beside class folders; move them into a folder of their own")
    classes = (read_classes(out) or found) if found else []
    if unknown := sorted(set(found) - set(classes)):
        raise UserError(
            f"images={folder}: {out / CLASSES} does not know the classes {', '.join(unknown[:5])}; write the set with "
            "all classes first, or choose another folder"
        )
    random.Random(arguments.seed).shuffle(images)
    labels = {name: str(number).encode() for number, name in enumerate(classes)}

    def load(path: Path) -> dict[str, bytes]:
        members = {path.suffix.lower().lstrip("."): path.read_bytes()}
        return members | ({"cls": labels[path.relative_to(folder).parts[0]]} if classes else {})

    keys = [
        (f"{number:08d}_{re.sub(r'[^0-9A-Za-z_-]', '_', path.stem)[:64]}", path) for number, path in enumerate(images)
    ]
    shards = write_shards(out, arguments.name, keys, load, arguments.samples_per_shard, classes)
    skipped = f"; {len(files) - len(images)} files that are no images were left out" if len(files) > len(images) else ""
    print(f"{len(images)} images of {len(found) or 'no'} classes in {len(shards)} shards{skipped}")


def files_in(folder: Path) -> Iterator[Path]:
    """All files below a folder, through links to other folders (each visited once), without what is hidden."""
    visited = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(parent))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(parent, name)) not in visited
        )
        yield from (Path(parent, name) for name in names if not name.startswith("."))


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

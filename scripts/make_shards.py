"""Turns a folder of images into WebDataset shards with their index.

    python scripts/make_shards.py images=ImageNet/train out=shards samples_per_shard=1000

Subfolders are classes, numbered in the order of their names (classes.json says which); a flat folder has no labels. The
files are copied as they are, in an order shuffled by `seed`. A killed run goes on when it is started again.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

from pretrain.arguments import script
from pretrain.data.index import IMAGES
from pretrain.data.write import write_classes, write_shards
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
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower().lstrip(".") in IMAGES]
    if not images:
        raise UserError(f"images={folder}: there is no image in it ({', '.join(IMAGES)})")
    classes = sorted({path.relative_to(folder).parts[0] for path in images if path.parent != folder})
    if classes and any(path.parent == folder for path in images):
        raise UserError(f"images={folder}: it holds images beside class folders; move them into a folder of their own")
    random.Random(arguments.seed).shuffle(images)
    labels = {name: str(number).encode() for number, name in enumerate(classes)}

    def load(path: Path) -> dict[str, bytes]:
        members = {path.suffix.lower().lstrip("."): path.read_bytes()}
        return members | ({"cls": labels[path.relative_to(folder).parts[0]]} if classes else {})

    keys = [
        (f"{number:08d}_{re.sub(r'[^0-9A-Za-z_-]', '_', path.stem)[:64]}", path) for number, path in enumerate(images)
    ]
    shards = write_shards(out, arguments.name, keys, load, arguments.samples_per_shard)
    if classes:
        write_classes(out, classes)
    skipped = f"; {len(files) - len(images)} files that are no images were left out" if len(files) > len(images) else ""
    print(f"{len(images)} images of {len(classes) or 'no'} classes in {len(shards)} shards{skipped}")


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

"""ImageNet-1k (ILSVRC 2012) as people have it: where its parts lie, and which class each validation image is of.

Classes are synsets (`n01440764`), numbered in their sorted order, as torchvision and timm number them. The ids in the
official `ILSVRC2012_validation_ground_truth.txt` have an order of their own, which the development kit's `meta.mat`
gives (Russakovsky et al., arXiv 1409.0575).
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from pretrain.config.problem import UserError
from pretrain.data.pack.gather import Picture

_KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", ".")
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_DEVKIT = "ILSVRC2012_devkit_t12"
_LABELS = (
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    _GROUND_TRUTH,
    f"{_DEVKIT}.tar.gz",
    _DEVKIT,
    "val.txt",
)

Names = Callable[[str], bytes | None]  # the content of a file by its name, None if it is not there


def find(root: Path) -> tuple[Path, Path, Path | None]:
    """(the training images, the validation images, what says which class these are of, if that is there).

    Raises:
        UserError: one of the first two is missing.
    """
    parts = []
    for name in ("train", "val"):
        places = [root / f"ILSVRC2012_img_{name}.tar", *(root / folder / name for folder in _KAGGLE)]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            listed = ", ".join(str(place.relative_to(root)) for place in (places[0], places[1], places[-1]))
            raise UserError(f"imagenet={root}: the {name} images are not there, as one of {listed}")
        parts.append(place)
    return parts[0], parts[1], next((root / name for name in _LABELS if (root / name).exists()), None)


def labelled(pictures: Sequence[Picture], labels: Path, classes: Sequence[str]) -> list[Picture]:
    """Validation images with the classes that a file of labels, or a development kit, gives them.

    Args:
        pictures: of validation, all of them.
        labels: `LOC_val_solution.csv`; lines `FILE CLASS`; one synset a line, in the order of the files' names; the
            official ids a line, beside `meta.mat` or `map_clsloc.txt`; the development kit's folder or archive.
        classes: all synsets, sorted.

    Raises:
        UserError: labels are missing, are too many or too few, or name a class that is not among `classes`.
    """
    pictures = sorted(pictures, key=lambda picture: picture.name)
    try:
        found = _read(pictures, labels, classes)
    except UserError:
        raise
    except (ValueError, csv.Error, tarfile.TarError, OSError, EOFError, zlib.error) as failure:
        raise UserError(f"val_labels={labels}: it cannot be read ({failure})") from None
    if unknown := sorted(set(found) - set(classes)):
        raise UserError(f"val_labels={labels}: {_some(unknown)} are classes without a training image")
    return [picture._replace(label=label) for picture, label in zip(pictures, found, strict=True)]


def _read(pictures: Sequence[Picture], labels: Path, classes: Sequence[str]) -> list[str]:
    if labels.is_dir():
        return _by_ids(pictures, labels, lambda name: _content(labels, name))
    if labels.name.endswith((".tar.gz", ".tgz", ".tar")):
        with tarfile.open(labels) as tar:
            places = {member.name.rpartition("/")[2]: member for member in tar if member.isfile()}

            def inside(name: str) -> bytes | None:
                file = tar.extractfile(places[name]) if name in places else None
                return None if file is None else file.read()

            return _by_ids(pictures, labels, inside)
    text = labels.read_bytes().decode("utf-8-sig")
    if labels.suffix == ".csv":
        return _by_name(pictures, labels, _solution(labels, text))
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if rows and all(len(row) == 2 for row in rows):
        return _by_name(pictures, labels, _numbered(labels, rows, classes))
    if rows and all(len(row) == 1 and row[0].isdecimal() for row in rows):
        return _by_ids(pictures, labels, lambda name: _content(labels.parent, name), [int(row[0]) for row in rows])
    if not rows or any(len(row) != 1 for row in rows):
        raise UserError(f"val_labels={labels}: neither a class a line, nor a file and its class")
    return _in_order(pictures, labels, [row[0] for row in rows])


def _in_order(pictures: Sequence[Picture], labels: Path, found: list[str]) -> list[str]:
    if len(found) != len(pictures):
        raise UserError(
            f"val_labels={labels}: it has {len(found)} labels for {len(pictures)} images, so that which label is of "
            "which image cannot be told"
        )
    return found


def _by_name(pictures: Sequence[Picture], labels: Path, by_stem: Mapping[str, str]) -> list[str]:
    if missing := [picture.name for picture in pictures if picture.stem not in by_stem]:
        raise UserError(f"val_labels={labels}: it has no label for {_some(missing)}")
    return [by_stem[picture.stem] for picture in pictures]


def _solution(labels: Path, text: str) -> dict[str, str]:
    """Kaggle's table: ImageId, and PredictionString, which begins with the synset."""
    rows = csv.DictReader(io.StringIO(text))
    pairs = ((row.get("ImageId") or "", ((row.get("PredictionString") or "").split() or [""])[0]) for row in rows)
    return _consistent(labels, pairs)


def _consistent(labels: Path, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The class of each image, none of which is said to be of two."""
    classes: dict[str, str] = {}
    for image, label in pairs:
        if classes.setdefault(image, label) != label:
            raise UserError(f"val_labels={labels}: it says that `{image}` is {classes[image]}, and that it is {label}")
    return classes


def _numbered(labels: Path, rows: Sequence[Sequence[str]], classes: Sequence[str]) -> dict[str, str]:
    """Lines `FILE CLASS`, a class being a synset or its number among all, from 0."""
    stems = [re.sub(r"\.[^./]*$", "", name.rpartition("/")[2]) for name, _ in rows]
    if all(value == str(number) for number, (_, value) in enumerate(rows, 1)):
        raise UserError(
            f"val_labels={labels}: it numbers the images and says nothing of classes (LOC_val_solution.csv)"
        )
    values = [value for _, value in rows]
    if all(value.isdecimal() for value in values):
        if (most := max(map(int, values))) >= len(classes):
            raise UserError(f"val_labels={labels}: there is no class {most}, for {len(classes)} are counted from 0")
        values = [classes[int(value)] for value in values]
    return _consistent(labels, zip(stems, values, strict=True))


def _by_ids(pictures: Sequence[Picture], labels: Path, read: Names, ids: list[int] | None = None) -> list[str]:
    """By the official ids: `read` gives the development kit's files, of which the list of ids is one."""
    if ids is None:
        content = read(_GROUND_TRUTH)
        if content is None:
            raise UserError(f"val_labels={labels}: there is no {_GROUND_TRUTH} in it")
        ids = [int(word) for word in content.decode().split()]
    if (meta := read("meta.mat")) is not None:
        synsets = _meta(labels, meta)
    elif (table := read("map_clsloc.txt")) is not None:
        synsets = {int(row[1]): row[0] for row in map(str.split, table.decode().splitlines()) if len(row) > 1}
    else:
        raise UserError(
            f"val_labels={labels}: which classes its numbers mean says the development kit's meta.mat (or "
            "map_clsloc.txt), which is not beside it: give the development kit itself"
        )
    if unknown := sorted({str(one) for one in ids if one not in synsets}):
        raise UserError(f"val_labels={labels}: {_some(unknown)} are ids of no class")
    return _in_order(pictures, labels, [synsets[one] for one in ids])


def _meta(labels: Path, content: bytes) -> dict[int, str]:
    """Id → synset, of those that have none below them."""
    try:
        rows = np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True)["synsets"])
        columns = (rows["ILSVRC2012_ID"], rows["WNID"], rows["num_children"])
    except (ValueError, KeyError, IndexError, TypeError) as failure:
        raise UserError(f"val_labels={labels}: its meta.mat cannot be read ({failure})") from None
    return {int(number): str(synset) for number, synset, children in zip(*columns, strict=True) if int(children) == 0}


def _content(folder: Path, name: str) -> bytes | None:
    """A file of a folder, or of the development kit in it."""
    places = (folder / name, folder / "data" / name, folder / _DEVKIT / "data" / name)
    return next((place.read_bytes() for place in places if place.is_file()), None)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"`{name}`" for name in names[:3]) + more

"""Which class a sample is of, where it has a label: pretraining needs none, probes do.

`cls` is WebDataset's member with a number; `json:KEY` a value in its `.json` member, `json:a.b` one further inside;
`none` looks for no label. What cannot be read as a class number is −1, no label: a broken json is no reason to lose an
image. A name is looked up in `classes.json` beside the shards, and refused where that does not know it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.config.problem import UserError
from pretrain.data.shard.sidecar import Shard
from pretrain.data.store import source

CLASSES = "classes.json"  # beside the shards: the name of each class number
NONE = -1


class UnknownClassError(ValueError):
    """A label is a name, and which number it has is not known."""


@dataclass(frozen=True)
class Labels:
    """Where labels are.

    Args:
        where: `cls`, `json:KEY` or `none`; None means `none`.
        classes: the number of each name.
        prefix: what keys begin with where a mistake's advice names them: `data.` in a run, nothing in a script.
        strict: whether a name without a number is refused, rather than no label.
    """

    where: str | None = "cls"
    classes: Mapping[str, int] = field(default_factory=dict)
    prefix: str = "data."
    strict: bool = True

    @classmethod
    def of(cls, where: str | None, shards: Iterable[Shard], prefix: str = "data.", strict: bool = True) -> Labels:
        """For shards, with the names that stand beside them.

        Raises:
            UserError: their folders number names differently, if `strict`; otherwise names are no labels then.
        """
        needs_names = where is not None and where.startswith("json:")
        try:
            return cls(where, _classes_beside(shards) if needs_names else {}, prefix, strict)
        except UserError:
            if strict:
                raise
            return cls(where, {}, prefix, strict)

    @property
    def extension(self) -> str | None:
        """Of the member that holds the label."""
        return None if self.where in (None, "none") else str(self.where).partition(":")[0]

    def __str__(self) -> str:
        """What is looked for, for messages."""
        said = f"{self.prefix}labels={self.where or 'none'}"
        if self.extension == "json":
            return f"`{self._path}` in its `.json` member, {said}"
        return f"a `.cls` member with a class number, {said}" if self.extension else said

    def read(self, members: Mapping[str, bytes]) -> int:
        """The class number of a sample by its members, extension → bytes; −1 where it has none.

        Raises:
            UnknownClassError: its label is a name without a number.
        """
        text = members.get(self.extension or "")
        if text is None:
            return NONE
        return _number(text.strip()) if self.extension == "cls" else self._in_json(text)

    @property
    def _path(self) -> str:
        return str(self.where).partition(":")[2]

    def _in_json(self, text: bytes) -> int:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return NONE
        for key in self._path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, float) and value.is_integer():  # as tables write numbers
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value if 0 <= value < 10**9 else NONE
        if not isinstance(value, str):
            return NONE
        number = self.classes.get(value, _number(value.strip().encode(errors="replace")))
        if number == NONE and value.strip() and self.strict:
            there = "is not in the" if self.classes else "no"
            there += f" {CLASSES} beside the shards" + ("" if self.classes else " lists")
            raise UnknownClassError(
                f"a label is the name `{value[:80]}` ({self}), which {there}: put all names there, in the order of "
                "their numbers"
            )
        return number


def mistake(where: str | None) -> str | None:
    """What is wrong with a place of labels, None if it can be one."""
    if where in (None, "cls", "none") or (str(where).startswith("json:") and all(str(where)[5:].split("."))):
        return None
    return "must be cls, json:KEY (json:a.b for a value further inside) or none"


def read_classes(folder: Path) -> list[str] | None:
    """The class names that shards in a folder were written with, None if there are none."""
    path = folder / CLASSES
    if not path.is_file():
        return None
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as failure:
        raise UserError(f"`{path}` is no json: {failure}") from None
    if not isinstance(classes, list) or len({*map(str, classes)}) < len(classes):
        raise UserError(f"`{path}` must be a list of names, each once: the first has number 0")
    return [str(name) for name in classes]


def _classes_beside(shards: Iterable[Shard]) -> dict[str, int]:
    folders = {shard.url.rpartition("/")[0] for shard in shards if source.is_local(shard.url)}
    found = {folder: classes for folder in sorted(folders) if (classes := read_classes(Path(f"{folder}/")))}
    first = next(iter(found), "")
    if others := [folder for folder, classes in found.items() if classes != found[first]]:
        raise UserError(f"`{first}/{CLASSES}` and `{others[0]}/{CLASSES}` number names differently: make them agree")
    return {name: number for number, name in enumerate(found.get(first, ()))}


def _number(text: bytes) -> int:
    return int(text) if re.fullmatch(rb"\d{1,9}", text) else NONE

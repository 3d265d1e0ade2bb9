"""Where a configuration key is defined, what it means there, and what the recipes make of it.

A key is defined by the yaml of its group's option, or by the one that this file builds on. Its meaning is the comment
there; a key without one means what the same argument of the same class means in another file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pretrain.config.comments import Commented, read
from pretrain.config.overrides import folder

HYDRAS = {  # words of Hydra's own in a node
    "_target_": "the class that is built, with the keys beside it as its arguments",
    "_partial_": "true: the run builds the class, and adds what only the run knows; false: these keys are enough",
}
ABSENT = object()  # there is no such key


@dataclass(frozen=True)
class Sources:
    """The yaml files of a configuration.

    Args:
        choices: the option of each group.
        recipe: what `+experiment=` names, "" without one.
        folders: where yaml files are searched, the first one first.
    """

    choices: dict[str, str]
    recipe: str = ""
    folders: tuple[Path, ...] = ()

    def files(self, key: str) -> tuple[list[Path], str]:
        """(the files that may define a key, those first that overrule the others; its name in them)."""
        group, _, rest = key.partition(".")
        if group in self.choices:
            return self.chain(group, self.choices[group]), rest
        return [folder() / "pretrain.yaml"], key

    def chain(self, group: str, option: str) -> list[Path]:
        """The file of an option and those that it builds on."""
        places = (home / group / f"{option}.yaml" for home in (self.folders or (folder(),)))
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            return []
        return [path, *(below for base in reversed(read(path).bases) for below in self.chain(group, base))]

    def default(self, key: str) -> tuple[Any, Path | None]:
        """(what a key is without a recipe, with its interpolations as they stand, and the file that says so)."""
        return _first(*self.files(key))

    def of_recipe(self, key: str) -> tuple[Any, Path | None]:
        """(what the recipe itself makes of a key, and the file that says so); a node that it turns off has no keys."""
        files = self.chain("experiment", self.recipe) if self.recipe else []
        parts = key.split(".")
        for end in range(1, len(parts)):
            above, path = _first(files, ".".join(parts[:end]))
            if path is not None and not isinstance(above, dict):
                return ABSENT, path
        return _first(files, key)

    def target(self, node: str) -> str:
        """The dotted name of the class of a node, "" without one; of a node that the recipe turns off, the default."""
        named = (self.of_recipe(f"{node}._target_")[0], self.default(f"{node}._target_")[0])
        return next((value for value in named if isinstance(value, str)), "")

    def meaning(self, key: str, target: str) -> str:
        """What a key of a node of the class `target` means, "" where no file says so."""
        last = key.rpartition(".")[2]
        files, name = self.files(key)
        if not name:
            return read(folder() / "pretrain.yaml").remarks.get(key, "")
        own = next((said for path in reversed(files) if (said := read(path).comments.get(name))), "")
        return own or HYDRAS.get(last, "") or arguments().get((target, last), "")


def _first(files: Sequence[Path], name: str) -> tuple[Any, Path | None]:
    return next(((read(path).values[name], path) for path in files if name in read(path).values), (ABSENT, None))


@cache
def groups() -> dict[str, list[str]]:
    """The options of each group that a configuration has, and of `experiment`, by name."""
    places = sorted(path for path in folder().iterdir() if path.is_dir())
    return {place.name: sorted(path.stem for path in place.glob("*.yaml")) for place in places}


@cache
def options() -> dict[Path, Commented]:
    """The files of all options, recipes left out."""
    return {path: read(path) for path in sorted(folder().glob("*/*.yaml")) if path.parent.name != "experiment"}


@cache
def arguments() -> dict[tuple[str, str], str]:
    """What files say of the arguments of classes: (dotted name, argument) → meaning, by the first file that does."""
    found: dict[tuple[str, str], str] = {}
    for file in options().values():
        for key, comment in file.comments.items():
            node, dot, argument = key.rpartition(".")
            target = file.values.get(f"{node}{dot}_target_")
            if isinstance(target, str) and argument not in HYDRAS:
                found.setdefault((target, argument), comment)
    return found


def elsewhere(key: str) -> str:
    """The option of a key's group that has this key, the one first on which others build; "" if none has it."""
    group, _, name = key.partition(".")
    having = [
        (bool(file.bases), path.stem)
        for path, file in options().items()
        if path.parent.name == group and name in file.values
    ]
    return min(having)[1] if having else ""


def recipes(key: str, target: str) -> Iterator[tuple[str, Any]]:
    """What each recipe makes of a key, by itself or, where its node has the class `target`, by the options it picks."""
    for name in groups().get("experiment", []):
        plain = read(folder() / "pretrain.yaml").choices
        files = Sources({}, name).chain("experiment", name)
        picked = {group: option for path in reversed(files) for group, option in read(path).choices.items()}
        sources = Sources(plain | picked, name)
        value, path = sources.of_recipe(key)
        if path is None and sources.target(key.rpartition(".")[0]) == target:
            value = sources.default(key)[0]
        if value is not ABSENT:
            yield name, value

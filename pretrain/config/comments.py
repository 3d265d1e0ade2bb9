"""A yaml file with its comments, which PyYAML drops: they say what keys mean.

The comment of a key stands on its own line, after the value, or in whole lines right above it. The comment that a file
opens with is its heading. What a file chooses in its `defaults` is commented on the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from pretrain.config import saved

_BESIDE = re.compile(r"\s*:?\s*#\s*(.*)")
_OVERRIDE = re.compile(r"(?:override\s+)?/?([\w/]+)(?:@.*)?")


@dataclass(frozen=True)
class Commented:
    """What one file says, by dotted key.

    Args:
        heading: the comment that it opens with.
        values: of all keys, those of nodes included; interpolations are left as they stand.
        comments: of the keys that have one.
        bases: the files of the same folder that it builds on, without their ending; later ones overrule earlier ones.
        choices: the options of groups that its `defaults` choose, by group.
        remarks: the comments on these choices, by group.
    """

    heading: str
    values: dict[str, Any]
    comments: dict[str, str]
    bases: tuple[str, ...]
    choices: dict[str, str]
    remarks: dict[str, str]


@lru_cache(maxsize=256)
def read(path: Path) -> Commented:
    text = path.read_text(encoding="utf-8")
    plain = saved.read(path)
    found = dict(_comments(yaml.compose(text), text.splitlines(), ""))
    defaults = plain.pop("defaults", [])
    bases = tuple(one for one in defaults if isinstance(one, str) and one != "_self_")
    choices = {_group(key): str(option) for one in defaults if isinstance(one, dict) for key, option in one.items()}
    remarks = {_group(key[1]): comment for key, comment in found.items() if key[0] == "defaults"}
    comments = {key[1]: comment for key, comment in found.items() if key[0] == "key"}
    return Commented(_heading(text), dict(_values(plain, "")), comments, bases, choices, remarks)


def first_sentence(comment: str) -> str:
    return re.split(r"(?<=[.])\s", comment, maxsplit=1)[0].rstrip(".")


def _group(key: str) -> str:
    """The group of an entry of `defaults`: `encoder`, or `override /encoder`."""
    match = _OVERRIDE.fullmatch(key)
    return match[1] if match else key


def _values(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from _values(value, f"{prefix}{name}.")


def _comments(node: yaml.Node | None, lines: list[str], prefix: str) -> Iterator[tuple[tuple[str, str], str]]:
    """(("key" or "defaults", dotted key), comment) of all keys below a node."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if comment := _comment(key, value, lines):
            yield ("key", f"{prefix}{key.value}"), comment
        if prefix == "" and key.value == "defaults":
            entries = [one for one in value.value if isinstance(one, yaml.MappingNode)]
            for group, option in (pair for entry in entries for pair in entry.value):
                if comment := _comment(group, option, lines):
                    yield ("defaults", group.value), comment
        else:
            yield from _comments(value, lines, f"{prefix}{key.value}.")


def _comment(key: yaml.Node, value: yaml.Node, lines: list[str]) -> str:
    """What stands right above a key, and after it and its value."""
    block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    end = key.end_mark if block else value.end_mark
    beside = _BESIDE.fullmatch(lines[end.line][end.column :]) if end.line < len(lines) else None
    return " ".join([*_above(key.start_mark, lines), *([beside[1].strip()] if beside else [])])


def _above(start: yaml.Mark, lines: list[str]) -> list[str]:
    """The comment lines right above a key, as far to the right as it, but not those that the file opens with."""
    first = start.line
    while first > 0 and re.match(rf" {{{start.column}}}#", lines[first - 1]):
        first -= 1
    return [] if first == 0 else [line.strip().lstrip("#").strip() for line in lines[first : start.line]]


def _heading(text: str) -> str:
    """The sentences that a file opens with; a recipe's table of paper, result, cost, … is not part of them."""
    said = []
    for line in text.splitlines():
        if not line.startswith("#") or line.startswith("#  "):
            break
        if not line.startswith("# @"):
            said.append(line.lstrip("#").strip())
    return " ".join(said)

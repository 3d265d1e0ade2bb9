"""What the shard doctor finds wrong, a line each: shard, key or byte, cause."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pretrain.config import secret
from pretrain.files import replace_file

Kind = Literal["read", "tar", "name", "sample", "image", "unchecked", "label", "index"]


@dataclass(frozen=True)
class Finding:
    """Something wrong with a shard.

    Args:
        shard: its path or address.
        kind: what is wrong: it cannot be read, its structure, a member's name, which members are a sample, an image
            (unchecked: only with a library that is not installed), a label, or the index beside it.
        cause: in words.
        key: of the sample, where it is about one.
        byte: of the shard, where it is about one.
        member: the sample's number in the shard, where it has one.
    """

    shard: str
    kind: Kind
    cause: str
    key: str | None = None
    byte: int | None = None
    member: int | None = None

    def line(self) -> str:
        where = "" if self.key is None else f"`{self.key}`: "
        if self.key is None and self.byte is not None:
            where = f"byte {self.byte}: "
        return printable(secret.shown(f"{self.shard}: {where}{self.cause}"))


def printable(text: str) -> str:
    """Text whose control characters are escaped: names in a foreign archive may hold anything."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def write_json(path: Path, findings: Iterable[Finding]) -> None:
    """The same as a list of objects."""
    rows = [asdict(finding) for finding in findings]
    shown = [{name: secret.shown(one) if isinstance(one, str) else one for name, one in row.items()} for row in rows]
    replace_file(path, json.dumps(shown, indent=1).encode())

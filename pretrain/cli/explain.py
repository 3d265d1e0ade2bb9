"""Says what a configuration key means, its value and default, its type, who reads it, and what recipes make of it.

    pretrain explain encoder.drop_path
    pretrain explain encoder.drop_path +experiment=dino_vits16
    pretrain explain objective

A word without `=` is a key or a group; `experiment` lists the recipes. All other words are overrides, as
`python -m pretrain` takes them: the value is the one that they give.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from pretrain.config import secret
from pretrain.config.problem import UserError


@dataclass(frozen=True)
class Arguments:
    key: str = field(metadata={"help": "The dotted name of a key or a group, for example encoder.drop_path."})


def main(arguments: Arguments, overrides: Sequence[str]) -> None:
    from pretrain.config.explain import explained

    print(explained(arguments.key, overrides))


def run(words: Sequence[str]) -> None:
    """The command with its words: keys, and overrides in any order."""
    from pretrain.config.arguments import quote

    keys = [word.removeprefix("key=") for word in words if word.startswith("key=") or _is_key(word)]
    asked = any(word in ("-h", "--help") for word in words)
    if asked or not keys:
        print(usage())
        sys.exit(0 if asked else 2)
    overrides = quote([word for word in words if not word.startswith("key=") and not _is_key(word)])
    try:
        for number, key in enumerate(keys):
            if number:
                print()
            main(Arguments(key), overrides)
    except UserError as mistake:
        sys.exit(secret.typed(str(mistake)))


def usage() -> str:
    """What the command does, and the groups whose keys it explains."""
    from pretrain.config.comments import read
    from pretrain.config.layout import listing
    from pretrain.config.meaning import groups
    from pretrain.config.overrides import folder

    remarks = read(folder() / "pretrain.yaml").remarks | {"experiment": "the recipes"}
    rows = [(name, "", remarks.get(name, "")) for name in groups()]
    return f"{(__doc__ or '').strip()}\n\nGroups:\n{listing(rows)}"


def _is_key(word: str) -> bool:
    return "=" not in word and not word.startswith(("-", "+", "~"))

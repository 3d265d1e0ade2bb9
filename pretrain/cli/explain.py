"""Says what a configuration key means, its default, its type and who reads it.

    pretrain explain encoder.drop_path
    pretrain explain encoder.drop_path +experiment=dino_vits16
    pretrain explain objective

A word without `=` is a key or a group; `experiment` lists the recipes. All other words are
overrides, as `python -m pretrain` takes them: the value is the one that they give.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.config import secret
from pretrain.config.arguments import word
from pretrain.config.problem import UserError


@dataclass(frozen=True)
class Arguments:
    key: str = word("The dotted name of a key or of a group of keys.", example="encoder.drop_path")


def main(arguments: Arguments, overrides: Sequence[str]) -> None:
    from pretrain.config.explain import explained

    print(explained(arguments.key, overrides))


def run(words: Sequence[str]) -> None:
    """The command with its words: keys, and overrides in any order."""
    from pretrain.config.arguments import quote

    keys = [one.removeprefix("key=") for one in words if one.startswith("key=") or _is_key(one)]
    asked = any(one in ("-h", "--help") for one in words)
    if asked or not keys:
        print(usage())
        sys.exit(0 if asked else 2)
    overrides = quote([one for one in words if not one.startswith("key=") and not _is_key(one)])
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
    from pretrain.config.usage import usage_of
    from pretrain.files import shipped

    conf = shipped("conf")
    remarks = read(conf / "pretrain.yaml").remarks | {"experiment": "the recipes"}
    rows = [(path.name, "", remarks.get(path.name, "")) for path in sorted(conf.iterdir()) if path.is_dir()]
    return f"{usage_of(Arguments, __doc__ or '')}\n\nGroups:\n{listing(rows)}"


def _is_key(word: str) -> bool:
    return "=" not in word and not word.startswith(("-", "+", "~"))

"""What `--help` says of a command: what it is for, and of every word its meaning, its type, its default, an example."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import Any, Union, get_args, get_type_hints

from pretrain.config.signature import describe

_WIDTH = 96  # columns
_TOGETHER = 70  # columns of one line of facts


def usage_of(schema: type[Any], usage: str) -> str:
    """The help of a command.

    Args:
        schema: a dataclass whose fields are its words.
        usage: what it does, with an example.
    """
    rows = listing(schema)
    return f"{usage.strip()}\n\nArguments:\n{rows}" if rows else usage.strip()


def listing(schema: type[Any]) -> str:
    """Every word of a command: its meaning, and below it the facts."""
    hints = get_type_hints(schema)
    return table([(one.name, [one.metadata.get("help", ""), *_facts(one, hints[one.name])]) for one in fields(schema)])


def table(rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Names, and beside each what is said of it, paragraph by paragraph."""
    column = 4 + max((len(name) for name, _ in rows), default=0)
    edge, text = " " * column, []
    for name, paragraphs in rows:
        lines = [line for one in paragraphs for line in textwrap.wrap(one, _WIDTH - column, break_on_hyphens=False)]
        text.append(f"  {name}".ljust(column) + f"\n{edge}".join(lines))
    return "\n".join(text)


def _facts(one: Field[Any], hint: Any) -> list[str]:
    """A word's type, its default and an example, on one line if it is short."""
    default = one.default if one.default_factory is MISSING else one.default_factory()
    kinds = get_args(hint)
    if default is MISSING:
        facts = f"{describe(hint)}; required"
    elif default is None and NoneType in kinds:
        facts = f"{describe(Union[tuple(kind for kind in kinds if kind is not NoneType)])}; optional"  # noqa: UP007
    else:
        facts = f"{describe(hint)}; default {_typed(default)}"
    example = one.metadata.get("example", "")
    if not example:
        return [facts]
    example = f"example: {shlex.quote(example if one.metadata.get('bare') else f'{one.name}={example}')}"
    together = f"{facts}; {example}"
    return [together] if len(together) <= _TOGETHER else [facts, example]


def _typed(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))

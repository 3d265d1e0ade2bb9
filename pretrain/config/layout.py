"""Plain text of at most 96 columns: paragraphs, facts with their names, lists with a sentence each."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

_WIDTH = 96
_VALUE = 24  # columns of a value in a list


def shown(value: Any) -> str:
    """A plain value as a yaml file would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {shown(one)}' for name, one in value.items())}}}"
    return "''" if value == "" else str(value)


def paragraph(text: str) -> str:
    if not re.search("[:,=]", text.partition(" ")[0]):  # a first word that is a value stays as it is written
        text = text[:1].upper() + text[1:]
    return textwrap.fill(text if text.endswith((".", "…")) else f"{text}.", _WIDTH, **_indents("  ", "  "))


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """A name, and what there is to say of it, a row each."""
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(
        textwrap.fill(text, _WIDTH, **_indents(f"  {name:{width}}", " " * (width + 2))) for name, text in rows
    )


def listing(rows: Sequence[tuple[str, str, str]]) -> str:
    """A name, its value and a sentence, a row each."""
    if not rows:
        return "    none"
    rows = [(name, value if len(value) <= _VALUE else f"{value[: _VALUE - 1]}…", said) for name, value, said in rows]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = []
    for name, value, said in rows:
        start = f"    {name:{first}}  " + (f"{value:{second}}  " if second else "")
        lines.append(textwrap.fill(said, _WIDTH, **_indents(start, " " * len(start))) if said else start.rstrip())
    return "\n".join(lines)


def _indents(first: str, others: str) -> dict[str, Any]:
    whole = {"break_long_words": False, "break_on_hyphens": False}
    return {"initial_indent": first, "subsequent_indent": others, **whole}

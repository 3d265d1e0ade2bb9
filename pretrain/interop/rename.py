"""Names of parameters in one system as names in another, by a table."""

from __future__ import annotations

import re
from collections.abc import Mapping


def rename(key: str, renames: Mapping[str, str]) -> str:
    """The new name of a parameter, or of a layer with `.weight` or `.bias` behind it.

    Args:
        key: the name.
        renames: old → new; `{n}` stands for a number, the same on both sides.

    Raises:
        ValueError: the table has no such name.
    """
    for old, new in renames.items():
        pattern = re.escape(old).replace(r"\{n\}", r"(?P<n>\d+)")
        if match := re.fullmatch(rf"{pattern}(?P<rest>\.weight|\.bias)?", key):
            return new.replace("{n}", match.groupdict().get("n") or "") + (match["rest"] or "")
    raise ValueError(f"`{key}` has no counterpart")

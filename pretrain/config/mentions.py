"""Where a configuration key is spoken of: by other keys, by modules of this package, in the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pretrain.config.layout import shown
from pretrain.config.overrides import folder

_KEY = re.compile(r"\$\{([\w.]+)\}")
_VARIABLE = re.compile(r"\$\{oc\.env:(\w+)(?:,([^}]*))?\}")


def followed(written: Any, values: Mapping[str, Any]) -> Iterator[str]:
    """What the interpolations in a value take their own values from."""
    for key in _KEY.findall(written) if isinstance(written, str) else ():
        yield f"{key}, which is {shown(values.get(key))} here: set that one to change both"
    for name, otherwise in _VARIABLE.findall(written) if isinstance(written, str) else ():
        yield f"the environment variable {name}" + (f", or {otherwise} where there is none" if otherwise else "")


def followers(key: str, raw: Mapping[str, Any]) -> list[str]:
    """The keys whose values are taken from this one."""
    return [other for other, value in raw.items() if isinstance(value, str) and key in _KEY.findall(value)]


def modules(key: str) -> list[str]:
    """The modules of this package that read a setting off a configuration, by their dotted names."""
    return [name for name, text in _texts().items() if re.search(rf"\bcfg\.{key}\b", text)]


@cache
def _texts() -> dict[str, str]:
    package = Path(__file__).resolve().parents[1]
    named = {path: ".".join(path.relative_to(package.parent).with_suffix("").parts) for path in package.rglob("*.py")}
    texts = {name: path.read_text(encoding="utf-8") for path, name in sorted(named.items())}
    return {name: text for name, text in texts.items() if "cfg." in text}


def page(key: str) -> str:
    """The page of the documentation that speaks most of a key, with the heading above; "" where there is none."""
    mention = re.compile(rf"`{re.escape(key)}(?![\w.])")
    row = re.compile(rf"^\| `{re.escape(key)}`", flags=re.MULTILINE)
    found = [
        (not row.search(text), -len(mention.findall(text)), path, text)
        for path in sorted((folder().parent / "docs").glob("*.md"))
        if mention.search(text := path.read_text(encoding="utf-8"))
    ]
    if not found:
        return ""
    *_, path, text = min(found)
    match = row.search(text) or mention.search(text)
    headings = re.findall(r"^#+ (.+)$", text[: match.start() if match else 0], flags=re.MULTILINE)
    return f"docs/{path.name}" + (f", {headings[-1]}" if headings else "")

"""How a command is started: a module of this folder, with its words.

A module defines a dataclass `Arguments`, `main` and a docstring, or else `run`, which is given the words as they were
typed. No module imports a heavy library before its `main` runs, so that help is there at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from pretrain.config.arguments import script
from pretrain.config.usage import usage_of


def module(name: str) -> ModuleType:
    return import_module(f"pretrain.cli.{name}")


def start(name: str, words: Sequence[str]) -> None:
    """Runs a module's command with its words."""
    found = module(name)
    if hasattr(found, "run"):
        found.run(words)
    else:
        script(found.Arguments, found.__doc__ or "", found.main, words)


def summary(name: str) -> str:
    """What a module's command does, in one line."""
    return (module(name).__doc__ or "").strip().partition("\n")[0]


def whole_help(usage: str, names: Sequence[str]) -> str:
    """The help of a command that has several forms, each a module of its own."""
    forms = [usage_of(found.Arguments, found.__doc__ or "") for found in map(module, names)]
    return f"\n\n{'─' * 96}\n".join([usage.strip(), *forms])


def asks_for_help(word: str) -> bool:
    return word in ("-h", "--help")

"""What a class may be given: whether a `_target_` may name it, and which plain values its type hints admit."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# Whose classes a `_target_` may name, and of which kind: torch and lightning have many that start programs, open files
# or read pickles when they are built.
_KINDS: dict[str, tuple[str, ...]] = {
    "pretrain": (),
    "torch": ("torch.optim.Optimizer", "torch.nn.Module"),
    "lightning": ("lightning.pytorch.Callback",),
}
_HOMES = {"torch": ("torch.optim.", "torch.nn."), "lightning": ("lightning.pytorch.callbacks.",)}


def locate(dotted: object, allowed: Sequence[str] = ()) -> tuple[type[Any] | None, str]:
    """(what a `_target_` names, "") or (None, why it may not be named).

    Only classes can be named, of this package, torch's optimizers and layers, lightning's callbacks, and the classes of
    packages that `allow_targets` adds: a configuration must not be able to run any function that happens to be
    importable, nor to build what some module of an allowed package happens to have imported (a `Popen`).
    """
    packages = (*_KINDS, *allowed)
    if not isinstance(dotted, str) or not dotted.startswith(tuple(f"{name}." for name in packages)):
        names = ", ".join(packages)
        return (None, f"is outside what may be built ({names}); add its package to allow_targets if you trust it")
    found, reason = named_class(dotted)
    if found is None:
        return None, reason
    home = f"{found.__module__}."
    if not home.startswith(tuple(f"{name}." for name in packages)):
        return None, f"is a class of {found.__module__}, which is outside what may be built ({', '.join(packages)})"
    own = next((name for name in _KINDS if home.startswith(f"{name}.")), None)
    if own in _HOMES and own not in allowed:
        kinds = tuple(one for kind in _KINDS[own] if (one := named_class(kind)[0]) is not None)
        if not home.startswith(_HOMES[own]) or not issubclass(found, kinds):
            return None, f"is none of the classes of {own} that may be built ({', '.join(_KINDS[own])})"
    return found, ""


def misfit(target: type[Any], bases: Sequence[str]) -> bool:
    """Whether a class is none of those that a place asks for, by the dotted names of their bases; none asks for none.

    Imports nothing: a class that inherits from another has imported it.
    """
    there = [named_class(base)[0] for base in bases if base.rpartition(".")[0] in sys.modules]
    return bool(bases) and not issubclass(target, tuple(one for one in there if one is not None))


def named_class(dotted: str) -> tuple[type[Any] | None, str]:
    """(the class of a name, "") or (None, why it is none)."""
    module, _, name = dotted.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as failure:  # ValueError: a name without a dot
        return None, f"cannot be found: {failure}"
    return (found, "") if inspect.isclass(found) else (None, "is no class")


def hints_of(target: type[Any]) -> dict[str, Any]:
    """The type hints of a class's constructor, none where they cannot be looked up."""
    try:
        return get_type_hints(target.__init__)
    except (NameError, TypeError):  # a foreign class whose annotations cannot be looked up
        return {}


def completed(plain: Any) -> Any:
    """Nested plain data in which every node has all arguments of its class: those that it leaves out at their defaults.

    Defaults that are no plain values are left out. A node of a class that is not there, or that may not be named, stays
    as it is.
    """
    if isinstance(plain, list):
        return [completed(one) for one in plain]
    if not isinstance(plain, dict):
        return plain
    target = locate(plain["_target_"])[0] if "_target_" in plain else None
    named = inspect.signature(target).parameters.values() if target is not None else ()
    plainly = int | float | str | list | tuple | None
    defaults = {one.name: one.default for one in named if isinstance(one.default, plainly)}
    return defaults | {name: completed(one) for name, one in plain.items()}


def matches(value: Any, hint: Any) -> bool:
    """Whether a plain value (or a node that builds one) may be passed where a type hint stands."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(matches(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    if hint is None or hint is type(None):
        return value is None
    if isinstance(value, dict) and "_target_" in value:
        return _builds(value, hint, origin)
    if isinstance(value, list) or origin in (list, tuple, Sequence):
        if origin is tuple and arguments and Ellipsis not in arguments:
            pairs = isinstance(value, list) and len(value) == len(arguments)
            return pairs and all(map(matches, value, arguments))
        element = next((one for one in arguments if one is not Ellipsis), Any)
        listed = hint is Any or origin in (list, tuple, Sequence)
        return listed and isinstance(value, list) and all(matches(one, element) for one in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint in (int, bool, str):
        return type(value) is hint
    if origin is dict:  # of values that are written down, or of nodes of one class
        if not isinstance(value, dict):
            return False
        nodes = [one for one in value.values() if _holds_node(one)]
        return all(arguments[1] is not Any and matches(one, arguments[1]) for one in nodes)
    if hint is dict:
        return isinstance(value, dict)
    if inspect.isclass(hint) and isinstance(value, int | float | str | list):
        return isinstance(value, hint)
    return hint is Any or value is not None  # a foreign type: its constructor will say


def _builds(node: dict[str, Any], hint: Any, origin: Any) -> bool:
    """Whether a node builds what a hint asks for: an instance, or with `_partial_` something to call."""
    if hint is Any:
        return True
    target = _known(str(node["_target_"]))
    if node.get("_partial_"):
        made = (get_args(hint) or (Any,))[-1]
        fits = target is None or not inspect.isclass(made) or issubclass(target, made)
        return (origin is Callable or hint is Callable) and fits
    kind = origin or hint
    if kind in (int, float, bool, str):
        return False
    return not (inspect.isclass(kind) and target is not None) or issubclass(target, kind)


def _known(dotted: str) -> type[Any] | None:
    """A class of a package that may be named, or of one that is imported already; to ask for a type imports nothing."""
    module = dotted.rpartition(".")[0]
    return named_class(dotted)[0] if dotted.partition(".")[0] in _KINDS or module in sys.modules else None


def _holds_node(value: Any) -> bool:
    """Whether something would be built of a value, or of what is in it."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(_holds_node, value.values()))
    return isinstance(value, list) and any(map(_holds_node, value))


def describe(hint: Any) -> str:
    """A type hint in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(one) for one in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(one) for one in arguments)
    if hint is type(None):
        return "null"
    if origin in (list, tuple, Sequence):
        element = next((one for one in arguments if one is not Ellipsis), Any)
        many = f"{len(arguments)} values, each " if origin is tuple and arguments and Ellipsis not in arguments else ""
        return f"a list of {many}{describe(element)}"
    if origin is dict and arguments:
        return f"{{name: {describe(arguments[1])}}}"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))

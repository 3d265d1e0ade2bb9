"""What a class may be given: whether a `_target_` may name it, and which plain values its type hints admit."""

from __future__ import annotations

import importlib
import inspect
import math
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_PACKAGES = ("pretrain", "torch", "lightning")  # whose classes a `_target_` may name


def locate(dotted: object, allowed: Sequence[str] = ()) -> tuple[Callable[..., Any] | None, str]:
    """(what a `_target_` names, "") or (None, why it may not be named).

    Only classes can be named, of this package, torch, lightning and what `allow_targets` adds: a configuration must not
    be able to run any function that happens to be importable.
    """
    if not isinstance(dotted, str) or not dotted.startswith(tuple(f"{name}." for name in (*_PACKAGES, *allowed))):
        names = ", ".join((*_PACKAGES, *allowed))
        return (None, f"is outside what may be built ({names}); add its package to allow_targets if you trust it")
    module, _, name = dotted.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as failure:
        return None, f"cannot be found: {failure}"
    if not inspect.isclass(found):
        return None, "is no class"
    return found, ""


def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The type hints of a class's constructor, none where they cannot be looked up."""
    try:
        return get_type_hints(target.__init__)
    except (NameError, TypeError):  # a foreign class whose annotations cannot be looked up
        return {}


def matches(value: Any, hint: Any) -> bool:
    """Whether a plain value (or a node that builds one) may be passed where a type hint stands."""
    origin, arguments = get_origin(hint), get_args(hint)
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
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if inspect.isclass(hint) and isinstance(value, int | float | str | list):
        return isinstance(value, hint)
    return hint is Any or value is not None  # a foreign type: its constructor will say


def _builds(node: dict[str, Any], hint: Any, origin: Any) -> bool:
    """Whether a node builds what a hint asks for: an instance, or with `_partial_` something to call."""
    if node.get("_partial_"):
        return hint is Any or origin is Callable or hint is Callable
    target, _ = locate(node["_target_"], (str(node["_target_"]).split(".")[0],))
    return hint is Any or not (inspect.isclass(hint) and inspect.isclass(target)) or issubclass(target, hint)


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

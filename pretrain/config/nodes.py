"""Checking nodes of plain data, each a class and its arguments, before anything is built of them.

The signature of the constructor that a `_target_` names is the schema of its node. Hydra is not needed here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pretrain.config import renamed
from pretrain.config.signature import describe, hints_of, locate, matches, misfit
from pretrain.config.suggest import suggest

COLLECTIONS = ("callbacks", "schedule")  # groups that hold several nodes by name; the others are one node each
ONE = {"callbacks": "callback"}  # what one node of such a group is called
_BASES = {  # one of which a group's node must be
    "encoder": ("pretrain.encoder.encoder.Encoder",),
    "objective": ("pretrain.objective.objective.Objective",),
    "data": ("pretrain.data.module.ShardData",),
    "optim": ("torch.optim.Optimizer",),
    "trainer": ("pretrain.trainer.parallel.Hardware",),
    "checkpoint": ("pretrain.trainer.lifecycle.Save", "lightning.pytorch.Callback"),
    "callbacks": ("pretrain.callbacks.step.StepCallback", "lightning.pytorch.Callback"),
    "view": ("pretrain.view.spec.ViewSpec",),
}
WORDS = ("_target_", "_partial_", "_recursive_", "_convert_")  # Hydra's own, in a node


def check_nodes(nodes: Mapping[str, Any], allowed: Sequence[str] = ()) -> list[str]:
    """Everything that is wrong with nodes of plain data and all below them, a line each.

    Args:
        nodes: by the key that stands in the lines.
        allowed: packages beside this one, torch and lightning whose classes a `_target_` may name.
    """
    return [line for key, node in nodes.items() for line in _check_tree(key, node, allowed)]


def _check_tree(path: str, node: Any, allowed: Sequence[str]) -> Iterator[str]:
    """What is wrong with a node and all below it. What is refused is not looked into: rules may read files."""
    if isinstance(node, dict):
        lines = _check_node(path, node, allowed) if "_target_" in node else []
        yield from lines
        refused = {line.partition("=")[0] for line in lines}
        if f"{path}._target_" in refused:
            return
        for key, value in node.items():
            if f"{path}.{key}" not in refused:
                yield from _check_tree(f"{path}.{key}", value, allowed)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _check_tree(f"{path}[{number}]", value, allowed)


def _check_node(path: str, node: dict[str, Any], allowed: Sequence[str]) -> list[str]:
    """What is wrong with the arguments of one `_target_`."""
    target, reason = locate(node["_target_"], allowed)
    place = path.partition(".")[0]
    if target is not None and path.count(".") == (place in COLLECTIONS) and misfit(target, _BASES.get(place, ())):
        target, reason = None, f"is no {ONE.get(place, place)}"
    if target is None:
        return [refusal(f"{path}._target_", node["_target_"], reason)]
    for inner in _targets(list(node.values())):
        locate(inner, allowed)  # so that its class is there to be compared with the type hint of its place
    arguments = {key: value for key, value in node.items() if key not in WORDS}
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # a class of C that does not say what it takes
        return []
    named = {name: one for name, one in parameters.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    required = {name for name, one in named.items() if one.default is one.empty}
    hints = {name: hints_of(target).get(name, Any) for name in named}
    lines = check_arguments(path, arguments, hints, set() if node.get("_partial_") else required, list(named))
    rules = getattr(target, "problems", None)
    defaults = {name: one.default for name, one in named.items() if one.default is not one.empty}
    valid = {name: value for name, value in arguments.items() if name in hints and matches(value, hints[name])}
    values = defaults | valid
    if rules is not None:
        needed = {name for name, one in inspect.signature(rules).parameters.items() if one.default is one.empty}
        needed |= arguments.keys()
    if rules is not None and all(name in values for name in needed if name in hints):
        lines += [refusal(f"{path}.{argument}", values.get(argument), text) for argument, text in rules(**values)]
    return lines


def _targets(value: Any) -> Iterator[Any]:
    """All that a `_target_` below a value names."""
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(one, dict) and "_target_" in one:
            yield one["_target_"]
        yield from _targets(one)


def check_arguments(
    path: str, arguments: dict[str, Any], hints: Mapping[str, Any], required: set[str], suggestions: Sequence[str]
) -> list[str]:
    """Unknown, missing and mistyped arguments."""
    dot = f"{path}." if path else ""
    lines = [f"{dot}{name} is missing" for name in sorted(required - arguments.keys())]
    for name, value in arguments.items():
        if name not in hints:
            lines.append(refusal(f"{dot}{name}", value, f"there is no such key{meant(f'{dot}{name}', suggestions)}"))
        elif not matches(value, hints[name]):
            lines.append(refusal(f"{dot}{name}", value, f"must be {describe(hints[name])}"))
    return lines


def meant(key: str, known: Sequence[str]) -> str:
    """The end of a refusal of a key: what it is called now, or which of the known ones is alike."""
    now = renamed.key(key)
    return suggest(key.rpartition(".")[2], known) if now == key else f"; it is called {now} now"


def refusal(key: str, value: Any, reason: str) -> str:
    shown = "null" if value is None else str(value)
    return f"{key}={shown if len(shown) <= 80 else shown[:77] + '…'}: {reason}"

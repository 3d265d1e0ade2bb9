"""Building what nodes of a configuration say: a `_target_`, and its arguments beside it.

Hydra's own `instantiate` calls any function that can be imported, and wraps what a constructor raises in an exception
of its own. Ours builds classes alone, lets a constructor's refusal through as it is, and needs no Hydra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pretrain.config.nodes import WORDS
from pretrain.config.problem import UserError
from pretrain.config.signature import named_class


def instantiate(node: Any) -> Any:
    """What a node says. It must have passed `check_nodes`, which judges what a `_target_` may name.

    A node is a dictionary with a `_target_`, the dotted name of a class; its other keys are the arguments. With
    `_partial_: true` it becomes a `functools.partial` of them. Nodes among the arguments are built first, however deep
    they lie, but not with `_recursive_: false`: then they are passed as they stand. What is not a node becomes plain
    lists and dictionaries. `_convert_`, by which Hydra is asked for that, changes nothing here.

    Args:
        node: plain data, or a part of an OmegaConf configuration, whose interpolations are then resolved.

    Raises:
        UserError: a `_target_` names no class.
        ValueError: a constructor refuses its arguments.
    """
    if isinstance(node, Mapping):
        return _built(node) if "_target_" in node else {name: instantiate(node[name]) for name in node}
    if isinstance(node, Sequence) and not isinstance(node, str | bytes):
        return [instantiate(one) for one in node]
    return node


def _built(node: Mapping[str, Any]) -> Any:
    found, reason = named_class(str(node["_target_"]))
    if found is None:
        raise UserError(f"_target_={node['_target_']}: {reason}")
    target: Callable[..., Any] = found
    read = _plain if node.get("_recursive_", True) is False else instantiate
    arguments = {name: read(node[name]) for name in node if name not in WORDS}
    return partial(target, **arguments) if node.get("_partial_") else target(**arguments)


def _plain(value: Any) -> Any:
    """Nested plain data, of which nothing is built."""
    if isinstance(value, Mapping):
        return {name: _plain(value[name]) for name in value}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(one) for one in value]
    return value

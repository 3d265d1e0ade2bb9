"""Composing a run's configuration, and checking all of it before anything is built.

The signature of the constructor that a `_target_` names is the schema of its node. Hydra stops at the first
override that it does not understand; here every mistake of a command is found and reported at once.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import itertools
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_REFUSALS = (HydraException, OmegaConfBaseException, ValueError)  # what composing raises for a wrong override
_PACKAGES = ("pretrain", "torch", "lightning")  # whose classes a `_target_` may name
_COLLECTIONS = ("callback", "schedule")  # groups that hold several nodes by name; the others are one node each
_WORDS = ("_target_", "_partial_", "_recursive_", "_convert_")  # Hydra's own, in a node


@dataclass(frozen=True)
class Settings:
    """The top-level keys of a configuration that are values, not groups."""

    name: str
    seed: int
    output_dir: str
    resume: Literal["auto", "must", "never"]
    global_batch_size: int
    batch_size_per_device: int
    base_lr: float
    epochs: int
    warmup_epochs: float
    max_steps: int | None
    stop_after_steps: int | None
    max_minutes: float | None
    clip_grad_norm: float | None
    allow_targets: list[str]

    @staticmethod
    def problems(
        seed: int,
        epochs: int,
        warmup_epochs: float,
        base_lr: float,
        max_steps: int | None,
        max_minutes: float | None,
        **others: Any,
    ) -> Iterator[tuple[str, str]]:
        if not 0 <= seed < 2**63:
            yield "seed", "must be between 0 and 2⁶³ − 1"
        if not 0 <= warmup_epochs < epochs:
            yield "warmup_epochs", f"must be at least 0 and below `epochs` (={epochs})"
        if base_lr <= 0:
            yield "base_lr", "must be positive"
        if max_steps is not None and max_minutes is not None:
            yield "max_steps", "and max_minutes both rescale the schedule: give one of them"
        limits = {"epochs": epochs, "max_steps": max_steps, "max_minutes": max_minutes}
        sizes = ("global_batch_size", "batch_size_per_device", "stop_after_steps", "clip_grad_norm")
        for key, value in (limits | {size: others[size] for size in sizes}).items():
            if value is not None and value <= 0:
                yield key, "must be positive"


def folder() -> Path:
    """Where the yaml files are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration that overrides give.

    Raises:
        HydraException: an override is not understood.
    """
    with initialize_config_dir(str(folder()), version_base="1.3"):
        return compose("pretrain", overrides=list(overrides))


def mistakes(overrides: Sequence[str]) -> list[str]:
    """Everything that is wrong with a command's overrides and with the configuration they give, a line each."""
    return judged(overrides)[1]


def judged(overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The configuration that the understood ones of a command's overrides give, and all that is wrong, a line each."""
    accepted, lines = _refused(overrides)
    cfg = composed(accepted)
    return cfg, lines + check(cfg)


def jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, as Hydra's own sweeper combines them."""
    parser, axes = OverridesParser.create(), []
    for word in overrides:
        try:
            override = parser.parse_override(word)
        except HydraException:
            axes.append([word])
            continue
        choices = override.is_sweep_override() and override.is_discrete_sweep()
        values = (
            [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()] if choices else []
        )
        axes.append(values or [word])
    return [list(words) for words in itertools.product(*axes)]


def check(cfg: DictConfig) -> list[str]:
    """Everything that is wrong with a composed configuration, a line each."""
    try:
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as failure:
        return [str(failure).splitlines()[0]]
    plain.pop("hydra", None)
    settings = {key: value for key, value in plain.items() if not isinstance(value, dict)}
    hints = get_type_hints(Settings)
    lines = _check_arguments("", settings, hints, required=set(hints), suggestions=[*hints, "experiment"])
    valid = {key: value for key, value in settings.items() if key in hints and matches(value, hints[key])}
    if valid.keys() < hints.keys():  # judge the others beside what the mistyped ones would have been
        valid = {key: valid.get(key, composed([])[key]) for key in hints}
    lines += [_line(key, settings.get(key), reason) for key, reason in Settings.problems(**valid)]
    groups = {key: value for key, value in plain.items() if isinstance(value, dict)}
    return lines + _check_groups(groups, settings) + check_nodes(groups, settings.get("allow_targets") or [])


def _check_groups(groups: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Groups that are unknown, missing, or hold something else than what is built from them."""
    known = [str(key) for key, value in composed([]).items() if isinstance(value, DictConfig)]
    lines = [f"{key}: there is no such group{suggest(key, known)}" for key in groups if key not in known]
    lines += [f"{key} is missing: choose one by {key}=…" for key in known if key not in groups and key not in settings]
    for key in _COLLECTIONS:
        for name, node in groups.get(key, {}).items():
            if node is None and key == "callback":
                continue  # turned off
            if not isinstance(node, dict) or "_target_" not in node:
                lines.append(_line(f"{key}.{name}", node, f"is no {key}: a node with a `_target_` belongs here"))
    if "schedule" in groups and "lr" not in groups["schedule"]:
        lines.append("schedule.lr is missing")
    lines += [
        f"{key}._target_ is missing"
        for key in known
        if key not in _COLLECTIONS and "_target_" not in groups.get(key, {"_target_": 1})
    ]
    return lines


def check_nodes(nodes: Mapping[str, Any], allowed: Sequence[str] = ()) -> list[str]:
    """Everything that is wrong with nodes of plain data and all below them, a line each.

    Args:
        nodes: by the key that stands in the lines.
        allowed: packages beside this one, torch and lightning whose classes a `_target_` may name.
    """
    return [line for key, node in nodes.items() for line in _check_tree(key, node, allowed)]


# ── overrides ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _refused(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the overrides that can be composed, what is wrong with the others)."""
    lines, parsed = [], []
    parser = OverridesParser.create()
    for word in overrides:
        try:
            parsed.append(parser.parse_override(word))
        except HydraException:
            lines.append(f"`{word}` is not understood: write key=value, and put a value with special signs in quotes")
    keys = [override.key_or_group for override in parsed if not override.key_or_group.startswith("hydra.")]
    lines += [
        f"{key} is given {keys.count(key)} times (a shell expands unquoted braces into several): give it once"
        for key in sorted({key for key in keys if keys.count(key) > 1})
    ]
    accepted: list[str] = []
    try:
        composed([str(override.input_line) for override in parsed])
        return [str(override.input_line) for override in parsed], lines
    except _REFUSALS:
        options = _group_options(parsed)
        for override in sorted(parsed, key=lambda one: _rank(one, options)):
            try:
                composed([*accepted, str(override.input_line)])
                accepted.append(str(override.input_line))
            except _REFUSALS as failure:
                lines.append(_explain(override, options, accepted, failure))
    return accepted, lines


def _rank(override: Override, options: dict[str, list[str]]) -> int:
    """Hydra's own settings (where to search) come first, then choices of a group, then values."""
    return 0 if override.key_or_group.startswith("hydra.") else 1 if override.key_or_group in options else 2


def _group_options(overrides: Sequence[Override]) -> dict[str, list[str]]:
    with initialize_config_dir(str(folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        groups = {override.key_or_group: loader.get_group_options(override.key_or_group) for override in overrides}
    return {group: options for group, options in groups.items() if options}


def _explain(override: Override, options: dict[str, list[str]], accepted: Sequence[str], failure: Exception) -> str:
    """What is wrong with one override."""
    key, value = override.key_or_group, override.value()
    if override.is_sweep_override():
        return f"{override.input_line}: a sweep needs --multirun; a list is written [a,b]"
    if key in options and str(value) not in options[key]:
        return f"{key}={value}: there is no such option; one of {', '.join(options[key])}"
    if key in options and not override.is_add():
        return f"{key}={value}: write +{key}={value}"
    known = list(_keys(OmegaConf.to_container(composed(accepted), resolve=False)))
    if key not in known:
        return f"{key}={value}: there is no such key{suggest(key, known)}"
    return f"{override.input_line}: {str(failure).splitlines()[0]}"


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def suggest(word: str, known: Sequence[str]) -> str:
    """The known word that was probably meant."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:  # the right name in the wrong place
        last = {key.rpartition(".")[2]: key for key in known}
        close = [last[name] for name in difflib.get_close_matches(word.rpartition(".")[2], list(last), n=1, cutoff=0.8)]
    return f"; did you mean {close[0]}?" if close else ""


# ── nodes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_tree(path: str, node: Any, allowed: Sequence[str]) -> Iterator[str]:
    """What is wrong with a node and all below it."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield from _check_node(path, node, allowed)
        for key, value in node.items():
            yield from _check_tree(f"{path}.{key}", value, allowed)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _check_tree(f"{path}[{number}]", value, allowed)


def _check_node(path: str, node: dict[str, Any], allowed: Sequence[str]) -> list[str]:
    """What is wrong with the arguments of one `_target_`."""
    target, reason = locate(node["_target_"], allowed)
    if target is None:
        return [_line(f"{path}._target_", node["_target_"], reason)]
    arguments = {key: value for key, value in node.items() if key not in _WORDS}
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # a class of C that does not say what it takes
        return []
    named = {name: one for name, one in parameters.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    required = {name for name, one in named.items() if one.default is one.empty}
    hints = {name: _hints(target).get(name, Any) for name in named}
    lines = _check_arguments(path, arguments, hints, set() if node.get("_partial_") else required, list(named))
    rules = getattr(target, "problems", None)
    defaults = {name: one.default for name, one in named.items() if one.default is not one.empty}
    valid = {name: value for name, value in arguments.items() if name in hints and matches(value, hints[name])}
    values = defaults | valid
    if rules is not None and all(name in values for name in arguments if name in hints):
        lines += [_line(f"{path}.{argument}", values.get(argument), text) for argument, text in rules(**values)]
    return lines


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


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__)
    except (NameError, TypeError):  # a foreign class whose annotations cannot be looked up
        return {}


def _check_arguments(
    path: str, arguments: dict[str, Any], hints: Mapping[str, Any], required: set[str], suggestions: Sequence[str]
) -> list[str]:
    """Unknown, missing and mistyped arguments."""
    dot = f"{path}." if path else ""
    lines = [f"{dot}{name} is missing" for name in sorted(required - arguments.keys())]
    for name, value in arguments.items():
        if name not in hints:
            lines.append(_line(f"{dot}{name}", value, f"there is no such key{suggest(name, suggestions)}"))
        elif not matches(value, hints[name]):
            lines.append(_line(f"{dot}{name}", value, f"must be {describe(hints[name])}"))
    return lines


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
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _line(key: str, value: Any, reason: str) -> str:
    shown = "null" if value is None else str(value)
    return f"{key}={shown if len(shown) <= 80 else shown[:77] + '…'}: {reason}"

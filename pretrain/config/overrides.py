"""What was typed and the configuration that it gives: sweeps taken apart, and each wrong override explained.

Hydra stops at the first override that it does not understand; here every one of a command is found.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from pretrain.config import renamed
from pretrain.config.suggest import suggest
from pretrain.files import shipped

_REFUSALS = (HydraException, OmegaConfBaseException, ValueError)  # what composing raises for a wrong override


def folder() -> Path:
    """Where the yaml files are: inside the installed package, or beside it in a checkout."""
    return shipped("conf")


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration that overrides give, without Hydra's own part.

    Raises:
        HydraException: an override is not understood.
    """
    return copy.deepcopy(_composed(str(folder()), tuple(overrides))[0])


def hydra_of(overrides: Sequence[str]) -> Any:
    """Hydra's own part of it, as plain data that nobody may change."""
    return _composed(str(folder()), tuple(overrides))[1]


def known_groups() -> list[str]:
    """The groups of every configuration, of each of which it has one choice."""
    choices = OmegaConf.load(folder() / "pretrain.yaml").defaults
    named = [str(key) for choice in choices if isinstance(choice, DictConfig) for key in choice]
    return [name for name in named if not name.startswith("override ")]


@lru_cache(maxsize=8)
def _composed(home: str, overrides: tuple[str, ...]) -> tuple[DictConfig, Any]:
    """A command is looked at from several sides, and to compose it takes longer than all of them."""
    with initialize_config_dir(home, version_base="1.3"):
        cfg = compose("pretrain", overrides=list(overrides), return_hydra_config=True)
    with open_dict(cfg):
        return cfg, OmegaConf.to_container(cfg.pop("hydra"), resolve=False)


def forget() -> None:
    """Reads the yaml files again, in a process that lives on while somebody edits them."""
    _composed.cache_clear()


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


def understood(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the overrides that can be composed, what is wrong with the others)."""
    lines, parsed = [], []
    parser = OverridesParser.create()
    for word in overrides:
        try:
            parsed.append(parser.parse_override(word))
        except HydraException:
            lines.append(f"`{word}` is not understood: write key=value, and put a value with special signs in quotes")
    named = [override for override in parsed if not _adds_argument(override)]
    old = renamed.mistakes([(override.key_or_group, _plain_value(override)) for override in named])
    lines += old.values()
    parsed = [override for override in parsed if override.key_or_group not in old]
    keys = [override.key_or_group for override in parsed if not override.key_or_group.startswith("hydra.")]
    lines += [
        f"{key} is given {keys.count(key)} times (a shell expands unquoted braces into several): give it once"
        for key in sorted({key for key in keys if keys.count(key) > 1})
    ]
    accepted: list[str] = []
    try:
        words = [str(override.input_line) for override in parsed]
        _composed(str(folder()), tuple(words))
        return words, lines
    except _REFUSALS:
        options = _group_options(parsed)
        for override in sorted(parsed, key=lambda one: _rank(one, options)):
            try:
                _composed(str(folder()), (*accepted, str(override.input_line)))
                accepted.append(str(override.input_line))
            except _REFUSALS as failure:
                lines.append(_explain(override, options, accepted, failure))
    return accepted, lines


def _adds_argument(override: Override) -> bool:
    """Whether it gives a class an argument that no yaml has: a class of another package may call it so. Of ours, the
    check of its node says what it is called."""
    top, dot, _ = override.key_or_group.partition(".")
    return bool(dot) and override.is_add() and renamed.key(top) == top


def _plain_value(override: Override) -> Any:
    """Its value as it was typed."""
    return (override.input_line or "").partition("=")[2]


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
    missing = getattr(failure, "missing_cfg_file", None) or ""  # the choice itself, or one that its file makes
    inside = missing not in ("", f"{key}/{value}") or "Could not override" in str(failure)
    if key in options and str(value) not in options[key] and not inside:
        return f"{key}={value}: there is no such option; one of {', '.join(options[key])}"
    if key in options and not override.is_add():
        return f"{key}={value}: write +{key}={value}"
    known = list(_keys(OmegaConf.to_container(composed(accepted), resolve=False)))
    if key not in known and key not in options:
        return f"{key}={value}: there is no such key{suggest(key, known)}"
    return f"{override.input_line}: {str(failure).splitlines()[0]}{_old_choice(missing, str(failure))}"


def _old_choice(missing: str, said: str) -> str:
    """The end of a refusal of a recipe that chooses what is called otherwise now."""
    group, _, option = missing.rpartition("/")
    group = next(iter(re.findall(r"Could not override '([\w/]+)'", said)), group)
    return "".join(f"; {sentence}" for sentence in renamed.mistakes([(group, option)]).values())


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")

"""Checking all of a run's configuration before anything is built: every mistake of a command is found and reported.

The signature of the constructor that a `_target_` names is the schema of its node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pretrain.config import hydra_settings
from pretrain.config.nodes import COLLECTIONS, ONE, check_arguments, check_nodes, meant, refusal
from pretrain.config.overrides import composed, known_groups, understood
from pretrain.config.problem import UserError
from pretrain.config.signature import matches


@dataclass(frozen=True)
class Settings:
    """The top-level keys of a configuration that are values, not groups."""

    name: str
    seed: int
    output_dir: str
    resume: Literal["auto", "must", "never"]
    global_batch_size: int
    max_micro_batch_size: int
    base_lr: float
    epochs: int
    warmup_epochs: float
    max_steps: int | None
    stop_after_steps: int | None
    max_minutes: float | None
    clip_grad_norm: float | None
    clip_grad_by: Literal["global", "parameter"]
    max_skipped_steps: int
    allow_targets: list[str]
    num_nodes: int | None
    devices: int | None
    accelerator: Literal["cpu", "gpu"] | None
    trust_checkpoint: bool

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
        sizes = ("global_batch_size", "max_micro_batch_size", "stop_after_steps", "clip_grad_norm")
        for key, value in (limits | {size: others[size] for size in (*sizes, "max_skipped_steps")}).items():
            if value is not None and value <= 0:
                yield key, "must be positive"


def mistakes(overrides: Sequence[str]) -> list[str]:
    """Everything that is wrong with a command's overrides and with the configuration they give, a line each."""
    return judged(overrides)[1]


def judged(overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The configuration that the understood ones of a command's overrides give, and all that is wrong, a line each."""
    accepted, lines = understood(overrides)
    cfg = composed(accepted)
    allowed, unasked = _allowed(cfg), []
    if allowed and not any(word.lstrip("+").startswith("allow_targets=") for word in accepted):
        cfg.allow_targets = []  # before anything of these packages is imported
        unasked.append(
            f"allow_targets={','.join(allowed)}: a file asks for it, and it counts only where it is typed: add "
            f"allow_targets=[{','.join(allowed)}] to the command if you trust these packages"
        )
    wrong = unasked + check(cfg) + hydra_settings.mistakes(accepted, _allowed(cfg))
    return cfg, lines + wrong + _strangers_to_recipe(accepted, wrong)


def _allowed(cfg: DictConfig) -> list[str]:
    """The packages whose classes a `_target_` may name, none where that is no list of names."""
    named = OmegaConf.select(cfg, "allow_targets")
    return [name for name in named or () if isinstance(name, str)] if isinstance(named, ListConfig) else []


def _strangers_to_recipe(overrides: Sequence[str], wrong: Sequence[str]) -> list[str]:
    """What a command chose in place of its recipe's choice, where the recipe's settings do not fit it; a line each."""
    recipe = next((word for word in overrides if word.startswith("+experiment=")), None)
    given = {word.partition("=")[0] for word in overrides}
    missing = {line.partition("=")[0] for line in wrong if "there is no such key" in line} - given
    return [
        f"{word}: the settings of {recipe} under `{group}` were made for its own {group}; choose a recipe for it, "
        "or write one"
        for group in ("encoder", "objective")
        for word in overrides
        if recipe and word.startswith(f"{group}=") and any(key.startswith(f"{group}.") for key in missing)
    ]


def composed_without_data(overrides: Sequence[str], hardware: bool = False) -> DictConfig:
    """The configuration of overrides for what needs no shards, and unless `hardware` says so no GPU either.

    Raises:
        UserError: with all other mistakes at once.
    """
    if lines := mistakes_without_data(overrides, hardware):
        raise UserError("\n".join(lines))
    return composed(overrides)


def mistakes_without_data(overrides: Sequence[str], hardware: bool = False) -> list[str]:
    """The `mistakes` that matter without shards, and unless `hardware` says so without a GPU."""
    places = () if hardware else ("trainer.accelerator=", "trainer.num_nodes=", "trainer.devices=", "trainer.strategy=")
    needless = ("data.train=", "data.val=", *places)
    return [line for line in mistakes(overrides) if not line.startswith(needless)]


def check(cfg: DictConfig) -> list[str]:
    """Everything that is wrong with a composed configuration, a line each."""
    try:
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as failure:
        return [str(failure).splitlines()[0]]
    plain.pop("hydra", None)
    settings = {key: value for key, value in plain.items() if not isinstance(value, dict)}
    hints = get_type_hints(Settings)
    lines = check_arguments("", settings, hints, required=set(hints), suggestions=[*hints, "experiment"])
    valid = {key: value for key, value in settings.items() if key in hints and matches(value, hints[key])}
    if valid.keys() < hints.keys():  # judge the others beside what the mistyped ones would have been
        valid = {key: valid.get(key, composed([])[key]) for key in hints}
    lines += [refusal(key, settings.get(key), reason) for key, reason in Settings.problems(**valid)]
    groups = {key: value for key, value in plain.items() if isinstance(value, dict)}
    return lines + _check_groups(groups, settings) + check_nodes(groups, settings.get("allow_targets") or [])


def _check_groups(groups: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Groups that are unknown, missing, or hold something else than what is built from them."""
    known = known_groups()
    lines = [f"{key}: there is no such group{meant(key, known)}" for key in groups if key not in known]
    lines += [f"{key} is missing: choose one by {key}=…" for key in known if key not in groups and key not in settings]
    for key in COLLECTIONS:
        for name, node in groups.get(key, {}).items():
            if node is None and key == "callbacks":
                continue  # turned off
            if not isinstance(node, dict) or "_target_" not in node:
                lines.append(
                    refusal(f"{key}.{name}", node, f"is no {ONE.get(key, key)}: a node with a `_target_` belongs here")
                )
    if "schedule" in groups and "lr" not in groups["schedule"]:
        lines.append("schedule.lr is missing")
    lines += [
        f"{key}._target_ is missing"
        for key in known
        if key in groups and key not in COLLECTIONS and "_target_" not in groups[key]
    ]
    return lines

"""An objective with its encoder, from configuration; all that probes and exports need to have built."""

from __future__ import annotations

from typing import Any

import torch
from hydra import utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from pretrain.encoder.encoder import Encoder
from pretrain.objective.objective import Objective
from pretrain.records import UserError


def instantiate(node: Any) -> Any:
    """What a node of the configuration says; it is given plain lists and dictionaries all the way down.

    Raises:
        UserError: what is built refuses.
    """
    try:
        return utils.instantiate(node, _convert_="all")
    except InstantiationException as failure:
        if isinstance(failure.__cause__, UserError):
            raise failure.__cause__ from None
        raise


def objective_of(cfg: DictConfig) -> Objective:
    """The objective with its encoder, without weights: its parameters are on the meta device.

    Raises:
        UserError: encoder and objective do not fit each other.
    """
    try:
        with torch.device("meta"):
            objective: Objective = instantiate(cfg.objective)(encoder=instantiate(cfg.encoder))
    except (InstantiationException, ValueError) as failure:
        reason = failure.__cause__ if isinstance(failure, InstantiationException) else failure
        if not isinstance(reason, ValueError):
            raise
        raise UserError(str(reason)) from None
    return objective


def as_exported(encoder: Encoder, node: dict[str, Any]) -> tuple[Encoder, list[str]]:
    """The encoder as probes and exports build it, and the names of its weights that served pretraining alone.

    Both have the same weights, in the same memory: what trains one trains the other.

    Args:
        encoder: that is being pretrained, or was.
        node: its configuration.
    """
    arguments = node | encoder.after_pretraining
    if arguments == node:
        return encoder, []
    built: Encoder = instantiate(arguments)
    keys = built.load_state_dict(encoder.state_dict(), strict=False, assign=True)
    assert not keys.missing_keys
    return built.eval(), keys.unexpected_keys


def materialise(objective: Objective, seed: int, device: torch.device | str = "cpu") -> Objective:
    """Gives an objective on the meta device its initial weights."""
    objective.to_empty(device=device)
    objective.init_weights(seed)
    return objective

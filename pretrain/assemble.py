"""An objective with its encoder, from configuration; all that probes and exports need to have built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pretrain.config.instantiate import instantiate as instantiate
from pretrain.encoder.encoder import Encoder
from pretrain.objective.objective import Objective
from pretrain.records import UserError


def objective_of(cfg: Mapping[str, Any]) -> Objective:
    """The objective with its encoder, without weights: its parameters are on the meta device.

    Args:
        cfg: a configuration, of which the nodes `objective` and `encoder` are built.

    Raises:
        UserError: encoder and objective do not fit each other.
    """
    try:
        with torch.device("meta"):
            objective: Objective = instantiate(cfg["objective"])(encoder=instantiate(cfg["encoder"]))
    except UserError:
        raise
    except ValueError as failure:
        raise UserError(str(failure)) from None
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


def ranks_to_start(cfg: Mapping[str, Any]) -> int:
    """How many processes this one has to start in its place: 1 is itself."""
    count: int = instantiate(cfg["trainer"]).to_start
    return count

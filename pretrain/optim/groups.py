"""Parameter groups: what decays and what does not."""

from __future__ import annotations

from typing import Any

from torch import nn


def decay_groups(module: nn.Module, no_decay: set[str]) -> list[dict[str, Any]]:
    """Two groups of the trained parameters: those that decay, and those that do not, which are marked `exempt`.

    Biases and parameters of one dimension never decay (as in timm's `add_weight_decay`, which the official MAE uses);
    tokens and tables do, unless named in `no_decay`.

    Raises:
        ValueError: `no_decay` names a parameter that is not there.
    """
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if unknown := sorted(no_decay - named.keys()):
        raise ValueError(f"`no_decay` names {unknown}, but the trained parameters are {sorted(named)}")
    exempt = {name for name, value in named.items() if value.ndim <= 1 or name.endswith(".bias") or name in no_decay}
    return [
        {"params": [value for name, value in named.items() if name not in exempt], "exempt": False},
        {"params": [value for name, value in named.items() if name in exempt], "exempt": True, "weight_decay": 0.0},
    ]

"""Weights that may be sharded: from a checkpoint into place, whole on one host, and into an encoder to be exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pretrain.records import UserError
from pretrain.trainer.pieces import Pieces, like
from pretrain.trainer.shard import local, twin, whole


@torch.no_grad()
def put(module: nn.Module, saved: Mapping[str, Tensor | Pieces]) -> None:
    """Puts stored weights in place, of sharded ones this rank's part.

    Raises:
        UserError: they are not those of such a module.
    """
    state = module.state_dict()
    if state.keys() != saved.keys():
        odd = sorted(state.keys() ^ saved.keys())[:3]
        raise UserError(f"the checkpoint is of another objective: {', '.join(odd)} … are in one of the two alone")
    for name, target in state.items():
        local(target).copy_(local(like(saved[name], target)))


def gathered(module: nn.Module, leads: bool) -> dict[str, Tensor]:
    """All weights, on the host of the rank that leads alone; where they are sharded, all ranks must ask, and no more
    than one is whole on a device at a time."""
    found = ((name, whole(value)) for name, value in module.state_dict().items())
    return {name: value.cpu() for name, value in found if leads}


def follower(encoder: nn.Module, build: Callable[[], nn.Module], device: torch.device) -> Callable[[], nn.Module]:
    """Builds a module that has some of a sharded one's weights; what is returned brings it up to date.

    Args:
        encoder: the sharded one.
        build: makes the other; called on the meta device.
        device: of its weights.
    """
    with torch.device("meta"):
        other = build()
    twin(other, encoder)
    other.to_empty(device=device).eval()
    assert isinstance(other, FSDPModule)

    @torch.no_grad()
    def current() -> nn.Module:
        other.reshard()
        state = encoder.state_dict()
        for name, target in other.state_dict().items():
            local(target).copy_(local(state[name]))
        return other

    return current

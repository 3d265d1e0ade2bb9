"""Initial weights, parameter by parameter, each from a generator keyed by (seed, the parameter's name).

A weight therefore does not depend on the order in which modules are built, on the device they are built on, or on
how many ranks hold it. The distributions are those of the official MAE, `MaskedAutoencoderViT.initialize_weights`, or
with `normal` those of the official DINO's ViT.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from torch import Tensor, nn

Distribution = Literal["xavier", "normal"]  # of matrices


class DefaultConv2d(nn.Conv2d):
    """A convolution whose initial weights are torch's default, uniform within ± 1/√fan-in."""


def generator_for(seed: int, name: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the name alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@torch.no_grad()
def initialize(module: nn.Module, seed: int, scope: str = "", distribution: Distribution = "xavier") -> None:
    """Fills all parameters of `module` that are trained; those that are not (fixed tables) are their owner's business.

    Matrices: Xavier uniform over all but the first dimension. Tokens and learned position tables: normal, σ = 0.02.
    Norms: 1 and 0. Biases: 0, but those of a convolution, which keep torch's default, uniform within ± 1/√fan-in, as
    the originals left them; so do the weights of a `DefaultConv2d`.

    With `normal` matrices are normal, σ = 0.02, and convolutions keep torch's default.

    `scope` goes before the parameters' names: two modules of one model need different ones, or what has the same name
    in both would have the same weights.
    """
    for prefix, owner in module.named_modules():
        for local, parameter in owner.named_parameters(prefix, recurse=False):
            if parameter.requires_grad:
                draw = torch.empty(parameter.shape, dtype=torch.float32)
                name = local.removeprefix(f"{prefix}.")
                _fill(draw, owner, name, generator_for(seed, scope + local), distribution)
                fill(parameter, draw)


@torch.no_grad()
def fill(parameter: Tensor, values: Tensor) -> None:
    """Gives a parameter its values; where it is sharded, this rank keeps its own part of them."""
    from torch.distributed.tensor import DTensor, distribute_tensor  # here: a model without weights needs none

    if isinstance(parameter, DTensor):
        part = distribute_tensor(values, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(part.to_local())
    else:
        parameter.copy_(values)


def _fill(draw: Tensor, owner: nn.Module, name: str, generator: torch.Generator, distribution: Distribution) -> None:
    default = isinstance(owner, DefaultConv2d) or distribution == "normal"
    if name.endswith("_token") or name.startswith("pos_embed"):
        draw.normal_(std=0.02, generator=generator)
    elif isinstance(owner, nn.Conv2d) and (default or name == "bias"):
        bound = owner.weight[0].numel() ** -0.5
        draw.uniform_(-bound, bound, generator=generator)
    elif name == "bias":
        draw.zero_()
    elif draw.ndim == 1:
        draw.fill_(1.0)
    elif distribution == "normal":
        draw.normal_(std=0.02, generator=generator)
    else:
        nn.init.xavier_uniform_(draw.flatten(1), generator=generator)

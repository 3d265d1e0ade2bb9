"""The projection head of DINO (Caron et al., "Emerging properties in self-supervised vision transformers", arXiv
2104.14294, §3.1): a perceptron to a bottleneck, normalised, then one cosine a prototype.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.nn.initialize import fill, generator_for
from pretrain.records import Problem, refuse


class Prototypes(nn.Module):
    """A linear layer without bias whose rows are directions times lengths, as `torch.nn.utils.weight_norm` stores it.

    Args:
        dim: width of what comes.
        prototypes: how many there are.
        learn_length: whether their lengths are trained; else they stay 1.
    """

    def __init__(self, dim: int, prototypes: int, learn_length: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(prototypes, 1), requires_grad=learn_length)
        self.weight_v = nn.Parameter(torch.empty(prototypes, dim))

    def forward(self, x: Tensor, train: bool = True) -> Tensor:
        """[N, dim] → [N, prototypes]; not to `train` them lets the gradient pass them by, on its way to x."""
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True))
        return F.linear(x, weight if train else weight.detach())


class DINOHead(nn.Module):
    """Vectors in, one number a prototype out.

    Args:
        in_dim: width of the encoder's vectors.
        prototypes: K, how many numbers come out.
        nlayers: linear layers before the prototypes.
        hidden_dim: width between them.
        bottleneck_dim: width that is normalised.
        norm_last_layer: whether the lengths of the prototypes stay 1, which is more stable; the original lets them
            be trained for ViT-S alone.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(
        self,
        in_dim: int,
        prototypes: int = 65536,
        nlayers: int = 3,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        refuse(self, self.problems(prototypes, nlayers, hidden_dim, bottleneck_dim))
        widths = [in_dim, *[hidden_dim] * (nlayers - 1), bottleneck_dim]
        steps: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            steps += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*steps[:-1])
        self.prototypes = prototypes
        self.last_layer = Prototypes(bottleneck_dim, prototypes, learn_length=not norm_last_layer)
        if self.last_layer.weight_v.device.type != "meta":
            self.init_weights(seed=0)

    @staticmethod
    def problems(prototypes: int, nlayers: int, hidden_dim: int, bottleneck_dim: int, **_: object) -> Iterator[Problem]:
        sizes = {"nlayers": nlayers, "hidden_dim": hidden_dim, "bottleneck_dim": bottleneck_dim}
        yield from ((name, "must be at least 1") for name, value in sizes.items() if value < 1)
        if prototypes < 2:
            yield "prototypes", "must be at least 2: with one there is nothing to tell apart"

    def forward(self, x: Tensor, train_prototypes: bool = True) -> Tensor:
        """[N, in_dim] → [N, prototypes]"""
        return self.last_layer(F.normalize(self.mlp(x), dim=-1), train_prototypes)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """As the original: matrices normal with σ 0.02, biases 0; prototypes uniform within ± 1/√width, lengths 1."""
        for name, parameter in self.named_parameters():
            draw, generator = torch.zeros(parameter.shape), generator_for(seed, f"head.{name}")
            if name.endswith("weight_v"):
                bound = parameter.shape[1] ** -0.5  # torch's default for a linear layer
                draw.uniform_(-bound, bound, generator=generator)
            elif name.endswith("weight_g"):
                draw.fill_(1.0)
            elif parameter.ndim == 2:
                draw.normal_(std=0.02, generator=generator)
            fill(parameter, draw)

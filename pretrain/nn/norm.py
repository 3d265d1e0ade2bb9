"""Layer normalisation (Ba et al., arXiv 1607.06450)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """torch's, which computes in its input's type also where its weights have a narrower one.

    Sharded blocks are gathered in bfloat16, and their input is float32. Autocast on a GPU widens such weights by
    itself; a CPU would refuse them.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]."""
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(dtype), self.bias.to(dtype), self.eps)

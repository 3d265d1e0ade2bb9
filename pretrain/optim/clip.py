"""Clipping gradients by their norms: all together, or each parameter's by itself as the official DINO does.

Nothing is read on the host, so that nobody waits for the device.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

ClipBy = Literal["global", "parameter"]


def gradient_norms(gradients: list[Tensor]) -> Tensor:
    """The norm of each of P gradients: [P]."""
    return torch.stack(torch._foreach_norm(gradients))


def total_norm(norms: Tensor) -> Tensor:
    """The norm of all gradients together, from the norm of each [P]."""
    return torch.linalg.vector_norm(norms)


def clip_gradients(gradients: list[Tensor], norms: Tensor, limit: float, by: ClipBy) -> None:
    """Scales gradients down, in place, so that no norm exceeds a limit: × limit / (norm + 1e-6) where that is below 1.

    Args:
        gradients: P of them.
        norms: of each [P].
        limit: the greatest norm.
        by: which norm: `global`, of all gradients together, as `torch.nn.utils.clip_grad_norm_`; or `parameter`, of
            each by itself, as DINO's `utils.clip_gradients`.
    """
    if by == "global":
        torch._foreach_mul_(gradients, _scale(total_norm(norms), limit))
    else:
        torch._foreach_mul_(gradients, list(_scale(norms, limit).unbind()))


def _scale(norms: Tensor, limit: float) -> Tensor:
    return (limit / (norms + 1e-6)).clamp(max=1.0)

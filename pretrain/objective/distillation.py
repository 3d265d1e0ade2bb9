"""The loss of DINO (Caron et al., arXiv 2104.14294, §3.1 and algorithm 1): self-distillation without labels.

As a nested loop, for one sample with teacher outputs t_g of the global views and student outputs s_v of all views,
the global ones first:

    for g in global views:
        q = softmax((t_g − centre) / teacher temperature)
        for v in all views but g:
            loss += −Σ_k q_k · log softmax(s_v / student temperature)_k

averaged over the pairs (g, v) and over samples. `distillation_loss` is that sum in matrix products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain import precision
from pretrain.precision import wide


def teacher_probabilities(teacher: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Centred and sharpened: outputs [G, B, K] and a centre [K] → probabilities [G, B, K] in float32."""
    return ((wide(teacher) - center) / temperature).softmax(dim=-1)


def distillation_loss(student: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    """The mean cross-entropy over all pairs of a global view of the teacher and another view of the student.

    Since Σ_k q_k = 1, one pair is logsumexp(s) − q·s: no logarithm of a softmax is kept for the backward pass.

    Args:
        student: [V, B, K] outputs, the G global views first.
        probabilities: [G, B, K] of the teacher, without a gradient.
        temperature: of the student.

    Returns:
        a scalar in float32.
    """
    logits = wide(student) / temperature
    views, globals_ = len(logits), len(probabilities)
    with precision.full(logits):  # as the original
        products = torch.einsum("gbk,vbk->gvb", probabilities, logits)
    losses = (logits.logsumexp(dim=-1) - products).mean(dim=-1)  # [G, V]
    same = torch.eye(globals_, views, device=logits.device)
    return (losses * (1 - same)).sum() / (globals_ * (views - 1))


def entropy(probabilities: Tensor) -> Tensor:
    """In nats: [..., K] → [...]"""
    return torch.special.entr(probabilities).sum(dim=-1)


def moved_center(center: Tensor, mean: Tensor, momentum: float) -> Tensor:
    """The centre [K] after a step in which the teacher's outputs had the mean [K]."""
    return center * momentum + mean * (1 - momentum)

"""The exponential moving average of a student: a teacher that is never trained (Tarvainen & Valpola, arXiv 1703.01780).

A teacher is a part of the objective, so every checkpoint holds it; its parameters ask for no gradient, so no optimizer
does. It is spread over devices as its student is, and each device moves what it holds.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def teacher_of(student: Network) -> Network:
    """A copy of a student that no gradient reaches, in evaluation mode."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float, skipped: Tensor) -> None:
    """teacher ← teacher + (1 − momentum) · (student − teacher), all parameters together in fused calls.

    Args:
        teacher, student: of the same architecture.
        momentum: how much of the teacher stays.
        skipped: a bool on the device: whether the teacher stays as it is. It is read there, so that nobody waits.
    """
    ours, theirs = ([_local(one) for one in network.parameters()] for network in (teacher, student))
    way = torch._foreach_sub(theirs, ours)
    torch._foreach_mul_(way, torch.where(skipped, 0.0, 1.0 - momentum))
    torch._foreach_add_(ours, way)


def _local(parameter: Tensor) -> Tensor:
    """What this device holds of a parameter that is sharded; both networks are sharded alike."""
    from torch.distributed.tensor import DTensor  # here: it takes half a second, and a model without weights needs none

    return parameter.to_local() if isinstance(parameter, DTensor) else parameter

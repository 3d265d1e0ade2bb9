"""Arithmetic that has to stay in float32 at least, whatever the run's precision is."""

from __future__ import annotations

import torch
from torch import Tensor


def full(tensor: Tensor) -> torch.autocast:
    """A context in which nothing on the tensor's device is cast to a lower precision."""
    return torch.autocast("cuda" if tensor.is_cuda else "cpu", enabled=False)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it is that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()

"""What objectives draw for a person, from normalised numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain import precision
from pretrain.view.spec import ViewSpec


def colours(images: Tensor, view: ViewSpec) -> Tensor:
    """Normalised pixels [..., 3, H, W] as uint8 colours; a normalised 0 is the view's mean colour."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (view.mean, view.std))
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def components(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The three directions in which tokens of all samples differ most, as red, green and blue.

    Args:
        tokens: [B, L, D].
        grid: (rows, columns) with L of them.

    Returns:
        [B, 3, rows, columns] uint8; each colour goes from the 2nd to the 98th percentile of its direction.
    """
    flat = tokens.float().flatten(0, 1)
    flat = flat - flat.mean(dim=0)
    with precision.full(flat):  # eigenvectors and quantiles have no kernels for less
        directions = torch.linalg.eigh(flat.T @ flat).eigenvectors[:, -3:].flip(1)  # [D, 3], ascending before the flip
        values = flat @ directions
    low, high = (torch.quantile(values, share, dim=0) for share in (0.02, 0.98))
    shades = ((values - low) / (high - low).clamp_min(1e-6)).clamp(0, 1) * 255
    return shades.round().to(torch.uint8).view(len(tokens), *grid, 3).permute(0, 3, 1, 2)

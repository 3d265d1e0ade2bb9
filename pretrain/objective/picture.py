"""What objectives draw for a person, from normalised numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain import precision
from pretrain.view.spec import ViewSpec


def colours(images: Tensor, view: ViewSpec) -> Tensor:
    """Normalised pixels [..., C, H, W] as uint8 colours [..., 3, H, W]; a normalised 0 is the view's mean colour.

    Of more than three channels the first three are shown as red, green and blue, of one or two the first as grey.
    """
    shown = slice(3) if view.channels >= 3 else [0, 0, 0]
    images = images[..., shown, :, :]
    mean, std = (torch.tensor(values, device=images.device)[shown, None, None] for values in (view.mean, view.std))
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def components(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The three directions in which tokens of all samples differ most, as red, green and blue.

    Args:
        tokens: [B, L, D].
        grid: (rows, columns) with L of them.

    Returns:
        [B, 3, rows, columns] uint8; each colour goes from the 2nd to the 98th percentile of its direction. All black
        where tokens are not finite, or too large for their squares to be.
    """
    flat = tokens.float().flatten(0, 1)
    flat = flat - flat.mean(dim=0)
    with precision.full(flat):  # eigenvectors and quantiles have no kernels for less
        products = flat.T @ flat
        finite = products.isfinite().all()
        products = torch.where(finite, products, torch.zeros_like(products))  # eigh raises on anything else
        directions = torch.linalg.eigh(products).eigenvectors[:, -3:].flip(1)  # [D, 3], ascending before the flip
        values = torch.where(finite, flat, torch.zeros_like(flat)) @ directions
    low, high = (torch.quantile(values, share, dim=0) for share in (0.02, 0.98))
    shades = ((values - low) / (high - low).clamp_min(1e-6)).clamp(0, 1) * 255
    return shades.round().to(torch.uint8).view(len(tokens), *grid, 3).permute(0, 3, 1, 2)

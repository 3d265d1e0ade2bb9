"""Random masks as index tensors: names carry the polarity, so nobody has to remember what True means."""

from __future__ import annotations

import torch
from torch import Tensor


def split_by_noise(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """Splits the mask units of each sample at random (He et al., arXiv 2111.06377, §3).

    Args:
        noise: [B, L], one independent draw for each unit.
        mask_ratio: share of the units to mask. The ⌊L·(1 − mask_ratio)⌋ units of least noise stay visible, as in
            the original; at least one stays, and at least one is masked.

    Returns:
        visible_ids [B, K] and masked_ids [B, L − K], in the order of their noise.
    """
    units = noise.shape[1]
    visible = min(max(1, int(units * (1 - mask_ratio))), units - 1)
    order = noise.argsort(dim=1, stable=True)
    return order[:, :visible], order[:, visible:]


def token_ids(unit_ids: Tensor, units: tuple[int, int], tokens_per_side: int) -> Tensor:
    """The numbers of the tokens inside mask units, counted row by row over the whole token grid.

    Args:
        unit_ids: [B, K].
        units: (rows, columns) of mask units in the image.
        tokens_per_side: a unit holds this many tokens squared.

    Returns:
        [B, K·tokens_per_side²], unit by unit, each unit's tokens row by row.
    """
    side, columns = tokens_per_side, units[1]
    if side == 1:
        return unit_ids
    inside = torch.arange(side, device=unit_ids.device)
    rows = (unit_ids // columns * side)[..., None, None] + inside[:, None]  # [B, K, side, 1]
    cols = (unit_ids % columns * side)[..., None, None] + inside  # [B, K, 1, side]
    return (rows * (columns * side) + cols).flatten(1)

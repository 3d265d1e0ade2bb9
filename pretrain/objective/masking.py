"""Random masks as index tensors: names carry the polarity, so nobody has to remember what True means."""

from __future__ import annotations

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

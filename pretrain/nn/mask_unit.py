"""Mask units: the order of tokens inside them, in which pooling is a maximum over neighbours in memory, and attention.

As in Hiera (Ryali et al., arXiv 2306.00989, §3; "unroll" in its code), but unit by unit: tokens are [B, K units, T, D],
so that attention inside a unit folds units into the batch, and attention over the image only flattens. Inside a unit
the finest 2×2 offset comes slowest: [4, 4, …, rest], so the maximum over 2×2 squares is `view(4, T/4).max(0)`, again
and again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.nn.attention import attend


def unroll_order(side: int, levels: int, device: torch.device | str = "cpu") -> Tensor:
    """The tokens of a unit of side² in unrolled order: [side²] int64 numbers, counted row by row.

    `levels` times they can be pooled; `side` is a multiple of 2^levels. Made anew each time: a tensor kept from one
    call to the next would be a wrong one after tracing or inference mode.
    """
    ids = torch.arange(side * side, device=device).view(side, side)
    for _ in range(levels):
        ids = ids.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # […, rows, 2, columns, 2]
        ids = ids.movedim((-3, -1), (-4, -3))  # […, 2, 2, rows, columns]
    return ids.flatten()


def cut(tokens: Tensor, units: tuple[int, int], side: int, levels: int) -> Tensor:
    """Tokens [..., L, D], row by row over an image of `units`, as units in unrolled order: [..., U, side², D]."""
    rows, columns = units
    cells = tokens.unflatten(-2, (rows, side, columns, side)).transpose(-4, -3)  # [..., rows, columns, side, side, D]
    return cells.flatten(-5, -4).flatten(-3, -2).index_select(-2, unroll_order(side, levels, tokens.device))


def roll(tokens: Tensor, levels: int) -> Tensor:
    """The inverse order inside each unit: [..., T, D] as unrolled with `levels` left, now row by row."""
    if levels == 0:
        return tokens
    side = round(tokens.shape[-2] ** 0.5)
    return tokens.index_select(-2, unroll_order(side, levels, tokens.device).argsort())


def join(tokens: Tensor, units: tuple[int, int], levels: int) -> Tensor:
    """Maps [B, rows·t, columns·t, D] of all units' tokens [B, U, t², D] as unrolled with `levels` left."""
    side = round(tokens.shape[-2] ** 0.5)
    cells = roll(tokens, levels).unflatten(2, (side, side)).unflatten(1, units)  # [B, rows, columns, t, t, D]
    return cells.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def pool(tokens: Tensor, times: int = 1) -> Tensor:
    """The maximum over 2×2 tokens, `times` times: [B, K, T, …] → [B, K, T / 4^times, …]."""
    for _ in range(times):
        tokens = tokens.unflatten(2, (4, -1)).max(dim=2).values
    return tokens


def token_ids(unit_ids: Tensor, columns: int, side: int, levels: int = 0) -> Tensor:
    """The numbers of the tokens of units, counted row by row over the whole image.

    Args:
        unit_ids: [B, K].
        columns: of units in the image.
        side: of a unit, in tokens.
        levels: of unrolling; with 0, each unit's tokens come row by row.

    Returns:
        [B, K, side²]
    """
    order = unroll_order(side, levels, unit_ids.device)
    rows = (unit_ids // columns * side)[..., None] + order // side
    return rows * (columns * side) + (unit_ids % columns * side)[..., None] + order % side


class MaskUnitAttention(nn.Module):
    """Attention inside each mask unit, or over all units of an image, that may pool its queries.

    Args:
        dim, dim_out: width of the tokens that come and go.
        num_heads: attention heads.
        pooled: whether queries, and so outputs, are the maxima over 2×2 tokens.
        windowed: whether tokens see their own unit alone.
    """

    def __init__(self, dim: int, dim_out: int, num_heads: int, pooled: bool, windowed: bool) -> None:
        super().__init__()
        self.num_heads, self.pooled, self.windowed = num_heads, pooled, windowed
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, K, T, dim] → [B, K, T or T/4, dim_out]"""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(3)  # [B, K, T, heads, d]
        q = pool(q, times=int(self.pooled))
        dims = (0, 1) if self.windowed else (1, 2)  # units belong to the batch, or to the sequence
        out = attend(q.flatten(*dims), k.flatten(*dims), v.flatten(*dims))
        return self.proj(out.reshape(*q.shape[:3], -1))

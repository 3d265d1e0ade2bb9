"""The pre-norm transformer block of ViT (Dosovitskiy et al., arXiv 2010.11929)."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.nn.attention import Attention
from pretrain.nn.drop_path import DropPath
from pretrain.nn.norm import LayerNorm
from pretrain.records import Problem


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        norm_eps: float,
        drop_path: DropPath | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.norm2 = LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = drop_path or DropPath()

    def forward(self, x: Tensor, queries: int | None = None, draw: Tensor | None = None) -> Tensor:
        """[B, N, D] → [B, N, D], or the first `queries` tokens of it at the cost of these alone.

        `draw` [B, 2] decides for which samples the branches are left out.
        """
        first, second = (None, None) if draw is None else draw.unbind(1)
        x = self.drop_path(x[:, :queries], lambda rows: self.attn(self.norm1(rows), queries), x, first)
        return self.drop_path(x, lambda rows: self.mlp(self.norm2(rows)), x, second)


def block_problems(embed_dim: int, depth: int, num_heads: int, mlp_ratio: float) -> Iterator[Problem]:
    """What is wrong with the sizes of a stack of blocks with a sine–cosine position table."""
    if embed_dim * mlp_ratio < 1:
        yield "mlp_ratio", "must be positive"
    if depth < 1:
        yield "depth", "must be at least 1"
    if num_heads < 1 or embed_dim % num_heads:
        yield "num_heads", f"must divide `embed_dim` (={embed_dim})"
    if embed_dim < 4 or embed_dim % 4:
        yield "embed_dim", "must be a multiple of 4, for the position table"

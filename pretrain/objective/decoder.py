"""The light transformer of MAE that predicts what is masked from what is visible (He et al., arXiv 2111.06377, §3).

Attention does not care for order once positions are added, so the tokens are never put back into raster order: the
sequence is [masked, cls, visible], and the last block computes the masked tokens alone when only these are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from pretrain.nn.block import Block, block_problems
from pretrain.nn.initialize import initialize
from pretrain.nn.norm import LayerNorm
from pretrain.nn.position import looked_up, resize_table, sincos_2d
from pretrain.records import Problem, Tokens, refuse


class Decoder(nn.Module):
    """Visible tokens and positions in, predictions for masked (or all) positions out.

    Args:
        in_dim: width of the encoder's tokens.
        out_dim: numbers to predict for each token.
        grid: (rows, columns) of tokens that a learned position table is made for; other grids resize it.
        embed_dim, depth, num_heads, mlp_ratio, norm_eps: of the decoder's own blocks.
        position: table of positions, `fixed` sine–cosine as in MAE, or `learned` as in Hiera's autoencoder.

    Raises:
        ValueError: the heads do not divide the width, …
    """

    pos_embed: nn.Parameter | None

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        grid: tuple[int, int],
        embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        position: Literal["fixed", "learned"] = "fixed",
    ) -> None:
        super().__init__()
        refuse(self, self.problems(embed_dim, depth, num_heads, mlp_ratio))
        self.embed_dim = embed_dim
        self.grid = grid
        self.embed = nn.Linear(in_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        learned = nn.Parameter(torch.empty(1, grid[0] * grid[1], embed_dim)) if position == "learned" else None
        self.register_parameter("pos_embed", learned)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, True, norm_eps) for _ in range(depth))
        self.norm = LayerNorm(embed_dim, eps=norm_eps)
        self.pred = nn.Linear(embed_dim, out_dim)
        if self.mask_token.device.type != "meta":
            self.init_weights(seed=0)

    @staticmethod
    def problems(embed_dim: int, depth: int, num_heads: int, mlp_ratio: float, **_: object) -> Iterator[Problem]:
        yield from block_problems(embed_dim, depth, num_heads, mlp_ratio)

    def forward(self, tokens: Tokens, visible_ids: Tensor, masked_ids: Tensor) -> Tensor:
        """Predictions [B, M, out_dim] for `masked_ids` [B, M], given tokens for `visible_ids` [B, K]."""
        x = self._sequence(tokens, visible_ids, masked_ids)
        for block in self.blocks[:-1]:
            x = block(x)
        masked = self.blocks[-1](x, queries=masked_ids.shape[1])
        return self.pred(self.norm(masked))

    def predict_all(self, tokens: Tokens, visible_ids: Tensor, masked_ids: Tensor) -> Tensor:
        """Predictions [B, L, out_dim] for every token of the grid, row by row."""
        x = self._sequence(tokens, visible_ids, masked_ids)
        for block in self.blocks:
            x = block(x)
        x = self.pred(self.norm(x))
        ids = torch.cat([masked_ids, visible_ids], dim=1)
        masked = masked_ids.shape[1]
        ordered = torch.cat([x[:, :masked], x[:, x.shape[1] - visible_ids.shape[1] :]], dim=1)
        return torch.empty_like(ordered).scatter(1, ids[..., None].expand_as(ordered), ordered)

    def _sequence(self, tokens: Tokens, visible_ids: Tensor, masked_ids: Tensor) -> Tensor:
        table = self._positions(tokens.grid, visible_ids.device)  # [L, D]
        parts = [self.mask_token + looked_up(table, masked_ids)]
        if tokens.cls is not None:
            parts.append(self.embed(tokens.cls)[:, None])  # its position is zero
        parts.append(self.embed(tokens.patches) + looked_up(table, visible_ids))
        return torch.cat(parts, dim=1)

    def _positions(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        if self.pos_embed is None:
            return sincos_2d(grid, self.embed_dim, device)
        return resize_table(self.pos_embed[0], self.grid, grid)

    def init_weights(self, seed: int) -> None:
        initialize(self, seed, scope="decoder.")

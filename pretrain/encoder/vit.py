"""Vision transformer (Dosovitskiy et al., arXiv 2010.11929) as the official MAE builds it (arXiv 2111.06377).

Parameters are named as timm names them, so that weights travel without a key map. Ours differs from the original in
one point that changes no number: the visible patches are gathered *before* they are projected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pretrain.encoder.encoder import Encoder, block_numbers
from pretrain.nn.block import Block, block_problems
from pretrain.nn.drop_path import Mode, draws, drop_path_notes, drop_path_problems, drop_paths
from pretrain.nn.initialize import Distribution, fill, initialize
from pretrain.nn.norm import LayerNorm
from pretrain.nn.patch import PatchEmbed, grid_of
from pretrain.nn.position import looked_up, resize_table, sincos_2d
from pretrain.records import Problem, Randomness, Tokens, refuse


class ViT(Encoder):
    """A plain vision transformer with a class token.

    Args:
        img_size: side in pixels (or height and width) that the position table is made for; other sizes resize it.
        patch_size: side of a patch in pixels.
        in_chans: channels of an image.
        embed_dim: width D of a token.
        depth: number of blocks.
        num_heads: attention heads a block.
        mlp_ratio: hidden width of a block's MLP over `embed_dim`.
        qkv_bias: whether query, key and value have a bias.
        norm_eps: ε of the layer norms.
        position: table of positions, `fixed` sine–cosine as MAE has it, or `learned` as DINO does.
        position_offset: 0.1 resizes the table just as the official DINO does, see `pretrain.nn.position.resize_table`.
        distribution: of the initial matrices, `xavier` as MAE has it, or `normal` as DINO does.
        drop_path: probability to leave out a branch of the last block; it grows evenly from 0 at the first.
        drop_path_mode: `sample` or `subset`, see `pretrain.nn.drop_path.DropPath`.

    Raises:
        ValueError: `img_size` is no multiple of `patch_size`, the heads do not divide the width, …
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        position: Literal["fixed", "learned"] = "fixed",
        position_offset: float = 0.0,
        distribution: Distribution = "xavier",
        drop_path: float = 0.0,
        drop_path_mode: Mode = "sample",
    ) -> None:
        super().__init__()
        sizes = (img_size, patch_size, embed_dim, depth, num_heads, in_chans, mlp_ratio)
        refuse(self, self.problems(*sizes, drop_path, drop_path_mode, position))
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.img_size = (height, width)
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.mask_unit = self.token_size = patch_size
        self.has_cls = True
        self.after_pretraining = {}
        self.notes = drop_path_notes(drop_path, drop_path_mode)
        self.drop_rate = drop_path
        self.grid = (height // patch_size, width // patch_size)

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        table = torch.empty(1, 1 + self.grid[0] * self.grid[1], embed_dim)
        self.pos_embed = nn.Parameter(table, requires_grad=position == "learned")  # its first row is the class token's
        self.position_offset = position_offset
        self.distribution: Distribution = distribution
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias, norm_eps, drop)
            for drop in drop_paths(drop_path, drop_path_mode, depth)
        )
        self.norm = LayerNorm(embed_dim, eps=norm_eps)
        if self.pos_embed.device.type != "meta":
            self.init_weights(seed=0)

    @staticmethod
    def problems(
        img_size: int | Sequence[int],
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        in_chans: int,
        mlp_ratio: float,
        drop_path: float,
        drop_path_mode: str,
        position: str,
        **_: object,
    ) -> Iterator[Problem]:
        yield from block_problems(embed_dim, depth, num_heads, mlp_ratio)
        yield from drop_path_problems(drop_path, drop_path_mode)
        if position not in ("fixed", "learned"):
            yield "position", "must be fixed or learned"
        if in_chans < 1:
            yield "in_chans", "must be at least 1"
        sides = [img_size] if isinstance(img_size, int) else list(img_size)
        if not isinstance(img_size, int) and len(img_size) != 2:
            yield "img_size", "must be one number or [height, width]"
        if patch_size < 1:
            yield "patch_size", "must be at least 1"
        elif any(side < 1 or side % patch_size for side in sides):
            yield "img_size", f"must be a positive multiple of `patch_size` (={patch_size})"

    def forward(
        self, images: Tensor, visible_ids: Tensor | None = None, randomness: Randomness | None = None
    ) -> Tokens:
        x, grid = self._embed(images, visible_ids)
        drawn = draws(self.drop_rate, len(self.blocks), randomness) if self.training else None
        for number, block in enumerate(self.blocks):
            x = block(x, draw=None if drawn is None else drawn[:, number])
        return self._tokens(x, grid)

    def intermediate(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        states, grid = self._states(images, blocks)
        return [self._tokens(x, grid) for x in states]

    def feature_maps(self, images: Tensor, blocks: Sequence[int] | None = None) -> list[Tensor]:
        depth = len(self.blocks)
        even = [max(0, depth * quarter // 4 - 1) for quarter in range(1, 5)]
        states, grid = self._states(images, even if blocks is None else blocks)
        return [x[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2) for x in states]

    def _states(self, images: Tensor, blocks: Sequence[int]) -> tuple[list[Tensor], tuple[int, int]]:
        """The tokens [B, 1 + L, D] after each of the blocks, and their grid."""
        x, grid = self._embed(images, None)
        wanted = block_numbers(blocks, len(self.blocks))
        states = {}
        for number, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            x = block(x)
            if number in wanted:
                states[number] = x
        return [states[number] for number in wanted], grid

    def _embed(self, images: Tensor, visible_ids: Tensor | None) -> tuple[Tensor, tuple[int, int]]:
        grid = grid_of(images, self.mask_unit)
        positions = resize_table(self.pos_embed[0, 1:], self.grid, grid, self.position_offset)  # [L, D]
        positions = positions if visible_ids is None else looked_up(positions, visible_ids)  # [B, K, D]
        patches = self.patch_embed(images, visible_ids) + positions
        cls = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([cls.expand(patches.shape[0], -1, -1), patches], dim=1), grid  # [B, 1 + K, D]

    def _tokens(self, x: Tensor, grid: tuple[int, int]) -> Tokens:
        x = self.norm(x)
        return Tokens(cls=x[:, 0], registers=None, patches=x[:, 1:], grid=grid)

    def fsdp_units(self) -> list[nn.Module]:
        return list(self.blocks)

    def no_decay(self) -> set[str]:
        return set()

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        initialize(self, seed, distribution=self.distribution)
        if not self.pos_embed.requires_grad:
            table = torch.zeros(self.pos_embed.shape)
            table[0, 1:] = sincos_2d(self.grid, self.embed_dim)
            fill(self.pos_embed, table)

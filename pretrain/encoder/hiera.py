"""Hiera (Ryali et al., "Hiera: a hierarchical vision transformer without the bells-and-whistles", arXiv 2306.00989).

A plain transformer in four stages that halve the resolution and double the width, by a maximum over 2×2 queries.
Early stages attend inside mask units, later ones over all that is visible, so a dropped unit costs nothing anywhere.

Parameters are named as the official code names them, and outputs equal its outputs. Ours differs in the work it does:
only visible units are convolved, and units fold into the batch, so that attention has four dimensions and fused
kernels apply. Multi-scale fusion, which the official code has in its autoencoder, is an option of the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.encoder.encoder import Encoder, block_numbers
from pretrain.nn.block import Mlp
from pretrain.nn.drop_path import DropPath, Mode, draws, drop_path_notes, drop_path_problems, drop_paths
from pretrain.nn.initialize import DefaultConv2d, initialize
from pretrain.nn.mask_unit import MaskUnitAttention, cut, join, pool, roll, token_ids, unroll_order
from pretrain.nn.norm import LayerNorm
from pretrain.nn.patch import OverlappingPatchEmbed, grid_of
from pretrain.nn.position import looked_up, resize_windowed, tile
from pretrain.precision import wide
from pretrain.records import Problem, Randomness, Tokens, refuse


class HieraBlock(nn.Module):
    """A pre-norm transformer block; the first of a stage widens its tokens and may pool them."""

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        mlp_ratio: float,
        norm_eps: float,
        drop_path: DropPath,
        pooled: bool,
        windowed: bool,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attn = MaskUnitAttention(dim, dim_out, num_heads, pooled, windowed)
        self.norm2 = LayerNorm(dim_out, eps=norm_eps)
        self.mlp = Mlp(dim_out, int(dim_out * mlp_ratio))
        self.drop_path = drop_path
        self.dim_out = dim_out
        if dim != dim_out:
            self.proj = nn.Linear(dim, dim_out)

    def forward(self, x: Tensor, draw: Tensor | None = None) -> Tensor:
        """[B, K, T, dim] → [B, K, T or T/4, dim_out]; `draw` [B, 2] decides for whom the branches are left out."""
        first, second = (None, None) if draw is None else draw.unbind(1)
        if hasattr(self, "proj"):
            normed = self.norm1(x)
            shortcut = pool(self.proj(normed), times=int(self.attn.pooled))
            x = self.drop_path(shortcut, self.attn, normed, first)
        else:
            x = self.drop_path(x, lambda rows: self.attn(self.norm1(rows)), x, first)
        return self.drop_path(x, lambda rows: self.mlp(self.norm2(rows)), x, second)


class Hiera(Encoder):
    """A hierarchical vision transformer that drops mask units, without a class token.

    Args:
        img_size: side in pixels (or height and width) that the position table is made for; other sizes resize it.
        in_chans: channels of an image.
        embed_dim: width of the first stage's tokens. Each further stage doubles it, and its heads.
        num_heads: attention heads of the first stage.
        stages: blocks of each stage.
        q_pool: how many stages, from the second on, halve the resolution. Fewer while pretraining with MAE, so that
            predicted tokens are small; the weights are the same.
        mask_unit_size: side of a mask unit in tokens of the first stage.
        mask_unit_attn: for each stage, whether its tokens attend inside their mask unit alone. The first block of a
            stage does as the stage before: attention over the image begins at the lower resolution.
        patch_kernel, patch_stride, patch_padding: of the convolution that makes the first tokens, in pixels.
        mlp_ratio: hidden width of a block's MLP over the width of its tokens.
        norm_eps: ε of the layer norms.
        multi_scale_fusion: whether the ends of the pooled stages are projected and added to the output (§3.3).
        position: `absolute`, one learned table; `absolute_window`, a small one for the image, stretched, plus one for
            a mask unit, repeated (Bolya et al., arXiv 2311.05613).
        global_pos_size: side of the image's table with `absolute_window`.
        drop_path: probability to leave out a branch of the last block; it grows evenly from 0 at the first.
        drop_path_mode: `sample` or `subset`, see `pretrain.nn.drop_path.DropPath`.

    Raises:
        ValueError: `img_size` is no multiple of a mask unit, the heads do not divide the width, …
    """

    pos_embed: nn.Parameter
    pos_embed_win: nn.Parameter | None

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        embed_dim: int = 96,
        num_heads: int = 1,
        stages: Sequence[int] = (1, 2, 7, 2),
        q_pool: int = 3,
        mask_unit_size: int = 8,
        mask_unit_attn: Sequence[bool] = (True, True, False, False),
        patch_kernel: int = 7,
        patch_stride: int = 4,
        patch_padding: int = 3,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        multi_scale_fusion: bool = False,
        position: Literal["absolute", "absolute_window"] = "absolute",
        global_pos_size: int = 14,
        drop_path: float = 0.0,
        drop_path_mode: Mode = "sample",
    ) -> None:
        super().__init__()
        first_tokens = (patch_kernel, patch_stride, patch_padding)
        sizes = (embed_dim, num_heads, stages, q_pool, mask_unit_size, mask_unit_attn, *first_tokens, mlp_ratio)
        refuse(self, self.problems(img_size, in_chans, *sizes, global_pos_size, drop_path, drop_path_mode, position))
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.img_size = (height, width)
        self.in_chans = in_chans
        self.embed_dim = embed_dim * 2 ** (len(stages) - 1)
        self.mask_unit = mask_unit_size * patch_stride
        self.token_size = patch_stride * 2**q_pool
        self.has_cls = False
        self.after_pretraining = {"q_pool": len(stages) - 1, "multi_scale_fusion": False}
        self.notes = drop_path_notes(drop_path, drop_path_mode)
        self.levels = len(stages) - 1  # that tokens inside a unit are unrolled by
        self.q_pool = q_pool
        self.mask_unit_size = mask_unit_size
        self.grid = (height // patch_stride, width // patch_stride)
        self.stage_ends = [sum(stages[: number + 1]) - 1 for number in range(len(stages))]
        self.drop_rate = drop_path

        self.patch_embed = OverlappingPatchEmbed(*first_tokens, in_chans, embed_dim)
        if position == "absolute":
            self.pos_embed = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], embed_dim))
            self.register_parameter("pos_embed_win", None)
        else:  # as timm stores them
            self.pos_embed = nn.Parameter(torch.empty(1, embed_dim, global_pos_size, global_pos_size))
            self.pos_embed_win = nn.Parameter(torch.empty(1, embed_dim, mask_unit_size, mask_unit_size))

        drops = iter(drop_paths(drop_path, drop_path_mode, sum(stages)))
        self.blocks = nn.ModuleList()
        for stage, depth in enumerate(stages):
            for first in [stage > 0, *[False] * (depth - 1)]:
                dims, heads = (embed_dim * 2 ** (stage - first), embed_dim * 2**stage), num_heads * 2**stage
                kind = {"pooled": first and stage <= q_pool, "windowed": mask_unit_attn[stage - first]}
                self.blocks.append(HieraBlock(*dims, heads, mlp_ratio, norm_eps, next(drops), **kind))
        self.multi_scale_fusion_heads = nn.ModuleList()
        for stage in range(q_pool if multi_scale_fusion else 0):
            side = 2 ** (q_pool - stage)
            self.multi_scale_fusion_heads.append(DefaultConv2d(embed_dim * 2**stage, self.embed_dim, side, side))
        self.norm = LayerNorm(self.embed_dim, eps=norm_eps)
        if self.pos_embed.device.type != "meta":
            self.init_weights(seed=0)

    @staticmethod
    def problems(
        img_size: int | Sequence[int],
        in_chans: int,
        embed_dim: int,
        num_heads: int,
        stages: Sequence[int],
        q_pool: int,
        mask_unit_size: int,
        mask_unit_attn: Sequence[bool],
        patch_kernel: int,
        patch_stride: int,
        patch_padding: int,
        mlp_ratio: float,
        global_pos_size: int,
        drop_path: float,
        drop_path_mode: str,
        position: str,
        **_: object,
    ) -> Iterator[Problem]:
        yield from OverlappingPatchEmbed.problems(patch_kernel, patch_stride, patch_padding)
        yield from drop_path_problems(drop_path, drop_path_mode)
        if position not in ("absolute", "absolute_window"):
            yield "position", "must be absolute or absolute_window"
        unit, sides = mask_unit_size * patch_stride, [img_size] if isinstance(img_size, int) else img_size
        if not isinstance(img_size, int) and len(img_size) != 2:
            yield "img_size", "must be one number or [height, width]"
        elif unit > 0 and any(side < 1 or side % unit for side in sides):
            yield "img_size", f"must be a positive multiple of a mask unit (`mask_unit_size` × `patch_stride` = {unit})"
        if not stages or min(stages) < 1:
            yield "stages", "must be one positive number of blocks for each stage"
        elif mask_unit_size < 1 or mask_unit_size % 2 ** (len(stages) - 1):
            yield (
                "mask_unit_size",
                f"must be a multiple of {2 ** (len(stages) - 1)}, which {len(stages)} stages pool to 1",
            )
        if not 0 <= q_pool < max(1, len(stages)):
            yield "q_pool", f"must be at least 0 and below the number of `stages` (={len(stages)})"
        if len(mask_unit_attn) != len(stages):
            yield "mask_unit_attn", f"must say true or false for each of the {len(stages)} `stages`"
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            yield "num_heads", f"must divide `embed_dim` (={embed_dim})"
        for name, value in {"in_chans": in_chans, "global_pos_size": global_pos_size}.items():
            if value < 1:
                yield name, "must be at least 1"
        if embed_dim * mlp_ratio < 1:
            yield "mlp_ratio", "must be positive"

    def forward(
        self, images: Tensor, visible_ids: Tensor | None = None, randomness: Randomness | None = None
    ) -> Tokens:
        fused = self.stage_ends[: len(self.multi_scale_fusion_heads)]
        drawn = draws(self.drop_rate, len(self.blocks), randomness) if self.training else None
        states = self._run(images, visible_ids, {*fused, self.stage_ends[-1]}, drawn)
        x = states[self.stage_ends[-1]]
        for end, head in zip(fused, self.multi_scale_fusion_heads, strict=True):
            x = x + self._fuse(head, states[end])
        return self._tokens(x, images, whole=visible_ids is None)

    def intermediate(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        wanted = block_numbers(blocks, len(self.blocks))
        if narrow := [block for block in wanted if self.blocks[block].dim_out != self.embed_dim]:
            raise ValueError(
                f"Hiera: the final norm does not fit the tokens of blocks {narrow}: take blocks from "
                f"{self.stage_ends[-2] + 1} to {len(self.blocks) - 1}, or `feature_maps`"
            )
        states = self._run(images, None, set(wanted))
        return [self._tokens(states[block], images, whole=True) for block in wanted]

    def feature_maps(self, images: Tensor, blocks: Sequence[int] | None = None) -> list[Tensor]:
        wanted = self.stage_ends if blocks is None else block_numbers(blocks, len(self.blocks))
        states, units = self._run(images, None, set(wanted)), grid_of(images, self.mask_unit)
        return [join(states[block], units, self._levels_left(block)).permute(0, 3, 1, 2) for block in wanted]

    def _run(
        self, images: Tensor, visible_ids: Tensor | None, wanted: set[int], drawn: Tensor | None = None
    ) -> dict[int, Tensor]:
        """The tokens after the wanted blocks, in units and unrolled: number of the block → [B, K, T, D]."""
        x = self._embed(images, visible_ids)  # [B, K, mask_unit_size², D]
        states = {}
        for number, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            x = block(x, None if drawn is None else drawn[:, number])
            if number in wanted:
                states[number] = x
        return states

    def _embed(self, images: Tensor, visible_ids: Tensor | None) -> Tensor:
        units, side = grid_of(images, self.mask_unit), self.mask_unit_size
        positions = cut(self._positions((units[0] * side, units[1] * side)), units, side, self.levels)  # [U, T, D]
        if visible_ids is None:
            return cut(self.patch_embed(images), units, side, self.levels) + positions
        ids = token_ids(visible_ids, units[1], side, self.levels)  # [B, K, T]
        patches = self.patch_embed.visible(images, visible_ids, self.mask_unit, ids.flatten(1))
        return patches.unflatten(1, ids.shape[1:]) + looked_up(positions, visible_ids)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table of a grid of first tokens: [L, D]."""
        if self.pos_embed_win is None:
            return resize_windowed(self.pos_embed[0], self.grid, grid, self.mask_unit_size)
        image = F.interpolate(wide(self.pos_embed), size=grid, mode="bicubic", antialias=True)  # as timm does it
        return image[0].flatten(1).T + tile(self.pos_embed_win[0].permute(1, 2, 0), grid)

    @staticmethod
    def _fuse(head: nn.Module, x: Tensor) -> Tensor:
        """A strided convolution of tokens [B, K, T, dim], as the matrix product that it is: [B, K, T′, D]."""
        assert isinstance(head, nn.Conv2d)
        side = head.kernel_size[0]
        order = unroll_order(side, side.bit_length() - 1, x.device)
        weight = head.weight.flatten(2)[..., order].transpose(1, 2).flatten(1)  # [D, side²·dim], unrolled like x
        squares = x.unflatten(2, (side * side, -1)).transpose(2, 3).flatten(3)  # [B, K, T′, side²·dim]
        return F.linear(squares, weight, head.bias)

    def _tokens(self, x: Tensor, images: Tensor, whole: bool) -> Tokens:
        x, units, left = self.norm(x), grid_of(images, self.mask_unit), self.levels - self.q_pool
        patches = join(x, units, left).flatten(1, 2) if whole else roll(x, left).flatten(1, 2)
        return Tokens(cls=None, registers=None, patches=patches, grid=grid_of(images, self.token_size))

    def _levels_left(self, block: int) -> int:
        """How often the tokens after a block can still be pooled."""
        stage = sum(block > end for end in self.stage_ends)
        return self.levels - min(stage, self.q_pool)

    def fsdp_units(self) -> list[nn.Module]:
        return list(self.blocks)

    def no_decay(self) -> set[str]:
        return {name for name in ("pos_embed", "pos_embed_win") if getattr(self, name) is not None}

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        initialize(self, seed)

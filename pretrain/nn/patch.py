"""Squares of pixels: cutting images into them, putting them back, and projecting them to tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.records import Problem

PixelOrder = Literal["chw", "hwc"]


def grid_of(images: Tensor, side: int) -> tuple[int, int]:
    """How many (rows, columns) of squares of `side` pixels cover images [B, C, H, W].

    Raises:
        ValueError: H or W is not a multiple of `side`.
    """
    height, width = images.shape[-2:]
    if height % side or width % side:
        raise ValueError(f"an image of {height}×{width} pixels cannot be cut into squares of {side} pixels")
    return height // side, width // side


def patchify(images: Tensor, side: int, ids: Tensor | None = None, order: PixelOrder = "chw") -> Tensor:
    """The pixels of the patches.

    Args:
        images: [B, C, H, W].
        side: of a patch, in pixels.
        ids: [B, K], which patches (row by row); None means all. Only these are read.
        order: of the pixels inside a patch: `hwc` as the official MAE has them, `chw` as a convolution has them.

    Returns:
        [B, K, C·side²]
    """
    rows, columns = grid_of(images, side)
    batch, channels = images.shape[:2]
    squares = images.reshape(batch, channels, rows, side, columns, side)
    squares = squares.permute((0, 2, 4, 1, 3, 5) if order == "chw" else (0, 2, 4, 3, 5, 1))  # [B, rows, columns, …]
    if ids is None:
        return squares.reshape(batch, rows * columns, -1)
    samples = torch.arange(batch, device=ids.device)[:, None]
    return squares[samples, ids // columns, ids % columns].flatten(2)


def unpatchify(patches: Tensor, grid: tuple[int, int], side: int, order: PixelOrder = "chw") -> Tensor:
    """Images [B, C, H, W] from all their patches [B, rows·columns, C·side²]: the inverse of `patchify`."""
    rows, columns = grid
    if order == "chw":
        squares = patches.view(patches.shape[0], rows, columns, -1, side, side).permute(0, 3, 1, 4, 2, 5)
    else:
        squares = patches.view(patches.shape[0], rows, columns, side, side, -1).permute(0, 5, 1, 3, 2, 4)
    return squares.reshape(patches.shape[0], -1, rows * side, columns * side)


class PatchEmbed(nn.Module):
    """A linear map of each patch, kept as the convolution that other systems store it as.

    Only the patches asked for are read and projected, so a masked image costs what its visible part costs.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor, ids: Tensor | None = None) -> Tensor:
        """[B, C, H, W] → [B, K, D], the patches `ids` [B, K] or all of them."""
        patches = patchify(images, self.patch_size, ids)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class OverlappingPatchEmbed(nn.Module):
    """A convolution whose kernel is wider than its stride, of all tokens or of those in visible mask units alone.

    What is masked is black to it: a token at the border of a visible unit sees zeros where a masked neighbour's pixels
    were, as at the border of the image. That equals the original's way, to convolve a whole image with masked pixels
    set to zero (facebookresearch/hiera, `do_masked_conv`), and costs what the visible units cost.

    Args:
        kernel, stride, padding: of the convolution, in pixels; `problems` says which fit each other.
        in_chans: channels of an image.
        embed_dim: width of a token.
    """

    def __init__(self, kernel: int, stride: int, padding: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=kernel, stride=stride, padding=padding)
        self.kernel, self.stride, self.padding = kernel, stride, padding

    @staticmethod
    def problems(patch_kernel: int, patch_stride: int, patch_padding: int) -> Iterator[Problem]:
        if patch_stride < 1:
            yield "patch_stride", "must be at least 1"
        elif patch_padding < 0 or not patch_kernel - patch_stride <= 2 * patch_padding < patch_kernel:
            yield (
                "patch_padding",
                f"must make one token of `patch_stride` (={patch_stride}) pixels: `patch_kernel` (={patch_kernel}) − "
                "`patch_stride` ≤ 2 × `patch_padding` < `patch_kernel`",
            )

    def forward(self, images: Tensor) -> Tensor:
        """All tokens, row by row: [B, C, H, W] → [B, L, D]."""
        return self.proj(images).flatten(2).transpose(1, 2)

    def visible(self, images: Tensor, visible_ids: Tensor, mask_unit: int, ids: Tensor) -> Tensor:
        """The tokens of visible mask units.

        Args:
            images: [B, C, H, W].
            visible_ids: [B, K], the units.
            mask_unit: side of a unit in pixels.
            ids: [B, N], which tokens, all inside those units.

        Returns:
            [B, N, D]
        """
        shown = only_visible(images, visible_ids, mask_unit)
        after = max(0, self.kernel - self.stride - self.padding)
        shown = F.pad(shown, (self.padding, after, self.padding, after))
        windows = shown.unfold(2, self.kernel, self.stride).unfold(3, self.kernel, self.stride)  # [B, C, h, w, k, k]
        samples, columns = torch.arange(len(ids), device=ids.device)[:, None], images.shape[-1] // self.stride
        patches = windows.permute(0, 2, 3, 1, 4, 5)[samples, ids // columns, ids % columns]  # [B, N, C, k, k]
        return F.linear(patches.flatten(2), self.proj.weight.flatten(1), self.proj.bias)


def only_visible(images: Tensor, visible_ids: Tensor, mask_unit: int) -> Tensor:
    """Images with every pixel outside the mask units `visible_ids` [B, K] set to zero, whatever it was."""
    rows, columns = grid_of(images, mask_unit)
    visible = torch.zeros(len(images), rows * columns, dtype=torch.bool, device=images.device)
    visible = visible.scatter(1, visible_ids, True).view(-1, 1, rows, 1, columns, 1)
    squares = images.reshape(*images.shape[:2], rows, mask_unit, columns, mask_unit)
    return torch.where(visible, squares, 0).reshape(images.shape)

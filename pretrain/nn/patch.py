"""Squares of pixels: cutting images into them, putting them back, and projecting them to tokens."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    squares = images.view(batch, channels, rows, side, columns, side)
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

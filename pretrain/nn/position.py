"""Tables of position embeddings: the fixed sine–cosine table of MAE, and how tables are resized."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.precision import wide


def sincos_2d(grid: tuple[int, int], dim: int, device: torch.device | str = "cpu") -> Tensor:
    """The fixed table of MAE (He et al., arXiv 2111.06377, appendix A.1): [rows·columns, dim] float32, row by row.

    The first half of a vector encodes the *column*, the second half the row, each as sines then cosines of the
    coordinate times 10000^(−i / (dim/4)). Computed in float64, like the original.

    Raises:
        ValueError: `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"a sine–cosine position table needs a width that is a multiple of 4, not {dim}")
    rows, columns = grid
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64, device=device) / (dim / 4))
    sides = (torch.arange(side, device=device) for side in (rows, columns))
    row, column = torch.meshgrid(*sides, indexing="ij")
    angles = [coordinate.flatten()[:, None] * frequencies for coordinate in (column, row)]  # [rows·columns, dim/4]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


def looked_up(table: Tensor, ids: Tensor) -> Tensor:
    """The rows `ids` [B, K] of a table [L, …]: [B, K, …], with a faster backward pass than `table[ids]` has."""
    return table.index_select(0, ids.flatten()).unflatten(0, ids.shape)


def resize_table(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], offset: float = 0.0) -> Tensor:
    """A table [rows·columns, D] resized bicubically to another grid, as fine-tuning at other resolutions does it.

    With an `offset` the sampling is that of a grid so much larger: the official DINO adds 0.1 to both sides before it
    forms the scale, and so shifts its samples a little.
    """
    if grid == new_grid:
        return table
    image = table.unflatten(0, grid).permute(2, 0, 1)[None]  # [1, D, rows, columns]
    image = wide(image)
    if offset:
        scale = [(new + offset) / old for new, old in zip(new_grid, grid, strict=True)]
        image = F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
    else:
        image = F.interpolate(image, size=new_grid, mode="bicubic", align_corners=False)
    return image[0].permute(1, 2, 0).flatten(0, 1).to(table.dtype)


def resize_windowed(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], window: int) -> Tensor:
    """A learned table [rows·columns, D] resized to another grid for an encoder that attends inside windows.

    Such an encoder learns a table that repeats itself from window to window, and stretching that breaks it (Bolya et
    al., "Window attention is bugged", arXiv 2311.05613). So the part that repeats, the mean over all windows, is
    repeated, and only the rest is stretched.

    Args:
        window: side in tokens; divides the sides of both grids.
    """
    if grid == new_grid:
        return table
    cells = table.view(grid[0] // window, window, grid[1] // window, window, -1)
    repeated = cells.mean(dim=(0, 2))  # [window, window, D]
    rest = (cells - repeated[:, None]).view_as(table)
    return resize_table(rest, grid, new_grid) + tile(repeated, new_grid)


def tile(window: Tensor, grid: tuple[int, int]) -> Tensor:
    """One window's table [window, window, D], repeated over a grid: [rows·columns, D], row by row."""
    side = window.shape[0]
    return window.repeat(grid[0] // side, grid[1] // side, 1).flatten(0, 1)

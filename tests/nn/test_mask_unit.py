"""The order inside mask units against its definition in plain loops."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pretrain.nn.mask_unit import cut, join, pool, roll, token_ids, unroll_order


@pytest.mark.parametrize(("side", "levels"), [(1, 0), (2, 1), (4, 2), (8, 3), (8, 2), (16, 3), (3, 0), (6, 1)])
def test_pooling_an_unrolled_unit_is_the_maximum_over_squares(side: int, levels: int) -> None:
    image = torch.randn(side * side, generator=torch.Generator().manual_seed(side))
    x = image[unroll_order(side, levels)].view(1, 1, -1, 1)
    for level in range(levels + 1):
        edge = 2**level
        expected = image.view(side // edge, edge, side // edge, edge).amax(dim=(1, 3)).flatten()
        assert torch.equal(roll(x, levels - level).flatten(), expected)
        x = pool(x) if level < levels else x


def test_the_finest_offset_comes_slowest() -> None:
    assert unroll_order(4, 2).tolist() == [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]


def test_cut_lists_units_row_by_row_and_join_undoes_it() -> None:
    rows, columns, side = 2, 3, 4
    tokens = torch.arange(rows * side * columns * side).float().view(1, -1, 1)
    units = cut(tokens, (rows, columns), side, levels=2)
    assert units.shape == (1, 6, 16, 1)
    for unit in range(6):
        row, column = divmod(unit, columns)
        square = tokens.view(rows * side, columns * side)[
            row * side : row * side + side, column * side : column * side + side
        ]
        assert torch.equal(units[0, unit, :, 0], square.flatten()[unroll_order(side, 2)])
    assert torch.equal(join(units, (rows, columns), levels=2)[0, ..., 0].flatten(), tokens.flatten())
    assert torch.equal(cut(tokens[0], (rows, columns), side, 2), units[0])  # tables have no batch


def test_numbers_of_the_tokens_of_units() -> None:
    ids = token_ids(torch.tensor([[0, 4]]), columns=3, side=2)  # a grid of 4 × 6 tokens
    assert ids.tolist() == [[[0, 1, 6, 7], [14, 15, 20, 21]]]
    assert token_ids(torch.tensor([[3, 1]]), 3, 1).tolist() == [[[3], [1]]]
    everything = token_ids(torch.arange(6)[None], 3, 4, levels=2)
    table = torch.arange(6 * 16).float().view(-1, 1)
    assert torch.equal(table[everything[0]][..., 0], cut(table, (2, 3), 4, 2)[..., 0])


def test_tracing_and_inference_leave_nothing_behind() -> None:
    """In a process of its own: what is traced first must not be what is computed with afterwards."""
    code = """
import torch
from functools import partial
from pretrain.encoder.hiera import Hiera
from pretrain.objective.decoder import Decoder
from pretrain.objective.mae import MAE
from pretrain.view.spec import ViewSpec
encoder = Hiera(img_size=32, embed_dim=8, stages=(1, 1), q_pool=1, mask_unit_size=2, mask_unit_attn=(True, False))
mae = MAE(encoder, partial(Decoder, embed_dim=8, depth=1, num_heads=1), ViewSpec(32))
images, ids = torch.randn(2, 3, 32, 32), torch.arange(16).repeat(2, 1)
class Patches(torch.nn.Module):
    def forward(self, images):
        return encoder(images).patches
torch.export.export(Patches(), (images,))
with torch.inference_mode():
    mae.loss(images, ids[:, :8], ids[:, 8:])
loss = mae.loss(images, ids[:, :8], ids[:, 8:])
loss.backward()
assert type(encoder(images).patches) is torch.Tensor
assert loss.item() > 0
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

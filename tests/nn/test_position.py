"""The fixed table, number by number, and its resizing."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.nn.position import resize_table, resize_windowed, sincos_2d, tile


def test_table_equals_its_definition() -> None:
    rows, columns, dim = 3, 5, 16
    table = sincos_2d((rows, columns), dim)
    quarter = dim // 4
    for row in range(rows):
        for column in range(columns):
            expected = []
            for coordinate in (column, row):  # the column comes first, as in the original
                angles = [coordinate / 10000 ** (i / quarter) for i in range(quarter)]
                expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            torch.testing.assert_close(table[row * columns + column], torch.tensor(expected), atol=1e-6, rtol=0)


def test_width_must_be_a_multiple_of_four() -> None:
    with pytest.raises(ValueError, match="multiple of 4, not 6"):
        sincos_2d((2, 2), 6)


def test_resizing_keeps_a_linear_table_linear() -> None:
    ramp = torch.arange(4.0).repeat_interleave(6)[:, None]  # [4 × 6, 1]: the row
    big = resize_table(ramp, (4, 6), (8, 6)).view(8, 6)
    assert torch.equal(resize_table(ramp, (4, 6), (4, 6)), ramp)
    assert (big[1:] > big[:-1]).all()
    torch.testing.assert_close(big, big[:, :1].expand(8, 6))


def test_a_windowed_table_keeps_its_windows_when_it_grows() -> None:
    window, image = torch.randn(4, 4, 3), torch.randn(2, 2, 3)
    steps = image.repeat_interleave(4, 0).repeat_interleave(4, 1) - image.mean((0, 1))  # constant in each window
    table = (tile(window, (8, 8)).view(8, 8, 3) + steps).flatten(0, 1)
    assert resize_windowed(table, (8, 8), (8, 8), 4) is table
    grown = resize_windowed(table, (8, 8), (12, 16), 4)
    expected = resize_table(steps.flatten(0, 1), (8, 8), (12, 16)) + tile(window, (12, 16))
    torch.testing.assert_close(grown, expected, atol=1e-5, rtol=0)
    stretched = resize_table(table, (8, 8), (12, 16))
    assert (stretched - expected).abs().max() > 0.5  # what stretching all of it would give

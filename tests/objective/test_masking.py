"""Masks: how many, and which."""

from __future__ import annotations

import pytest
import torch

from pretrain.objective.masking import split_by_noise
from pretrain.random import Purpose, uniform


@pytest.mark.parametrize(("units", "ratio", "visible"), [(196, 0.75, 49), (49, 0.6, 19), (4, 0.99, 1), (4, 0.01, 3)])
def test_counts_are_the_original_ones(units: int, ratio: float, visible: int) -> None:
    shown, hidden = split_by_noise(torch.rand(3, units), ratio)
    assert shown.shape == (3, visible)
    assert torch.cat([shown, hidden], dim=1).sort(dim=1).values.equal(torch.arange(units).expand(3, -1))


def test_units_of_least_noise_are_visible() -> None:
    shown, hidden = split_by_noise(torch.tensor([[0.3, 0.1, 0.9, 0.2]]), 0.5)
    assert shown.tolist() == [[1, 3]]
    assert hidden.tolist() == [[0, 2]]


def test_every_unit_is_masked_equally_often() -> None:
    noise = uniform(0, Purpose.MASK, torch.arange(8000), 16)
    _, hidden = split_by_noise(noise, 0.75)
    share = hidden.flatten().bincount(minlength=16) / 8000
    assert (share - 0.75).abs().max() < 0.02  # 4 standard deviations of 8000 draws

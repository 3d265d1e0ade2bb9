"""Measures of collapse on features whose values are known, and MAE's alarms."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.objective.health import effective_rank, feature_std


def orthogonal(size: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))[0]


def about_their_mean(features: torch.Tensor) -> torch.Tensor:
    """The same directions, and a mean of zero."""
    return torch.cat([features, -features])


@pytest.mark.parametrize("size", [2, 16, 64])
def test_the_effective_rank_of_orthogonal_features_is_their_number(size: int) -> None:
    features = orthogonal(size)
    assert effective_rank(about_their_mean(features)).item() == pytest.approx(size, rel=1e-5)
    assert effective_rank(about_their_mean(features) + 100).item() == pytest.approx(
        size, rel=1e-3
    )  # whatever they share
    assert effective_rank(about_their_mean(7 * features[:, : size // 2])).item() == pytest.approx(size // 2, rel=1e-5)
    assert effective_rank(about_their_mean(features[: size // 2])).item() == pytest.approx(size // 2, rel=1e-5)
    assert effective_rank(features).item() == pytest.approx(size - 1, rel=1e-4)  # a simplex


def test_the_effective_rank_is_one_where_features_differ_in_one_direction_or_not_at_all() -> None:
    row = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    assert effective_rank(row.expand(32, 16)).item() == pytest.approx(1, abs=1e-4)
    assert effective_rank(row * torch.arange(1.0, 33)[:, None] + 1).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(32, 16)).item() == 1


def test_the_effective_rank_is_its_definition() -> None:
    """Singular values of 3 and 1: exp of the entropy of (3/4, 1/4)."""
    left, right = orthogonal(8), orthogonal(4)
    features = about_their_mean(left[:, :2] @ torch.diag(torch.tensor([3.0, 1.0])) @ right[:2])
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(features).item() == pytest.approx(expected, rel=1e-4)


def test_the_effective_rank_of_features_that_are_not_finite_is_not_a_number() -> None:
    features = torch.ones(4, 4)
    features[1, 2] = math.inf
    assert effective_rank(features).isnan()


def test_the_spread_is_one_for_isotropic_features_and_none_for_constant_ones() -> None:
    signs = torch.cat([torch.eye(16), -torch.eye(16)])  # each dimension: two of 32 are ±1
    assert feature_std(signs).item() == pytest.approx(1, rel=1e-6)
    assert feature_std(5 * signs).item() == pytest.approx(1, rel=1e-6)
    many = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert feature_std(many).item() == pytest.approx(1, abs=0.02)
    row = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    assert feature_std(row.expand(32, 16)).item() == pytest.approx(0, abs=1e-6)
    assert feature_std(row * torch.arange(1.0, 33)[:, None]).item() == pytest.approx(0, abs=1e-6)  # lengths say nothing


def test_half_precision_is_judged_in_single() -> None:
    features = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert effective_rank(features).dtype == torch.float32
    assert feature_std(features).item() == feature_std(features.float()).item()

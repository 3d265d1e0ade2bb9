"""Clipping against plain loops and against torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pretrain.optim.clip import ClipBy, clip_gradients, gradient_norms, total_norm


def gradients(scale: float = 1.0) -> list[Tensor]:
    """Of several shapes and sizes, one of them zero."""
    generator = torch.Generator().manual_seed(0)
    shapes, sizes = [(5, 3), (7,), (1,), (2, 3, 4), (4,)], [3.0, 0.1, 1e-4, 1.0, 0.0]
    return [scale * size * torch.randn(shape, generator=generator) for shape, size in zip(shapes, sizes, strict=True)]


def official_dino(gradients: list[Tensor], clip: float) -> None:
    """`utils.clip_gradients` of the official code, on gradients alone."""
    for gradient in gradients:
        coefficient = clip / (gradient.norm(2) + 1e-6)
        if coefficient < 1:
            gradient.mul_(coefficient)


@pytest.mark.parametrize("limit", [1e-3, 0.5, 3.0, 1e4])
def test_by_parameter_it_is_the_loop_of_the_official_dino(limit: float) -> None:
    ours, theirs = gradients(), gradients()
    clip_gradients(ours, gradient_norms(ours), limit, "parameter")
    official_dino(theirs, limit)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("limit", [1e-3, 0.5, 3.0, 1e4])
def test_together_it_is_torchs_own(limit: float) -> None:
    ours, parameters = gradients(), [torch.nn.Parameter(torch.zeros_like(one)) for one in gradients()]
    for parameter, gradient in zip(parameters, gradients(), strict=True):
        parameter.grad = gradient
    norms = gradient_norms(ours)
    clip_gradients(ours, norms, limit, "global")
    expected = torch.nn.utils.clip_grad_norm_(parameters, limit)
    assert torch.equal(total_norm(norms), expected)
    for gradient, parameter in zip(ours, parameters, strict=True):
        assert parameter.grad is not None
        assert torch.equal(gradient, parameter.grad)


def test_norms_are_those_of_each_and_of_all() -> None:
    ours = gradients()
    norms = gradient_norms(ours)
    assert norms.tolist() == [one.norm().item() for one in ours]
    assert total_norm(norms).item() == pytest.approx(torch.cat([one.flatten() for one in ours]).norm().item())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_one_wrong_number_is_seen_in_the_norm_of_its_gradient_and_of_all(value: float) -> None:
    """1e30 is a number, but its square is none: such a step is as lost."""
    ours = gradients()
    ours[3][1, 2, 3] = value
    norms = gradient_norms(ours)
    assert norms.isfinite().tolist() == [True, True, True, False, True]
    assert not total_norm(norms).isfinite()


@pytest.mark.parametrize("by", ["global", "parameter"])
def test_what_is_within_the_limit_stays_to_the_bit(by: ClipBy) -> None:
    ours = gradients()
    clip_gradients(ours, gradient_norms(ours), 1e6, by)
    assert all(torch.equal(one, other) for one, other in zip(ours, gradients(), strict=True))

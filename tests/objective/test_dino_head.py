"""DINO's head: the original's outputs, weight normalisation as torch defines it, and initial weights."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from pretrain.objective.dino_head import DINOHead, Prototypes
from tests.conftest import Golden, close


@pytest.mark.parametrize("golden", ["dino_vit"], indirect=True)
def test_golden_outputs(golden: Golden) -> None:
    config = golden.config["head"]
    head = DINOHead(
        config["in_dim"], config["out_dim"], config["nlayers"], config["hidden_dim"], config["bottleneck_dim"]
    )
    head.load_state_dict(golden.state("head."), strict=True)
    assert close(head(golden["cls_global"]), golden["head_out"])


def test_prototypes_are_a_weight_normalised_layer() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old form, whose names official checkpoints have
        theirs = nn.utils.weight_norm(nn.Linear(6, 9, bias=False))
    ours = Prototypes(6, 9, learn_length=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(4, 6)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_lengths_are_trained_only_if_asked_for(norm_last_layer: bool) -> None:
    head = DINOHead(8, 12, hidden_dim=16, bottleneck_dim=4, norm_last_layer=norm_last_layer)
    out = head(torch.randn(3, 8))
    assert (out.abs() <= 1 + 1e-6).all()  # cosines
    out.square().sum().backward()
    assert (head.last_layer.weight_g.grad is None) == norm_last_layer
    assert head.last_layer.weight_v.grad is not None


def test_initial_weights_are_the_original_ones() -> None:
    head = DINOHead(64, 512, hidden_dim=128, bottleneck_dim=100)
    for layer in (head.mlp[0], head.mlp[2], head.mlp[4]):
        assert abs(layer.weight.std().item() / 0.02 - 1) < 0.05
        assert (layer.bias == 0).all()
    assert 0.095 < head.last_layer.weight_v.abs().max() <= 0.1
    assert (head.last_layer.weight_g == 1).all()
    with torch.device("meta"):
        empty = DINOHead(64, 512, hidden_dim=128, bottleneck_dim=100)
    empty.to_empty(device="cpu").init_weights(seed=0)
    assert all(torch.equal(value, head.state_dict()[key]) for key, value in empty.state_dict().items())


def test_sizes_that_cannot_be_are_refused_together() -> None:
    with pytest.raises(ValueError, match="`nlayers` must be at least 1; `prototypes` must be at least 2"):
        DINOHead(8, prototypes=0, nlayers=0)

"""The official Hiera's own weights and images: the maps of every stage, and what a classifier sees."""

from __future__ import annotations

import pytest
import torch.nn.functional as F

from pretrain.interop.official import hiera_from_official, hiera_to_official
from tests.conftest import Golden, close
from tests.hiera import from_golden

pytestmark = pytest.mark.parametrize("golden", ["hiera_encoder"], indirect=True)


def test_golden_stage_maps(golden: Golden) -> None:
    encoder = from_golden(golden.config)
    state, left = hiera_from_official(golden.state("model."))
    assert left == ["head.projection.bias", "head.projection.weight"]
    encoder.load_state_dict(state, strict=True)
    maps = encoder.feature_maps(golden["images"])
    assert len(maps) == len(golden.config["stages"])
    for number, one in enumerate(maps):
        assert close(one.permute(0, 2, 3, 1), golden[f"stage{number}"]), number


def test_golden_class_probabilities(golden: Golden) -> None:
    encoder = from_golden(golden.config)
    encoder.load_state_dict(hiera_from_official(golden.state("model."))[0])
    pooled = encoder.norm(encoder.feature_maps(golden["images"])[-1].mean(dim=(2, 3)))
    logits = F.linear(pooled, golden["model.head.projection.weight"], golden["model.head.projection.bias"])
    assert close(logits.softmax(dim=-1), golden["class_probabilities"])


def test_golden_keys_are_the_official_ones_but_for_the_head(golden: Golden) -> None:
    ours = hiera_to_official(from_golden(golden.config).state_dict()).keys()
    assert golden.state("model.").keys() - ours == {"head.projection.weight", "head.projection.bias"}

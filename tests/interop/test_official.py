"""Key by key between our MAE and the official one; the values are tested with the golden files."""

from __future__ import annotations

import re

import pytest
import torch

from pretrain.assemble import objective_of
from pretrain.config.overrides import composed
from pretrain.encoder.vit import ViT
from pretrain.interop.official import (
    dino_from_official,
    dino_to_official,
    hiera_from_official,
    hiera_mae_from_official,
    hiera_mae_to_official,
    mae_from_official,
    mae_to_official,
)
from pretrain.objective.decoder import Decoder
from pretrain.objective.mae import MAE
from pretrain.view.spec import ViewSpec
from tests.conftest import Golden


@pytest.fixture
def mae() -> MAE:
    return MAE(ViT(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3), Decoder, ViewSpec(32))


def test_every_key_is_accounted_for(mae: MAE) -> None:
    official = mae_to_official(mae.state_dict(), mae.encoder.grid)
    assert len(official) == len(mae.state_dict()) + 1  # decoder_pos_embed
    assert official["decoder_pos_embed"].shape == (1, 17, 512)
    assert {
        "mask_token",
        "decoder_embed.weight",
        "decoder_blocks.7.attn.qkv.bias",
        "decoder_pred.bias",
    } <= official.keys()
    back = mae_from_official(official)
    assert back.keys() == mae.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in mae.state_dict().items())


def test_strange_keys_and_tables_are_refused(mae: MAE) -> None:
    official = mae_to_official(mae.state_dict(), mae.encoder.grid)
    with pytest.raises(ValueError, match=r"`head.weight` is no key of an official MAE"):
        mae_from_official(official | {"head.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="is not the fixed sine–cosine table"):
        mae_from_official(official | {"decoder_pos_embed": torch.randn(1, 17, 512)})


def test_the_keys_of_hiera_are_the_official_ones() -> None:
    """As many as the official tiny models have: 157 with a head of two, 263 with the decoder."""
    cfg = composed(["+experiment=mae_hiera_tiny"])
    mae = objective_of(cfg)
    official = hiera_mae_to_official(mae.state_dict())
    assert len(official) == 263
    alone = {"encoder_norm.weight", "mask_token", "decoder_pos_embed", "decoder_blocks.7.attn.qkv.bias"}
    alone |= {"multi_scale_fusion_heads.1.bias", "decoder_embed.weight", "decoder_norm.bias", "decoder_pred.weight"}
    assert alone <= official.keys()
    assert hiera_mae_from_official(official).keys() == mae.state_dict().keys()
    encoder, left = hiera_from_official(official)
    assert len(encoder) + 2 == 157
    assert len(encoder) + len(left) == 263
    assert {"pos_embed", "patch_embed.proj.weight", "norm.bias", "blocks.1.proj.weight"} <= encoder.keys()
    again, heads = hiera_from_official(encoder | {"head.projection.weight": torch.zeros(1)})
    assert (again.keys(), heads) == (encoder.keys(), ["head.projection.weight"])
    with pytest.raises(ValueError, match=r"`encoder_norm\.weight` and another key are both `encoder\.norm\.weight`"):
        hiera_from_official(encoder | {"encoder_norm.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="`strange` is no key of an official Hiera"):
        hiera_from_official(encoder | {"strange": torch.zeros(1)})
    with pytest.raises(ValueError, match="`cls_token` is no key of an official Hiera"):
        hiera_mae_from_official(official | {"cls_token": torch.zeros(1)})


@pytest.mark.parametrize("golden", ["dino_vit"], indirect=True)
def test_golden_keys_of_dino(golden: Golden) -> None:
    """Both networks and the centre, out and back; the names inside are those of the original's own modules."""
    dino = objective_of(composed(["+experiment=dino_vits16"]))
    official = dino_to_official(dino.state_dict())
    plain = {re.sub(r"blocks\.\d+", "blocks.0", key) for key in official["teacher"]}
    theirs = [key for key in golden.tensors if key.startswith(("backbone.", "head."))]
    assert plain == {re.sub(r"blocks\.\d+", "blocks.0", key) for key in theirs}
    assert {f"module.{key}" for key in official["teacher"]} == official["student"].keys()
    assert official["dino_loss"]["center"].shape == (1, 65536)
    back = dino_from_official(official)
    assert back.keys() == dino.state_dict().keys()
    assert all(back[key] is value or back[key].shape == value.shape for key, value in dino.state_dict().items())
    with pytest.raises(ValueError, match="holds `student`, `teacher` and `dino_loss`"):
        dino_from_official({"teacher": official["teacher"]})
    with pytest.raises(ValueError, match="`strange` is no key of an official DINO"):
        dino_from_official(official | {"teacher": {"strange": torch.zeros(1)}})

"""Key by key between our MAE and the official one; the values are tested with the golden files."""

from __future__ import annotations

import pytest
import torch

from pretrain.encoder.vit import ViT
from pretrain.interop.official import mae_from_official, mae_to_official
from pretrain.objective.decoder import Decoder
from pretrain.objective.mae import MAE
from pretrain.view.spec import ViewSpec


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

"""The official DINO's own ViT weights and images: both view sizes, tokens, and the last block's attention."""

from __future__ import annotations

import pytest
import torch

from pretrain.encoder.vit import ViT
from tests.conftest import Golden, close

pytestmark = pytest.mark.parametrize("golden", ["dino_vit"], indirect=True)


def build(golden: Golden, offset: float = 0.1) -> ViT:
    config = golden.config
    names = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "norm_eps")
    sizes = {name: config[name] for name in names}
    vit = ViT(img_size=config["img_size"][0], position="learned", position_offset=offset, **sizes).eval()
    vit.load_state_dict(golden.state("backbone."), strict=True)
    return vit


def test_golden_global_view(golden: Golden) -> None:
    tokens = build(golden)(golden["global_images"])
    assert tokens.cls is not None
    assert close(tokens.cls, golden["cls_global"])
    assert close(torch.cat([tokens.cls[:, None], tokens.patches], dim=1), golden["tokens_global"])


def test_golden_local_view_with_the_original_interpolation(golden: Golden) -> None:
    both = build(golden).forward_views([golden["global_images"], golden["local_images"]])
    assert both[1].cls is not None
    assert close(both[1].cls, golden["cls_local"])
    plain = build(golden, offset=0.0)(golden["local_images"])
    assert plain.cls is not None
    assert not close(plain.cls, golden["cls_local"])  # what the offset is for


def test_golden_last_attention(golden: Golden) -> None:
    vit = build(golden)
    x, _ = vit._embed(golden["global_images"], None)
    for block in vit.blocks[:-1]:
        x = block(x)
    last = vit.blocks[-1]
    assert close(last.attn.weights(last.norm1(x)), golden["last_attention"])

"""The official MAE's own weights, images and noise: encoder output, prediction, losses and gradients."""

from __future__ import annotations

import pytest
import torch

from pretrain.encoder.vit import ViT
from pretrain.interop.official import mae_from_official, mae_to_official
from pretrain.objective.mae import MAE
from pretrain.objective.masking import split_by_noise
from pretrain.view.spec import ViewSpec
from tests.conftest import Golden, close, decoder_from

pytestmark = pytest.mark.parametrize("golden", ["mae_vit"], indirect=True)


def build(golden: Golden, norm_pix_loss: bool = True) -> MAE:
    config = golden.config
    encoder = ViT(
        img_size=config["img_size"],
        patch_size=config["patch_size"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        norm_eps=config["norm_eps"],
    )
    view = ViewSpec(size=config["img_size"])
    mae = MAE(encoder, decoder_from(config), view, mask_ratio=config["mask_ratio"], norm_pix_loss=norm_pix_loss).eval()
    mae.load_state_dict(mae_from_official(golden.state("model.")), strict=True)
    return mae


def ids(golden: Golden) -> tuple[torch.Tensor, torch.Tensor]:
    return split_by_noise(golden["noise"], golden.config["mask_ratio"])


def test_golden_mask(golden: Golden) -> None:
    visible, masked = ids(golden)
    assert (golden["mask"].gather(1, visible) == 0).all()
    assert (golden["mask"].gather(1, masked) == 1).all()
    assert visible.shape[1] + masked.shape[1] == golden["mask"].shape[1]


def test_golden_latent_and_prediction(golden: Golden) -> None:
    mae, (visible, masked) = build(golden), ids(golden)
    tokens = mae.encoder(golden["images"], visible)
    assert tokens.cls is not None
    assert close(torch.cat([tokens.cls[:, None], tokens.patches], dim=1), golden["latent"])
    assert close(mae.reconstruct(golden["images"], visible, masked), golden["pred"])


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_golden_loss(golden: Golden, norm_pix_loss: bool) -> None:
    loss = build(golden, norm_pix_loss).loss(golden["images"], *ids(golden))
    expected = golden["loss_norm_pix" if norm_pix_loss else "loss_raw_pix"]
    assert abs(loss.item() / expected.item() - 1) <= 1e-5


def test_golden_gradients(golden: Golden) -> None:
    mae = build(golden)
    mae.loss(golden["images"], *ids(golden)).backward()
    gradients = {name: parameter.grad for name, parameter in mae.named_parameters() if parameter.grad is not None}
    expected = mae_from_official(golden.state("grad."))
    assert expected
    for name, gradient in expected.items():
        assert close(gradients[name], gradient), name


def test_golden_state_survives_the_round_trip(golden: Golden) -> None:
    official = golden.state("model.")
    mae = build(golden)
    again = mae_to_official(mae.state_dict(), mae.encoder.grid)
    assert again.keys() == official.keys()
    for key, tensor in official.items():
        torch.testing.assert_close(again[key], tensor, atol=1e-6, rtol=0, msg=key)


def test_golden_position_tables(golden: Golden) -> None:
    mae = build(golden)
    table = mae.encoder.pos_embed.detach().clone()
    mae.init_weights(seed=0)
    assert close(mae.encoder.pos_embed.detach(), table)

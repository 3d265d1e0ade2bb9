"""Hiera as a golden file describes it, and small ones."""

from __future__ import annotations

from typing import Any

import torch

from pretrain.encoder.hiera import Hiera
from pretrain.objective.mae import MAE
from pretrain.view.spec import ViewSpec
from tests.conftest import decoder_from

# 4×4 units of 16 pixels, tokens of 2 pixels: stage maps of 32, 16, 8 and 4 tokens a side on 64 pixels
SMALL: dict[str, Any] = {"img_size": 64, "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 2, 1)}
SMALL |= {"patch_kernel": 3, "patch_stride": 2, "patch_padding": 1}


def small(**arguments: Any) -> Hiera:
    """A Hiera of five blocks whose parameters are all other than what they begin with."""
    encoder = Hiera(**SMALL | arguments)
    perturb(encoder)
    return encoder.eval()


@torch.no_grad()
def perturb(module: torch.nn.Module, seed: int = 1) -> None:
    """Adds noise to every parameter: a test must not pass because a bias is still zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def from_golden(config: dict[str, Any], **arguments: Any) -> Hiera:
    """The encoder that a golden file's config describes."""
    named = {name: config[name] for name in ("embed_dim", "num_heads", "stages", "q_pool", "mask_unit_attn")}
    assert {len(set(config[name])) for name in ("patch_kernel", "patch_stride", "patch_padding")} == {1}
    assert config["q_stride"] == [2, 2]
    assert config["dim_mul"] == config["head_mul"] == 2.0
    return Hiera(
        img_size=config["input_size"],
        mask_unit_size=config["mask_unit_size"][0],
        patch_kernel=config["patch_kernel"][0],
        patch_stride=config["patch_stride"][0],
        patch_padding=config["patch_padding"][0],
        mlp_ratio=config["mlp_ratio"],
        norm_eps=config["norm_eps"],
        **named,
        **arguments,
    ).eval()


def mae_from_golden(config: dict[str, Any]) -> MAE:
    """The autoencoder that a golden file's config describes."""
    decoder = decoder_from(config, position="learned")
    encoder = from_golden(config, multi_scale_fusion=True)
    return MAE(
        encoder, decoder, ViewSpec(config["input_size"]), mask_ratio=config["mask_ratio"], pixel_order="chw"
    ).eval()

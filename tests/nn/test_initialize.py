"""Initial weights: distributions of the original, independent of everything but seed and name."""

from __future__ import annotations

import torch
from torch import nn

from pretrain.encoder.vit import ViT
from pretrain.nn.initialize import initialize
from pretrain.nn.position import sincos_2d


def test_distributions_are_the_original_ones() -> None:
    vit = ViT(img_size=32, patch_size=8, embed_dim=256, depth=2, num_heads=4)
    vit.init_weights(seed=3)
    block = vit.blocks[1]
    for weight in (block.attn.qkv.weight, block.mlp.fc1.weight, block.attn.proj.weight):
        bound = (6 / sum(weight.shape)) ** 0.5  # Xavier uniform; qkv counts as one matrix
        assert weight.abs().max() <= bound
        assert abs(weight.std().item() / (bound / 3**0.5) - 1) < 0.02
    fan_in, fan_out = 3 * 8 * 8, 256  # the patch projection counts as a linear layer …
    bound = (6 / (fan_in + fan_out)) ** 0.5
    assert 0.95 * bound < vit.patch_embed.proj.weight.abs().max() <= bound
    assert (
        0.9 * fan_in**-0.5 < vit.patch_embed.proj.bias.abs().max() <= fan_in**-0.5
    )  # … but keeps a convolution's bias
    assert abs(vit.cls_token.std().item() / 0.02 - 1) < 0.15
    for name, parameter in vit.named_parameters():
        if name.endswith(".bias") and "patch_embed" not in name:
            assert (parameter == 0).all(), name
        if "norm" in name and name.endswith(".weight"):
            assert (parameter == 1).all(), name
    assert (vit.pos_embed[0, 0] == 0).all()
    assert torch.equal(vit.pos_embed[0, 1:], sincos_2d((4, 4), 256))


def test_a_weight_depends_on_seed_and_name_alone() -> None:
    deep, shallow = (ViT(32, 8, embed_dim=32, depth=depth, num_heads=2) for depth in (3, 2))
    deep.init_weights(1)
    shallow.init_weights(1)
    assert torch.equal(deep.blocks[1].mlp.fc1.weight, shallow.blocks[1].mlp.fc1.weight)
    assert not torch.equal(deep.blocks[0].mlp.fc1.weight, deep.blocks[1].mlp.fc1.weight)
    shallow.init_weights(2)
    assert not torch.equal(deep.blocks[1].mlp.fc1.weight, shallow.blocks[1].mlp.fc1.weight)


def test_what_is_not_trained_is_left_alone() -> None:
    layer = nn.Linear(3, 3)
    layer.weight.requires_grad_(False).fill_(7)
    initialize(layer, 0)
    assert (layer.weight == 7).all()
    assert (layer.bias == 0).all()


def test_the_normal_distribution_is_that_of_the_official_dino() -> None:
    vit = ViT(img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=4, position="learned", distribution="normal")
    for weight in (vit.blocks[0].attn.qkv.weight, vit.blocks[1].mlp.fc2.weight, vit.cls_token, vit.pos_embed):
        assert abs(weight.std().item() / 0.02 - 1) < 0.2
    bound = (3 * 8 * 8) ** -0.5  # a convolution as torch begins it
    assert 0.95 * bound < vit.patch_embed.proj.weight.abs().max() <= bound
    assert 0.9 * bound < vit.patch_embed.proj.bias.abs().max() <= bound
    assert (vit.blocks[0].attn.qkv.bias == 0).all()
    assert vit.pos_embed.requires_grad

"""Who decays: what timm's rule, which the official recipe uses, says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrain.encoder.vit import ViT
from pretrain.optim.groups import decay_groups


def names(module: nn.Module, group: dict[str, list[torch.Tensor]]) -> set[str]:
    return {name for name, value in module.named_parameters() if any(value is other for other in group["params"])}


def test_biases_and_vectors_are_exempt_tokens_are_not() -> None:
    vit = ViT(16, 4, embed_dim=24, depth=1, num_heads=3)
    decay, exempt = decay_groups(vit, set())
    assert exempt["weight_decay"] == 0.0
    assert exempt["exempt"]
    assert "weight_decay" not in decay  # the optimizer's own
    assert {"cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= names(vit, decay)
    assert {"norm.weight", "blocks.0.attn.qkv.bias", "patch_embed.proj.bias"} <= names(vit, exempt)
    trained = {name for name, value in vit.named_parameters() if value.requires_grad}
    assert names(vit, decay) | names(vit, exempt) == trained
    assert "pos_embed" not in trained
    optim = pytest.importorskip("timm.optim")
    theirs = optim.param_groups_weight_decay(vit, 0.05)
    by_decay = {group["weight_decay"]: {id(value) for value in group["params"]} for group in theirs}
    assert by_decay[0.0] == {id(value) for value in exempt["params"]}
    assert by_decay[0.05] == {id(value) for value in decay["params"]}


def test_an_objective_can_exempt_more() -> None:
    vit = ViT(16, 4, embed_dim=24, depth=1, num_heads=3)
    _, exempt = decay_groups(vit, {"cls_token"})
    assert "cls_token" in names(vit, exempt)
    with pytest.raises(ValueError, match=r"`no_decay` names \['cls'\]"):
        decay_groups(vit, {"cls"})

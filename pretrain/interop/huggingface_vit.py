"""transformers' `ViTModel`: it is a `vit`, not a `vit_mae`, which would mask at random."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pretrain.encoder.encoder import Encoder
from pretrain.interop.card import Card
from pretrain.interop.rename import rename
from pretrain.records import UserError
from pretrain.view.spec import pair

# ours → theirs; {n} is the number of a block. The fused qkv is split apart.
_RENAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks.{n}.norm1": "encoder.layer.{n}.layernorm_before",
    "blocks.{n}.attn.proj": "encoder.layer.{n}.attention.output.dense",
    "blocks.{n}.norm2": "encoder.layer.{n}.layernorm_after",
    "blocks.{n}.mlp.fc1": "encoder.layer.{n}.intermediate.dense",
    "blocks.{n}.mlp.fc2": "encoder.layer.{n}.output.dense",
    "norm": "layernorm",
}
_QKV = ("query", "key", "value")
_LEFT = ("decoder.", "classifier.", "pooler.")


def refuse(card: Card) -> None:
    """Raises UserError if transformers cannot say this."""
    if card.part != "encoder":
        raise UserError(
            "part=objective: transformers reads what it wrote of ViTMAE's decoder under other names in each release; "
            "take format=official"
        )


def to_theirs(card: Card, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's state under their names."""
    theirs = {}
    for key, tensor in state.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", key):
            for name, part in zip(_QKV, tensor.chunk(3), strict=True):
                theirs[f"encoder.layer.{match[1]}.attention.attention.{name}.{match[2]}"] = part
        else:
            theirs[rename(key, _RENAMES)] = tensor
    return theirs


def from_theirs(state: dict[str, Tensor], config: dict[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder's state under our names, and the keys that are left out: classifier, pooler, decoder.

    Raises:
        ValueError: a key is unknown or missing.
    """
    back = {theirs: ours for ours, theirs in _RENAMES.items()}
    left = [key for key in state if key.startswith(_LEFT)]
    kept = {key.removeprefix("vit."): value for key, value in state.items() if key not in left}
    ours = {}
    for key, tensor in kept.items():
        match = re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", key)
        if match is None:
            ours[rename(key, back)] = tensor
        elif match[2] == "query":
            names = [key.replace(".query.", f".{name}.") for name in _QKV]
            if missing := [name for name in names if name not in kept]:
                raise ValueError(f"`{missing[0]}` is missing")
            parts = [kept[name] for name in names]
            ours[f"blocks.{match[1]}.attn.qkv.{match[3]}"] = torch.cat(parts)
    return ours, left


def configuration(card: Card) -> dict[str, Any]:
    """What `config.json` says."""
    encoder = card.encoder
    height, width = pair(encoder["img_size"])
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "image_size": height if height == width else [height, width],
        "patch_size": encoder["patch_size"],
        "num_channels": encoder["in_chans"],
        "hidden_size": encoder["embed_dim"],
        "num_hidden_layers": encoder["depth"],
        "num_attention_heads": encoder["num_heads"],
        "intermediate_size": int(encoder["embed_dim"] * encoder["mlp_ratio"]),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": encoder["norm_eps"],
        "qkv_bias": encoder["qkv_bias"],
        "dtype": "float32",
    }


def ours(card: Card, encoder: Encoder, images: Tensor) -> Tensor:
    """All tokens [B, 1 + L, D]."""
    return encoder(images).joined()


def theirs(load: Callable[..., Any], card: Card, images: Tensor) -> Tensor:
    """All tokens [B, 1 + L, D]; `load` is given a class of transformers."""
    from transformers import AutoModel

    with torch.no_grad():
        result: Tensor = load(AutoModel, add_pooling_layer=False)(images).last_hidden_state
    return result

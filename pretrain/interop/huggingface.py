"""Hugging Face transformers: a folder for `AutoModel.from_pretrained(DIR, add_pooling_layer=False)`, no key left over.

The files have the names that every release of transformers reads (those of version 4), whatever names a release has in
memory. It is a `vit`, not a `vit_mae`: the latter would mask at random.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.encoder.encoder import Encoder
from pretrain.interop import weights
from pretrain.interop.card import Card
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
_RESAMPLE = {"bilinear": 2, "bicubic": 3}


def refuse(card: Card) -> None:
    """Raises UserError if transformers cannot say this encoder."""
    if card.encoder["_target_"] != "pretrain.encoder.vit.ViT":
        raise UserError(f"{card.encoder['_target_']} has no counterpart in transformers that this exporter knows")


def fill(folder: Path, card: Card, encoder: Encoder) -> None:
    """Writes the encoder's weights under transformers' names, and their description."""
    theirs = {}
    for key, tensor in encoder.state_dict().items():
        if match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", key):
            for name, part in zip(_QKV, tensor.chunk(3), strict=True):
                theirs[f"encoder.layer.{match[1]}.attention.attention.{name}.{match[2]}"] = part
        else:
            theirs[_rename(key, _RENAMES)] = tensor
    weights.save(folder, theirs, configuration(card))


def to_ours(folder: Path) -> dict[str, Tensor]:
    """The encoder's state in an export, under our names."""
    back = {theirs: ours for ours, theirs in _RENAMES.items()}
    state, ours = weights.load(folder), {}
    for key, tensor in state.items():
        match = re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", key)
        if match is None:
            ours[_rename(key, back)] = tensor
        elif match[2] == "query":
            parts = [state[key.replace(".query.", f".{name}.")] for name in _QKV]
            ours[f"blocks.{match[1]}.attn.qkv.{match[3]}"] = torch.cat(parts)
    return ours


def configuration(card: Card) -> dict[str, dict[str, Any]]:
    """File name → content of the files that describe the weights."""
    encoder, view = card.encoder, card.view
    height, width = pair(encoder["img_size"])
    model = {
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
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": _RESAMPLE[view["interpolation"]],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(view["mean"]),
        "image_std": list(view["std"]),
    }
    return {"config.json": model, "preprocessor_config.json": processor}


def features(folder: Path, images: Tensor) -> Tensor:
    """All tokens [B, 1 + L, D] of normalised images, by transformers itself.

    Raises:
        RuntimeError: a key of the model is missing in the file, or the file has one too many.
    """
    from transformers import AutoModel

    model, report = AutoModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    if report["missing_keys"] or report["unexpected_keys"]:
        raise RuntimeError(f"missing {sorted(report['missing_keys'])}, unexpected {sorted(report['unexpected_keys'])}")
    with torch.no_grad():
        return model.eval()(images).last_hidden_state


def _rename(key: str, renames: dict[str, str]) -> str:
    for old, new in renames.items():
        pattern = re.escape(old).replace(r"\{n\}", r"(?P<n>\d+)")
        if match := re.fullmatch(rf"{pattern}(?P<rest>\.weight|\.bias)?", key):
            return new.replace("{n}", match.groupdict().get("n") or "") + (match["rest"] or "")
    raise ValueError(f"`{key}` has no counterpart")

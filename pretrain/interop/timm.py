"""timm: a folder that `timm.create_model('local-dir:DIR', pretrained=True)` loads, every key accounted for.

Our ViT's parameters have timm's names, so only its description has to be written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.encoder.encoder import Encoder
from pretrain.interop import weights
from pretrain.interop.card import Card
from pretrain.records import UserError
from pretrain.view.spec import pair

_NAMES = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 768: "vit_base_patch16_224"} | {
    1024: "vit_large_patch16_224",
    1280: "vit_huge_patch14_224",
}


def refuse(card: Card) -> None:
    """Raises UserError if timm cannot say this encoder."""
    if card.encoder["_target_"] != "pretrain.encoder.vit.ViT":
        raise UserError(f"{card.encoder['_target_']} has no counterpart in timm that this exporter knows")
    if card.encoder["norm_eps"] != 1e-6:
        raise UserError(
            f"encoder.norm_eps={card.encoder['norm_eps']}: timm's ViT has 1e-6 and no way to say another; use format=hf"
        )


def fill(folder: Path, card: Card, encoder: Encoder) -> None:
    """Writes the encoder's weights and their description."""
    weights.save(folder, encoder.state_dict(), {"config.json": configuration(card)})


def to_ours(folder: Path) -> dict[str, Tensor]:
    """The encoder's state in an export."""
    return weights.load(folder)


def configuration(card: Card) -> dict[str, Any]:
    """What timm's `config.json` says."""
    encoder, view = card.encoder, card.view
    height, width = pair(encoder["img_size"])
    arguments = ("patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias")
    return {
        # the nearest of timm's names; what differs from it stands in model_args
        "architecture": _NAMES.get(encoder["embed_dim"], "vit_base_patch16_224"),
        "num_classes": 0,
        "num_features": encoder["embed_dim"],
        "model_args": {"img_size": [height, width]} | {name: encoder[name] for name in arguments},
        "pretrained_cfg": {
            "input_size": [encoder["in_chans"], height, width],
            "fixed_input_size": True,
            "interpolation": view["interpolation"],
            "crop_pct": view["crop_ratio"],
            "crop_mode": "center",
            "mean": list(view["mean"]),
            "std": list(view["std"]),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def features(folder: Path, images: Tensor) -> Tensor:
    """All tokens [B, 1 + L, D] of normalised images, by timm itself."""
    import timm

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        return model.forward_features(images)

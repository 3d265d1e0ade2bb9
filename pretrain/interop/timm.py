"""timm: a folder that `timm.create_model('local-dir:DIR', pretrained=True)` loads, every key accounted for.

Our parameters have timm's names, but for Hiera's final norm, which timm keeps in its head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.encoder.encoder import Encoder
from pretrain.interop import weights
from pretrain.interop.card import FAMILIES, Card, refuse_family, refuse_unit
from pretrain.records import UserError
from pretrain.view.spec import pair

# the nearest of timm's names; what differs from it stands in model_args
_VIT = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 768: "vit_base_patch16_224"} | {
    1024: "vit_large_patch16_224",
    1280: "vit_huge_patch14_224",
}
_HIERA = {
    (96, 12): "hiera_tiny_224",
    (96, 16): "hiera_small_224",
    (96, 24): "hiera_base_224",
    (112, 24): "hiera_base_plus_224",
    (144, 48): "hiera_large_224",
    (256, 48): "hiera_huge_224",
}


def refuse(card: Card) -> None:
    """Raises UserError if timm cannot say this."""
    refuse_family(card, FAMILIES, "timm")
    encoder = card.encoder
    if card.part != "encoder":
        raise UserError("part=objective: timm has no autoencoders; take format=hf or format=official")
    if encoder["norm_eps"] != 1e-6:
        raise UserError(
            f"encoder.norm_eps={encoder['norm_eps']}: timm's {card.family} has 1e-6 and no way to say another; "
            "use format=hf"
        )
    if card.family == "Hiera":
        refuse_unit(encoder, "timm")


def fill(folder: Path, card: Card, encoder: Encoder) -> None:
    """Writes the encoder's weights and their description."""
    state = encoder.state_dict()
    if card.family == "Hiera":
        state = {f"head.{key}" if key.startswith("norm.") else key: value for key, value in state.items()}
    weights.save(folder, state, {"config.json": configuration(card)})


def to_ours(folder: Path) -> dict[str, Tensor]:
    """The encoder's state in an export."""
    return from_timm(weights.load(folder))[0]


def from_timm(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder's state under our names, and the keys of a classifier, which are left out.

    Raises:
        ValueError: there is no final norm, or there are two.
    """
    left = [key for key in state if key.startswith(("head.fc.", "head.weight", "head.bias"))]
    if any(key.startswith("fc_norm.") for key in state):
        raise ValueError("it is fine-tuned with a norm of its own after pooling (`fc_norm`), and has no final norm")
    ours = {key.removeprefix("head."): value for key, value in state.items() if key not in left}
    if len(ours) + len(left) != len(state):
        raise ValueError("it holds both `norm` and `head.norm`")
    return ours, left


def configuration(card: Card) -> dict[str, Any]:
    """What timm's `config.json` says."""
    encoder, view = card.encoder, card.view
    height, width = pair(encoder["img_size"])
    if card.family == "ViT":
        name = _VIT.get(encoder["embed_dim"], "vit_base_patch16_224")
        names = ("patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias")
        arguments, features, classifier = {key: encoder[key] for key in names}, encoder["embed_dim"], "head"
    else:
        name = _HIERA.get((encoder["embed_dim"], sum(encoder["stages"])), "hiera_base_224")
        arguments, classifier = _hiera_arguments(encoder), "head.fc"
        features = encoder["embed_dim"] * 2 ** (len(encoder["stages"]) - 1)
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": features,
        "model_args": {"img_size": [height, width]} | arguments,
        "pretrained_cfg": {
            "input_size": [encoder["in_chans"], height, width],
            "fixed_input_size": True,
            "interpolation": view["interpolation"],
            "crop_pct": view["crop_pct"],
            "crop_mode": "center",
            "mean": list(view["mean"]),
            "std": list(view["std"]),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": classifier,
        },
    }


def _hiera_arguments(encoder: dict[str, Any]) -> dict[str, Any]:
    same = ("in_chans", "embed_dim", "num_heads", "stages", "q_pool", "mask_unit_attn", "mlp_ratio")
    arguments = {name: encoder[name] for name in same}
    for name in ("mask_unit_size", "patch_kernel", "patch_stride", "patch_padding"):
        arguments[name] = [encoder[name]] * 2
    if encoder["position"] == "absolute_window":
        arguments |= {"abs_win_pos_embed": True, "global_pos_size": [encoder["global_pos_size"]] * 2}
    return arguments


def ours(card: Card, encoder: Encoder, images: Tensor) -> Tensor:
    """What `theirs` is compared with."""
    return encoder(images).joined()


def theirs(folder: Path, card: Card, images: Tensor) -> Tensor:
    """All tokens [B, (1 +) L, D] of normalised images, after the final norm, by timm itself."""
    import timm

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        tokens = model.forward_features(images)
        # timm's Hiera norms what it has pooled
        return model.head.norm(tokens) if card.family == "Hiera" else tokens

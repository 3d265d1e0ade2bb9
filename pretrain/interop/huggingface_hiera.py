"""transformers' `HieraModel`, and with its decoder `HieraForPreTraining`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.interop.card import Card, refuse_idea, refuse_others, refuse_unit
from pretrain.interop.rename import rename
from pretrain.records import UserError
from pretrain.view.spec import pair

# ours → theirs, of an encoder; {s} and {n} are the numbers of a stage and of a block in it
_ENCODER = {
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks.{n}.norm1": "encoder.stages.{s}.layers.{n}.layernorm_before",
    "blocks.{n}.norm2": "encoder.stages.{s}.layers.{n}.layernorm_after",
    "blocks.{n}.attn.qkv": "encoder.stages.{s}.layers.{n}.attn.qkv",
    "blocks.{n}.attn.proj": "encoder.stages.{s}.layers.{n}.attn.proj",
    "blocks.{n}.mlp.fc1": "encoder.stages.{s}.layers.{n}.mlp.fc1",
    "blocks.{n}.mlp.fc2": "encoder.stages.{s}.layers.{n}.mlp.fc2",
    "blocks.{n}.proj": "encoder.stages.{s}.layers.{n}.proj",
    "norm": "pooler.layernorm",
}
_DECODER = {
    "mask_token": "decoder.mask_token",
    "pos_embed": "decoder.decoder_position_embeddings",
    "embed": "decoder.decoder_embeddings",
    "blocks.{n}.norm1": "decoder.decoder_block.layers.{n}.layernorm_before",
    "blocks.{n}.norm2": "decoder.decoder_block.layers.{n}.layernorm_after",
    "blocks.{n}.attn.qkv": "decoder.decoder_block.layers.{n}.attn.qkv",
    "blocks.{n}.attn.proj": "decoder.decoder_block.layers.{n}.attn.proj",
    "blocks.{n}.mlp.fc1": "decoder.decoder_block.layers.{n}.mlp.fc1",
    "blocks.{n}.mlp.fc2": "decoder.decoder_block.layers.{n}.mlp.fc2",
    "norm": "decoder.decoder_norm",
    "pred": "decoder.decoder_pred",
}
_FUSION = "multi_scale_fusion_heads"


def refuse(card: Card) -> None:
    """Raises UserError if transformers cannot say this."""
    encoder, attention = card.encoder, card.encoder["mask_unit_attn"]
    refuse_unit(encoder, "transformers")
    if encoder["position"] != "absolute":
        raise UserError(f"encoder.position={encoder['position']}: transformers has absolute alone; use format=timm")
    if any(later and not earlier for earlier, later in itertools.pairwise(attention)):
        raise UserError(
            f"encoder.mask_unit_attn={list(attention)}: transformers attends otherwise in the first block of a stage "
            "inside mask units that follows one over the image; use format=timm"
        )
    if any(attention[encoder["q_pool"] :]) and encoder["q_pool"] < len(attention) - 1:
        raise UserError(
            f"encoder.q_pool={encoder['q_pool']}: transformers attends inside smaller windows where a stage that is "
            "not pooled follows one that attends inside mask units; use format=official"
        )
    if card.part == "objective":
        refuse_idea(card, ["MAE"], "transformers")
        _refuse_objective(card)


def _refuse_objective(card: Card) -> None:
    size = list(pair(card.encoder["img_size"]))
    if list(pair(card.view["size"])) != size:
        raise UserError(f"objective.view.size={card.view['size']}: transformers has that of encoder.img_size={size}")
    wanted = {
        "encoder.multi_scale_fusion": True,
        "objective.pixel_order": "chw",
        "objective.decoder.position": "learned",
    }
    wanted |= {"objective.decoder.mlp_ratio": card.encoder["mlp_ratio"]}
    wanted |= {"objective.decoder.norm_eps": card.encoder["norm_eps"]}
    refuse_others(card, wanted, "transformers' HieraForPreTraining")


def to_theirs(card: Card, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of an encoder, or of an objective, under their names."""
    stages = card.encoder["stages"]
    if card.part == "encoder":
        return {_encoder_key(key, stages): value for key, value in state.items()}
    return {_objective_key(key, stages): value for key, value in state.items()}


def _objective_key(key: str, stages: Sequence[int]) -> str:
    part, _, rest = key.partition(".")
    if part == "decoder":
        return rename(rest, _DECODER)
    if rest.startswith("norm."):
        return f"encoder_{rest}"
    if rest.startswith(_FUSION):
        return f"multiscale_fusion.{rest}"
    return f"hiera.{_encoder_key(rest, stages)}"


def _encoder_key(key: str, stages: Sequence[int]) -> str:
    match = re.fullmatch(r"blocks\.(\d+)(\..+)", key)
    if match is None:
        return rename(key, _ENCODER)
    number, stage = int(match[1]), 0
    while number >= stages[stage]:
        number, stage = number - stages[stage], stage + 1
    return rename(f"blocks.{number}{match[2]}", _ENCODER).replace("{s}", str(stage))


def from_theirs(state: dict[str, Tensor], config: dict[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder's state under our names, and the keys that are left out: classifier, fusion, decoder.

    Raises:
        ValueError: a key is unknown, or the config is not one of a Hiera.
    """
    back = {theirs.replace("{s}.", ""): ours for ours, theirs in _ENCODER.items()}
    left = [key for key in state if key.startswith(("classifier.", "multiscale_fusion.", "decoder."))]
    if "depths" not in config:
        raise ValueError("its config.json says no `depths`")
    ours, starts = {}, [0, *itertools.accumulate(config["depths"])]
    for key in [key for key in state if key not in left]:
        name = re.sub(r"^encoder_norm\.", "pooler.layernorm.", key).removeprefix("hiera.")
        if match := re.fullmatch(r"encoder\.stages\.(\d+)\.layers\.(\d+)(\..+)", name):
            if int(match[1]) >= len(config["depths"]):
                raise ValueError(f"`{key}` is of a stage that its config.json does not have")
            name = f"encoder.stages.layers.{starts[int(match[1])] + int(match[2])}{match[3]}"
        ours[rename(name, back)] = state[key]
    if len(ours) + len(left) != len(state):
        raise ValueError("it holds a final norm under two names")
    return ours, left


def objective_from_theirs(objective: nn.Module, stages: Sequence[int], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of our autoencoder from that of `HieraForPreTraining`.

    Args:
        objective: of the same sizes; says which names there are.
        stages: blocks of each stage of its encoder.

    Raises:
        ValueError: a key is missing, or one too many.
    """
    names = {key: _objective_key(key, stages) for key in objective.state_dict()}
    if differ := sorted(state.keys() ^ set(names.values())):
        raise ValueError(f"{len(differ)} keys are missing or too many, first `{differ[0]}`")
    return {key: state[name] for key, name in names.items()}


def configuration(card: Card) -> dict[str, Any]:
    """What `config.json` says."""
    encoder, stages = card.encoder, len(card.encoder["stages"])
    config: dict[str, Any] = {
        "architectures": ["HieraModel" if card.part == "encoder" else "HieraForPreTraining"],
        "model_type": "hiera",
        "image_size": list(pair(encoder["img_size"])),
        "num_channels": encoder["in_chans"],
        "embed_dim": encoder["embed_dim"],
        "embed_dim_multiplier": 2.0,
        "depths": list(encoder["stages"]),
        "num_heads": [encoder["num_heads"] * 2**stage for stage in range(stages)],
        "num_query_pool": encoder["q_pool"],
        "query_stride": [2, 2],
        "masked_unit_size": [encoder["mask_unit_size"]] * 2,
        "masked_unit_attention": list(encoder["mask_unit_attn"]),
        "patch_size": [encoder["patch_kernel"]] * 2,
        "patch_stride": [encoder["patch_stride"]] * 2,
        "patch_padding": [encoder["patch_padding"]] * 2,
        "mlp_ratio": float(encoder["mlp_ratio"]),
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "layer_norm_eps": encoder["norm_eps"],
        "dtype": "float32",
    }
    if card.part == "objective" and card.objective is not None:
        decoder = card.objective["decoder"]
        config |= {
            "decoder_hidden_size": decoder["embed_dim"],
            "decoder_depth": decoder["depth"],
            "decoder_num_heads": decoder["num_heads"],
            "normalize_pixel_loss": card.objective["norm_pix_loss"],
            "mask_ratio": card.objective["mask_ratio"],
        }
    return config


def ours(card: Card, model: Any, images: Tensor) -> Tensor:
    """All tokens of an encoder [B, L, D], or all predictions of an autoencoder [B, L, pixels] under `_noise`."""
    if card.part == "encoder":
        return model(images).joined()
    order = _noise(card, images).argsort(dim=1)
    visible = int(order.shape[1] * (1 - model.mask_ratio))
    result: Tensor = model.reconstruct(images, order[:, :visible], order[:, visible:])
    return result


def theirs(load: Callable[..., Any], card: Card, images: Tensor) -> Tensor:
    """The same by transformers; `load` is given a class of it."""
    import transformers

    with torch.no_grad():
        if card.part == "encoder":
            model = load(transformers.AutoModel)
            norm: nn.Module = model.pooler.layernorm  # which it applies to what it has pooled
            result: Tensor = norm(model(images).last_hidden_state)
        else:
            result = load(transformers.HieraForPreTraining)(images, noise=_noise(card, images)).logits
    return result


def _noise(card: Card, images: Tensor) -> Tensor:
    """One number for each mask unit: which are visible."""
    side = card.encoder["mask_unit_size"] * card.encoder["patch_stride"]
    units = (images.shape[2] // side) * (images.shape[3] // side)
    return torch.rand(len(images), units, generator=torch.Generator().manual_seed(1))

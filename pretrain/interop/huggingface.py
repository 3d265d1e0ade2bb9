"""Hugging Face transformers: a folder for `AutoModel.from_pretrained(DIR)`, no key missing and none left over.

The files have the names that every release of transformers reads (those of version 4), whatever names a release has in
memory. What differs from family to family stands beside this file.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from pretrain.interop import huggingface_hiera, huggingface_vit, weights
from pretrain.interop.card import Card, read, refuse_family
from pretrain.records import UserError
from pretrain.view.spec import pair

_FAMILIES: dict[str, ModuleType] = {"ViT": huggingface_vit, "Hiera": huggingface_hiera}
_RESAMPLE = {"bilinear": 2, "bicubic": 3}


def refuse(card: Card) -> None:
    """Raises UserError if transformers cannot say this."""
    refuse_family(card, _FAMILIES, "transformers")
    _FAMILIES[card.family].refuse(card)


def fill(folder: Path, card: Card, model: nn.Module) -> None:
    """Writes the weights of an encoder, or of an objective, under transformers' names, and their description."""
    family = _FAMILIES[card.family]
    files = {"config.json": family.configuration(card), "preprocessor_config.json": _processor(card)}
    weights.save(folder, family.to_theirs(card, model.state_dict()), files)


def to_ours(folder: Path) -> dict[str, Tensor]:
    """The encoder's state in an export, under our names."""
    card = read(folder)
    assert card is not None
    try:
        return from_hf(card.family, weights.load(folder), weights.description(folder))[0]
    except ValueError as failure:
        raise UserError(f"`{folder}` is not what an export wrote: {failure}") from None


def from_hf(family: str, state: dict[str, Tensor], config: dict[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder's state under our names, and the keys of classifiers and decoders, which are left out.

    Raises:
        ValueError: a key is unknown.
    """
    result: tuple[dict[str, Tensor], list[str]] = _FAMILIES[family].from_theirs(state, config)
    return result


def ours(card: Card, model: nn.Module, images: Tensor) -> Tensor:
    """What `theirs` is compared with."""
    result: Tensor = _FAMILIES[card.family].ours(card, model, images)
    return result


def theirs(folder: Path, card: Card, images: Tensor, alone: bool = True) -> Tensor:
    """All tokens of normalised images (of an autoencoder: its predictions) by transformers itself.

    Args:
        folder: an export, or what others published.
        card: what it holds.
        images: [B, C, H, W].
        alone: whether the file may hold nothing else.

    Raises:
        RuntimeError: a key of the model is missing in the file, or the file has one too many.
    """
    result: Tensor = _FAMILIES[card.family].theirs(partial(_load, folder, alone), card, images)
    return result


def _load(folder: Path, alone: bool, kind: Any, **arguments: Any) -> Any:
    model, report = kind.from_pretrained(folder, output_loading_info=True, **arguments)
    if alone and (report["missing_keys"] or report["unexpected_keys"]):
        raise RuntimeError(f"missing {sorted(report['missing_keys'])}, unexpected {sorted(report['unexpected_keys'])}")
    return model.eval()


def _processor(card: Card) -> dict[str, Any]:
    """The evaluation crop: the short side resized, the centre cut out."""
    height, width = pair(card.encoder["img_size"])
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": card.view.get("pixels", "rgb") == "rgb",
        "do_resize": True,
        "size": {"shortest_edge": round(min(height, width) / card.view["crop_pct"])},
        "resample": _RESAMPLE[card.view["interpolation"]],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / card.view.get("full_scale", 255),
        "do_normalize": True,
        "image_mean": list(card.view["mean"]),
        "image_std": list(card.view["std"]),
    }

"""Encoders out to where people use them, and back: a folder with weights, a description, and a card."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from pretrain.files import replace_folder
from pretrain.interop import card as cards
from pretrain.interop import huggingface, official, onnx, timm
from pretrain.interop.card import Card
from pretrain.records import UserError
from pretrain.view.spec import pair

FORMATS: dict[str, ModuleType] = {"timm": timm, "hf": huggingface, "onnx": onnx, "official": official}
EXTRAS = {"timm": "interop", "hf": "interop", "onnx": "onnx"}  # of this package, with the library of each
TOLERANCE = 1e-5  # of the greatest feature; both sides compute in float32, in other orders


def write(target: Path, card: Card, model: nn.Module) -> float:
    """Writes an export, in the place of an older one of the same run and format, atomically, once it is proven.

    Args:
        target: the folder.
        card: what is written, and for which system.
        model: the encoder, or with `card.part` of `objective` the objective that it is part of.

    Returns:
        How far the features (of an objective: the predictions) by the library that it is for are from our own, on
        random images: the greatest difference over the greatest feature.

    Raises:
        UserError: the model cannot be said in that format, `target` holds anything else, the library is not
            installed, or the features differ by more than `TOLERANCE`. What was there before is still there.
    """
    system, target = FORMATS[card.format], Path(os.path.realpath(target))
    system.refuse(card)
    _refuse_foreign(target, card)
    result = 0.0

    def fill(folder: Path) -> None:
        nonlocal result
        try:
            system.fill(folder, card, model)
            (folder / cards.NAME).write_text(card.to_json(), encoding="utf-8")
            result = difference(folder, model)
        except ModuleNotFoundError as failure:
            raise UserError(
                f"format={card.format} needs {failure.name}: pip install 'pretrain[{EXTRAS[card.format]}]'"
            ) from None
        if not result <= TOLERANCE:
            raise UserError(
                f"loaded back through {card.format}, features differ by {result:.1e} of the greatest, more than "
                f"{TOLERANCE}: nothing was written; please report it"
            )

    replace_folder(target, fill)
    return result


def read(folder: Path) -> tuple[Card, dict[str, Tensor]] | None:
    """The card and the state, under our names, of an exported encoder; None if the folder is no export."""
    card = cards.read(folder)
    return None if card is None else (card, FORMATS[card.format].to_ours(folder))


def difference(folder: Path, model: nn.Module) -> float:
    """How far the features of an export are from the model's own, as `write` returns it."""
    card = cards.read(folder)
    assert card is not None
    shape = (4, card.encoder["in_chans"], *pair(card.encoder["img_size"]))
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (
            FORMATS[card.format].ours(card, model, images),
            FORMATS[card.format].theirs(folder, card, images),
        )
    return relative(ours, theirs)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The greatest difference over the greatest value; infinite if the shapes differ."""
    return ((ours - theirs).abs().max() / ours.abs().max()).item() if ours.shape == theirs.shape else math.inf


def _refuse_foreign(target: Path, card: Card) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    there = cards.read(target) if target.is_dir() else None
    if there is None:
        raise UserError(f"out={target}: it is not empty and holds no export; choose another folder")
    if (there.run_id, there.format, there.part) != (card.run_id, card.format, card.part):
        whose = "this run" if there.run_id == card.run_id else f"another run ({there.run_id})"
        whole = " with its decoder" if there.part == "objective" else ""
        raise UserError(f"out={target}: it holds a {there.format} export of {whose}{whole}; choose another folder")

"""Encoders out to where people use them, and back: a folder with weights, a description, and a card."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from pretrain.encoder.encoder import Encoder
from pretrain.files import replace_folder
from pretrain.interop import card as cards
from pretrain.interop import huggingface, onnx, timm
from pretrain.interop.card import Card
from pretrain.records import UserError

FORMATS: dict[str, ModuleType] = {"timm": timm, "hf": huggingface, "onnx": onnx}


def write(target: Path, card: Card, encoder: Encoder) -> None:
    """Writes an export, in the place of an older one of the same run and format, atomically.

    Raises:
        UserError: the encoder cannot be said in that format, or `target` holds anything else.
    """
    system = FORMATS[card.format]
    system.refuse(card)
    _refuse_foreign(target, card)

    def fill(folder: Path) -> None:
        system.fill(folder, card, encoder)
        (folder / cards.NAME).write_text(card.to_json(), encoding="utf-8")

    replace_folder(target, fill)


def read(folder: Path) -> tuple[Card, dict[str, Tensor]] | None:
    """The card and the state, under our names, of an exported encoder; None if the folder is no export."""
    card = cards.read(folder)
    return None if card is None else (card, FORMATS[card.format].to_ours(folder))


def difference(folder: Path, encoder: Encoder, images: Tensor) -> float:
    """How far the features of an export, by the library that it is for, are from the encoder's own: the greatest
    difference over the greatest feature.
    """
    card = cards.read(folder)
    assert card is not None
    with torch.no_grad():
        tokens = encoder(images)
    parts = [tokens.patches] if tokens.cls is None else [tokens.cls[:, None], tokens.patches]
    ours, theirs = torch.cat(parts, dim=1), FORMATS[card.format].features(folder, images)
    return ((ours - theirs).abs().max() / ours.abs().max()).item()


def _refuse_foreign(target: Path, card: Card) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    there = cards.read(target) if target.is_dir() else None
    if there is None:
        raise UserError(f"out={target}: it is not empty and holds no export; choose another folder")
    if (there.run_id, there.format) != (card.run_id, card.format):
        raise UserError(
            f"out={target}: it holds a {there.format} export of another run ({there.run_id}); choose another folder"
        )

"""What an export says of itself, in `pretrain.json` beside the weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.config import renamed
from pretrain.records import UserError

NAME = "pretrain.json"
FORMATS = ("timm", "hf", "onnx", "official")
PARTS = ("encoder", "objective")
FAMILIES = ("ViT", "Hiera")  # classes of encoders that other systems have, too


@dataclass(frozen=True)
class Card:
    """Where weights come from and how to use them.

    Args:
        format: `timm`, `hf`, `onnx` or `official`, the system that it is for.
        run_id, step: the run that made them, and when.
        encoder: `_target_` and all arguments of the encoder's constructor.
        view: the arguments of the `ViewSpec` whose evaluation crop and colours the encoder expects.
        pool: how to make one vector of its tokens: `cls` or `mean`.
        part: `encoder`, or `objective`: with the decoder, as it is pretrained.
        objective: `_target_` and arguments of the objective, without the encoder, where a run made the weights.
    """

    format: str
    run_id: str
    step: int
    encoder: dict[str, Any]
    view: dict[str, Any]
    pool: str
    part: str = "encoder"
    objective: dict[str, Any] | None = None

    @property
    def family(self) -> str:
        """The name of the encoder's class."""
        return str(self.encoder["_target_"]).rpartition(".")[2]

    @property
    def idea(self) -> str:
        """The name of the class of the objective that made the weights, "" if it is not known."""
        return str((self.objective or {}).get("_target_", "")).rpartition(".")[2]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def refuse_unit(encoder: dict[str, Any], system: str) -> None:
    """Raises UserError if other codes of Hiera would take other tokens for a mask unit than ours does."""
    side = 2 ** (len(encoder["stages"]) - 1)
    if encoder["mask_unit_size"] != side:
        raise UserError(
            f"encoder.mask_unit_size={encoder['mask_unit_size']}: {system} puts units in the right order only with "
            f"{side} tokens a side for {len(encoder['stages'])} stages; use format=onnx"
        )


def refuse_others(card: Card, wanted: dict[str, Any], system: str) -> None:
    """Raises UserError with every setting of a card that a system cannot say.

    Args:
        wanted: by keys like `encoder.norm_eps` or `objective.decoder.position`, the only values that it can say.
    """
    wrong = []
    for key, value in wanted.items():
        there: Any = {"encoder": card.encoder, "objective": card.objective}
        for name in key.split("."):
            there = (there or {}).get(name)
        if there != value:
            wrong.append(f"{key}={there}: {system} has {value} alone")
    if wrong:
        raise UserError("\n".join(wrong))


def refuse_family(card: Card, families: Iterable[str], system: str) -> None:
    """Raises UserError if a system cannot say such an encoder."""
    package, _, name = str(card.encoder["_target_"]).rpartition(".")
    if name not in families or not package.startswith("pretrain.encoder."):
        raise UserError(f"{package}.{name} has no counterpart in {system} that this exporter knows")


def refuse_idea(card: Card, ideas: Iterable[str], system: str) -> None:
    """Raises UserError if a system cannot say such an objective."""
    if card.idea not in ideas:
        idea = card.idea or "this objective"
        raise UserError(f"part=objective: {idea} has no counterpart in {system}; export the encoder")


def read(folder: Path) -> Card | None:
    """The card in a folder, None if there is none.

    Raises:
        UserError: there is one, but it is not ours.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        card = Card(**{name: renamed.current(one, name) for name, one in said.items()})
        known = card.format in FORMATS and card.part in PARTS and card.pool in ("cls", "mean")
        if not known or type(card.step) is not int:
            raise ValueError
        if card.format != "onnx":
            refuse_family(card, FAMILIES, card.format)
        return card
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"`{path}` is not what an export wrote") from None

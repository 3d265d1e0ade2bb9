"""Exports the encoder of a run for timm, Hugging Face, ONNX or its original code.

    pretrain export checkpoint=runs/mae_vitb format=timm out=runs/mae_vitb/export/timm

What is written is loaded back, and its features are compared. Of a teacher and its student the
teacher is exported, or with `network=student` the student. `part=objective` exports the decoder
too: `format=official`, and for Hiera `format=hf`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from pretrain.config.arguments import word
from pretrain.config.problem import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Arguments:
    checkpoint: str = word("The folder of a run, or of an export.", example="runs/mae_vitb")
    format: Literal["timm", "hf", "onnx", "official"] = word(
        "Who is to load it: timm, Hugging Face's transformers, an ONNX runtime, or the original repository's code.",
        example="timm",
    )
    out: str = word("A folder for the export.", example="runs/mae_vitb/export/timm")
    part: Literal["encoder", "objective"] = word(
        "What is exported: the encoder alone, or the whole objective with its decoder.", "encoder", example="objective"
    )
    network: Literal["trained", "student"] = word(
        "Which of two networks: the trained one, which is the teacher where there is one, or the student.",
        "trained",
        example="student",
        was="weights",
    )
    trust_checkpoint: bool = word(
        "Loads a checkpoint although another user owns it, or everybody may write to it.", False, example="true"
    )
    allow_targets: tuple[str, ...] = word(
        "Packages other than pretrain whose encoders and objectives may be built.", (), example="[mypackage]"
    )


def main(arguments: Arguments) -> None:
    from pretrain.frozen import load
    from pretrain.interop import export

    logging.getLogger("timm").setLevel(logging.WARNING)
    a, out = arguments, Path(arguments.out)
    frozen = load(Path(a.checkpoint), a.network, a.trust_checkpoint, a.allow_targets)
    card, model = frozen.card, cast("nn.Module", frozen.encoder)
    if arguments.part == "encoder" and frozen.left:
        print("left out, since it served pretraining alone: " + ", ".join(frozen.left))
    if arguments.part == "objective":
        if frozen.objective is None or frozen.objective_card is None:
            raise UserError(f"checkpoint={arguments.checkpoint}: an export has no decoder; take the run's folder")
        card, model = frozen.objective_card, frozen.objective
    difference = export.write(out, replace(card, format=arguments.format), model)
    if arguments.format == "official":
        print(f"{out}: read back; all tensors are equal")
    else:
        what = "features" if arguments.part == "encoder" else "predictions"
        print(
            f"{out}: loaded back through {arguments.format}; {what} differ by at most {difference:.1e} of the greatest"
        )

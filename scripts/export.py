"""Exports the encoder of a run for timm, Hugging Face, ONNX or the original code, loads it back and compares features.

    python scripts/export.py checkpoint=runs/mae_vitb format=timm out=runs/mae_vitb/export/timm

Of a teacher and its student the teacher is exported, or with `network=student` the student.
`part=objective` exports the decoder too: `format=official`, and for Hiera `format=hf`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from torch import nn

from pretrain.config.arguments import script
from pretrain.frozen import load
from pretrain.interop import export
from pretrain.records import UserError


@dataclass(frozen=True)
class Arguments:
    checkpoint: str
    format: Literal["timm", "hf", "onnx", "official"]
    out: str
    part: Literal["encoder", "objective"] = "encoder"
    network: Literal["trained", "student"] = "trained"  # where there is a teacher, `trained` is the teacher
    trust_checkpoint: bool = False  # of another user, or writable by everybody
    allow_targets: tuple[str, ...] = ()  # packages of the run's encoder and objective


def main(arguments: Arguments) -> None:
    logging.getLogger("timm").setLevel(logging.WARNING)
    a, out = arguments, Path(arguments.out)
    frozen = load(Path(a.checkpoint), a.network, a.trust_checkpoint, a.allow_targets)
    card, model = frozen.card, cast(nn.Module, frozen.encoder)
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


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

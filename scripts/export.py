"""Exports the encoder of a run for timm, Hugging Face or ONNX, loads it back and compares the features.

python scripts/export.py checkpoint=runs/mae_vitb format=timm out=runs/mae_vitb/export/timm
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from pretrain.arguments import script
from pretrain.frozen import load
from pretrain.interop import export
from pretrain.records import UserError

TOLERANCE = 1e-5  # of the greatest feature; both sides compute in float32, in other orders


@dataclass(frozen=True)
class Arguments:
    checkpoint: str
    format: Literal["timm", "hf", "onnx"]
    out: str


def main(arguments: Arguments) -> None:
    frozen, out = load(Path(arguments.checkpoint)), Path(arguments.out)
    export.write(out, replace(frozen.card, format=arguments.format), frozen.encoder)
    height, width = frozen.view.height_width
    images = torch.randn(4, frozen.encoder.in_chans, height, width, generator=torch.Generator().manual_seed(0))
    difference = export.difference(out, frozen.encoder, images)
    print(f"{out}: loaded back through {arguments.format}; features differ by at most {difference:.1e} of the greatest")
    if not difference <= TOLERANCE:
        raise UserError(f"that is more than {TOLERANCE}: do not use this export, and please report it")


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

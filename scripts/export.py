"""Exports the encoder of a run for timm, Hugging Face or ONNX, loads it back and compares the features.

python scripts/export.py checkpoint=runs/mae_vitb format=timm out=runs/mae_vitb/export/timm
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pretrain.arguments import script
from pretrain.frozen import load
from pretrain.interop import export


@dataclass(frozen=True)
class Arguments:
    checkpoint: str
    format: Literal["timm", "hf", "onnx"]
    out: str


def main(arguments: Arguments) -> None:
    logging.getLogger("timm").setLevel(logging.WARNING)
    frozen, out = load(Path(arguments.checkpoint)), Path(arguments.out)
    difference = export.write(out, replace(frozen.card, format=arguments.format), frozen.encoder)
    print(f"{out}: loaded back through {arguments.format}; features differ by at most {difference:.1e} of the greatest")


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

"""Takes in the weights of an encoder that others published, and writes an export that probes and exports read.

    python scripts/import_weights.py source=official weights=mae_hiera_base_224.pth encoder=hiera_base out=hiera_base

`source` is `official` (facebookresearch/mae, facebookresearch/hiera: a `.pth` file), `timm` or `hf` (a folder, or the
`model.safetensors` in it). All other words are overrides: `encoder=…`, and what differs from it. The export is for
timm, or `format=hf`, and is compared with the encoder through that library.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from pretrain.arguments import script_with_overrides
from pretrain.assemble import instantiate
from pretrain.config import composed_without_data
from pretrain.encoder.encoder import Encoder
from pretrain.interop import export, foreign
from pretrain.interop.card import Card
from pretrain.view.spec import ViewSpec


@dataclass(frozen=True)
class Arguments:
    source: Literal["timm", "hf", "official"]
    weights: str
    out: str
    format: Literal["timm", "hf"] = "timm"


def main(arguments: Arguments, overrides: list[str]) -> None:
    cfg = composed_without_data(overrides)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    encoder: Encoder = instantiate(cfg.encoder).eval()
    left = foreign.load_into(encoder, arguments.source, Path(arguments.weights))
    view: ViewSpec = instantiate(cfg.objective.view)
    name = f"{arguments.source}:{Path(arguments.weights).name}"
    card = Card(arguments.format, name, 0, plain["encoder"], asdict(view), "mean")
    difference = export.write(Path(arguments.out), card, encoder)
    print(f"{arguments.out}: {len(encoder.state_dict())} tensors taken in, {len(left)} left out")
    if left:
        print("left out: " + ", ".join(left))
    print(f"loaded back through {arguments.format}; features differ by at most {difference:.1e} of the greatest")


if __name__ == "__main__":
    script_with_overrides(Arguments, __doc__ or "", main)

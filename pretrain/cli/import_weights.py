"""Takes in the weights of an encoder that others published.

    pretrain import source=official weights=mae_hiera_base_224.pth encoder=hiera_base out=hiera_base

`source` is `official` (facebookresearch/mae, facebookresearch/hiera, facebookresearch/dino: a
`.pth` file), `timm` or `hf` (a folder, or the `model.safetensors` in it; with a `config.json`
the features are compared with that library's). All other words are overrides: `encoder=…`, and
what differs from it. An export is written, for timm or `format=hf`, which probes and exports
read; it is compared with the encoder through that library.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pretrain.config.arguments import word


@dataclass(frozen=True)
class Arguments:
    source: Literal["timm", "hf", "official"] = word(
        "Whose names the weights have: timm's, Hugging Face's, or those of the original repository.",
        example="official",
    )
    weights: str = word("The file of weights, or the folder that it is in.", example="mae_hiera_base_224.pth")
    out: str = word("A folder for the export.", example="hiera_base")
    format: Literal["timm", "hf"] = word("Who is to load the export.", "timm", example="hf")
    pool: Literal["cls", "mean"] = word(
        "How probes make one vector of its tokens: the class token, or the mean of the patches.", "mean", example="cls"
    )


def main(arguments: Arguments, overrides: list[str]) -> None:
    from omegaconf import OmegaConf

    from pretrain.assemble import instantiate
    from pretrain.config.check import composed_without_data
    from pretrain.interop import export, foreign
    from pretrain.interop.card import Card

    logging.getLogger("timm").setLevel(logging.WARNING)
    cfg, path = composed_without_data(overrides), Path(arguments.weights)
    node: Any = OmegaConf.to_container(cfg.encoder, resolve=True)
    encoder = instantiate(node)
    node |= encoder.after_pretraining  # of a recipe for pretraining, what is used afterwards
    encoder = instantiate(node).eval()
    left = foreign.load_into(encoder, arguments.source, path)
    view = instantiate(cfg.objective.view)
    card = Card(arguments.format, foreign.identity(arguments.source, path), 0, node, asdict(view), arguments.pool)
    found = foreign.difference(encoder, card, arguments.source, path)
    foreign.refuse_other_features(found, path)
    difference = export.write(Path(arguments.out), card, encoder)
    print(f"{arguments.out}: {len(encoder.state_dict())} tensors taken in, {len(left)} left out")
    if left:
        print("left out: " + ", ".join(left))
    if found is None:
        print("there is no config.json that its own library could compare with: heads and norms are as `encoder` says")
    else:
        print(f"features differ from those of the source by at most {found:.1e} of the greatest")
    print(f"loaded back through {arguments.format}; features differ by at most {difference:.1e} of the greatest")

"""Says what a masked encoder costs against one that looks at the whole image, without weights, shards or a GPU.

    python scripts/flops.py +experiment=mae_hiera_base
    python scripts/flops.py 'experiments=[mae_vitb,mae_hiera_base]' out=flops.json

In GFLOP an image, forward and backward, two a multiply-add; matrix products and convolutions are counted, on torch's
meta device, and nothing is computed. Other implementations make the first tokens of the whole image before they drop
the hidden ones (facebookresearch/mae projects every patch, facebookresearch/hiera convolves the whole image with its
hidden pixels set to zero): "embedding all first" is what the encoder would cost that way.

All words but `experiments` and `out` are overrides, as `python -m pretrain` takes them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pretrain.assemble import objective_of
from pretrain.config.arguments import script
from pretrain.config.check import composed_without_data
from pretrain.plan import cost, empty_batch, masking
from pretrain.records import UserError

COLUMNS = ["recipe", "unmasked", "masked", "share", "units visible", "embedding all first", "ours saves", "whole step"]


@dataclass(frozen=True)
class Arguments:
    experiments: list[str] | None = None  # several recipes, one row each
    out: str | None = None


def counted(overrides: list[str]) -> tuple[str, dict[str, Any]]:
    """The name of a configuration and what its step costs."""
    cfg = composed_without_data(overrides)
    objective = objective_of(cfg)
    mask: Any = getattr(objective, "mask", None)
    if mask is None:
        raise UserError(f"objective={cfg.objective._target_}: hides no part of an image; take one that does, as mae")
    encoder = objective.trained_encoder
    if not hasattr(encoder, "patch_embed"):
        raise UserError(f"encoder={cfg.encoder._target_}: has no `patch_embed` whose cost could be told apart")
    batch = empty_batch((view.count, len(view.mean), *view.height_width) for view in objective.views)
    shares = masking(encoder, batch, *mask(batch.views[0][0], batch))
    whole = {"embedded_whole": shares.embedded_whole, "step": cost(objective, encoder, batch).flops}
    return cfg.name, asdict(shares) | whole


def row(name: str, counts: dict[str, Any]) -> str:
    unmasked, masked, whole, step = (
        f"{counts[key] / 1e9:.2f}" for key in ("unmasked", "masked", "embedded_whole", "step")
    )
    share, saved = counts["masked"] / counts["unmasked"], 1 - counts["masked"] / counts["embedded_whole"]
    cells = [name, unmasked, masked, f"{share:.1%}", f"{counts['visible']:.1%}", whole, f"{saved:.1%}", step]
    return f"| {' | '.join(cells)} |"


def main(arguments: Arguments, overrides: list[str]) -> None:
    recipes = [[f"+experiment={name}"] for name in arguments.experiments or []] or [[]]
    results = dict(counted([*recipe, *overrides]) for recipe in recipes)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name, counts in results.items():
        print(row(name, counts))
    if arguments.out is not None:
        run = {"overrides": overrides, "torch": torch.__version__}
        text = json.dumps(results | {"run": run}, indent=1) + "\n"
        Path(arguments.out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

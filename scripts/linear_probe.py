"""Linear-probe accuracy of a frozen encoder.

    python scripts/linear_probe.py checkpoint=runs/mae_vitb 'train=shards/train-*.tar' 'val=shards/val-*.tar'
    out=linear.json

protocol=closed is logistic regression on standardised features to convergence, C from {.001, .01, .1}, best on val;
protocol=paper is the published recipe of MAE: LARS, batch norm, augmentation (batch_size, epochs, … are for it alone).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor
from tqdm import tqdm

from pretrain.arguments import script
from pretrain.data.module import Patterns, open_shards
from pretrain.frozen import Frozen, Weights, default_device, load
from pretrain.probe import linear, paper
from pretrain.probe.features import Pool
from pretrain.records import UserError


@dataclass(frozen=True)
class Arguments:
    checkpoint: str
    train: Patterns
    val: Patterns
    out: str | None = None
    protocol: Literal["closed", "paper"] = "closed"
    pool: Pool | None = None
    weights: Weights = "trained"
    batch_size: int = 16384
    epochs: int = 90
    warmup_epochs: int = 10
    base_lr: float = 0.1
    seed: int = 0
    num_workers: int = 4


def main(arguments: Arguments) -> None:
    frozen = load(Path(arguments.checkpoint), arguments.weights)
    protocol = asdict(arguments) | {"pool": arguments.pool or frozen.pool}
    val, val_labels = frozen.features(arguments.val, arguments.weights, arguments.pool, arguments.num_workers)
    if arguments.protocol == "paper":
        frozen.write(arguments.out, by_the_paper(arguments, frozen, val, val_labels), protocol)
        return
    train, labels = frozen.features(arguments.train, arguments.weights, arguments.pool, arguments.num_workers)
    by_strength = linear.fit(train, labels, val, val_labels)
    best = max(by_strength, key=lambda strength: by_strength[strength])
    frozen.write(arguments.out, by_strength[best], protocol | {"C": best, "accuracy_by_C": by_strength})


def by_the_paper(arguments: Arguments, frozen: Frozen, val: Tensor, val_labels: Tensor) -> float:
    index, size = open_shards(arguments.train), arguments.batch_size
    if index.num_samples < size:
        raise UserError(f"batch_size={size}: there are only {index.num_samples} training samples; give a smaller one")
    micro = max(part for part in range(1, paper.NORM_SAMPLES + 1) if size % part == 0)
    head = paper.Head(val.shape[1], int(val_labels.max()) + 1, arguments.seed).to(default_device())
    batches = frozen.augmented(index, micro, arguments.seed, arguments.pool, arguments.num_workers)
    steps = index.num_samples // size
    losses = paper.fit(head, batches, size, steps, arguments.epochs, arguments.warmup_epochs, arguments.base_lr)
    for loss in (bar := tqdm(losses, total=steps * arguments.epochs, desc="linear probe")):
        bar.set_postfix(loss=f"{loss:.3f}")
    return paper.accuracy(head, val, val_labels)


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

"""k-nearest-neighbour accuracy of a frozen encoder.

python scripts/knn.py checkpoint=runs/mae_vitb 'train=shards/train-*.tar' 'val=shards/val-*.tar' out=knn.json
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.arguments import script
from pretrain.data.module import Patterns
from pretrain.frozen import Weights, load, open_probe_data
from pretrain.probe import knn
from pretrain.probe.features import Pool
from pretrain.records import UserError


@dataclass(frozen=True)
class Arguments:
    checkpoint: str
    train: Patterns
    val: Patterns
    out: str | None = None
    k: int = 20
    temperature: float = 0.07
    pool: Pool | None = None
    weights: Weights = "trained"
    num_workers: int = 4
    index_dir: str | None = None
    allow_pipe: bool = False


def main(arguments: Arguments) -> None:
    a = arguments
    if a.k < 1 or a.temperature <= 0:
        raise UserError(f"k={a.k} must be at least 1, and temperature={a.temperature} positive")
    indexes = open_probe_data(a.train, a.val, a.out, a.index_dir, a.allow_pipe, a.num_workers)
    frozen = load(Path(a.checkpoint), a.weights)
    (train, labels), (val, val_labels) = (frozen.features(one, a.weights, a.pool, a.num_workers) for one in indexes)
    predictions = knn.predict(train, labels, val, arguments.k, arguments.temperature)
    protocol = asdict(arguments) | {"protocol": "knn", "similarity": "cosine", "pool": arguments.pool or frozen.pool}
    samples = {"train": len(train), "val": len(val)}
    frozen.write(arguments.out, knn.accuracy(predictions, val_labels), samples, protocol)


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

"""k-nearest-neighbour accuracy of a frozen encoder.

python scripts/knn.py checkpoint=runs/mae_vitb 'train=shards/train-*.tar' 'val=shards/val-*.tar' out=knn.json
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.arguments import script
from pretrain.data.module import Patterns
from pretrain.frozen import Weights, load
from pretrain.probe import knn
from pretrain.probe.features import Pool


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


def main(arguments: Arguments) -> None:
    frozen = load(Path(arguments.checkpoint), arguments.weights)
    train, labels = frozen.features(arguments.train, arguments.weights, arguments.pool, arguments.num_workers)
    val, val_labels = frozen.features(arguments.val, arguments.weights, arguments.pool, arguments.num_workers)
    predictions = knn.predict(train, labels, val, arguments.k, arguments.temperature)
    protocol = asdict(arguments) | {"protocol": "knn", "similarity": "cosine", "pool": arguments.pool or frozen.pool}
    frozen.write(arguments.out, knn.accuracy(predictions, val_labels), protocol)


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

"""k-nearest-neighbour accuracy of a frozen encoder.

    pretrain probe knn checkpoint=runs/mae_vitb out=knn.json \\
        'train=shards/train-*.tar' 'val=shards/val-*.tar'

Neighbours are found by cosine similarity, and vote with weights that fall with their distance.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.cli.probe_data import ProbeArguments, open_probe_data, write_result
from pretrain.config.arguments import word
from pretrain.config.problem import UserError


@dataclass(frozen=True)
class Arguments(ProbeArguments):
    k: int = word("How many neighbours vote.", 20, example="10")
    temperature: float = word("The lower, the more the nearest of them count.", 0.07, example="0.1")


def main(a: Arguments) -> None:
    from pretrain.frozen import load
    from pretrain.probe import knn

    if a.k < 1 or a.temperature <= 0:
        raise UserError(f"k={a.k} must be at least 1, and temperature={a.temperature} positive")
    indexes = open_probe_data(a)
    frozen = load(Path(a.checkpoint), a.features, a.trust_checkpoint, a.allow_targets)
    (train, labels), (val, val_labels) = (
        frozen.features(one, a.features, a.pool, a.num_workers, a.labels) for one in indexes
    )
    predictions = knn.predict(train, labels, val, a.k, a.temperature)
    protocol = asdict(a) | {"probe": "knn", "similarity": "cosine", "pool": a.pool or frozen.pool}
    samples = {"train": len(train), "val": len(val)}
    write_result(frozen.card, a.out, knn.accuracy(predictions, val_labels), samples, protocol)

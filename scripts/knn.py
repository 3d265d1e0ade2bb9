"""k-nearest-neighbour accuracy of a frozen encoder.

python scripts/knn.py checkpoint=runs/mae_vitb 'train=shards/train-*.tar' 'val=shards/val-*.tar' out=knn.json
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.config.arguments import script
from pretrain.frozen import ProbeArguments, load, open_probe_data
from pretrain.probe import knn
from pretrain.records import UserError


@dataclass(frozen=True)
class Arguments(ProbeArguments):
    k: int = 20
    temperature: float = 0.07


def main(a: Arguments) -> None:
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
    frozen.write(a.out, knn.accuracy(predictions, val_labels), samples, protocol)


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

"""Linear-probe accuracy of a frozen encoder.

    pretrain probe linear checkpoint=runs/mae_vitb out=linear.json \\
        'train=shards/train-*.tar' 'val=shards/val-*.tar'

solver=logreg is logistic regression on standardised features to convergence, C from {.001, .01,
.1}, best on val; solver=sgd is the published recipe of MAE: LARS, batch norm, augmentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pretrain.cli.probe_data import ProbeArguments, open_probe_data, write_result
from pretrain.config.arguments import word
from pretrain.config.problem import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from pretrain.data.shard.index import Index
    from pretrain.frozen import Frozen


@dataclass(frozen=True)
class Arguments(ProbeArguments):
    solver: Literal["logreg", "sgd"] = word(
        "Logistic regression to convergence, or the published recipe of MAE.",
        "logreg",
        example="sgd",
        was="protocol",
        was_values={"closed": "logreg", "paper": "sgd"},
    )
    batch_size: int = word("For sgd: samples of a step.", 16384, example="4096")
    epochs: int = word("For sgd: how often each training sample is seen.", 90, example="50")
    warmup_epochs: int = word("For sgd: epochs in which the learning rate rises from 0.", 10, example="5")
    base_lr: float = word("For sgd: the learning rate per 256 samples of a step.", 0.1, example="0.05")
    classes: int | None = word(
        "For sgd: how many classes there are; by default as many as val has.", None, example="1000"
    )
    seed: int = word("For sgd: of the order, the crops and the first weights.", 0, example="1")


def main(a: Arguments) -> None:
    from pretrain.frozen import load
    from pretrain.probe import linear

    indexes = open_probe_data(a)
    micro = micro_batch(a, indexes[0].num_samples) if a.solver == "sgd" else 0
    frozen = load(Path(a.checkpoint), a.features, a.trust_checkpoint, a.allow_targets)
    protocol = asdict(a) | {"probe": "linear", "pool": a.pool or frozen.pool}
    val, val_labels = frozen.features(indexes[1], a.features, a.pool, a.num_workers, a.labels)
    if a.solver == "sgd":
        result = by_the_paper(a, frozen, indexes[0], micro, val, val_labels)
        write_result(frozen.card, a.out, result, {"train": indexes[0].num_samples, "val": len(val)}, protocol)
        return
    train, labels = frozen.features(indexes[0], a.features, a.pool, a.num_workers, a.labels)
    by_strength = linear.fit(train, labels, val, val_labels)
    best = max(by_strength, key=lambda strength: by_strength[strength])
    samples = {"train": len(train), "val": len(val)}
    write_result(frozen.card, a.out, by_strength[best], samples, protocol | {"C": best, "accuracy_by_C": by_strength})


def micro_batch(a: Arguments, num_samples: int) -> int:
    """How many samples the published recipe normalises at once: the most that divide its batch.

    Raises:
        UserError: with all that is wrong with the arguments of that recipe.
    """
    from pretrain.probe import paper

    lines = []
    if not 0 <= a.warmup_epochs < a.epochs:
        lines.append(f"warmup_epochs={a.warmup_epochs}: must be at least 0 and below epochs (={a.epochs})")
    if a.base_lr <= 0:
        lines.append(f"base_lr={a.base_lr}: must be positive")
    micro = max((part for part in range(2, paper.NORM_SAMPLES + 1) if a.batch_size % part == 0), default=0)
    if a.batch_size < 2 or not micro:
        lines.append(f"batch_size={a.batch_size}: must have a divisor between 2 and {paper.NORM_SAMPLES}")
    elif num_samples < a.batch_size:
        lines.append(f"batch_size={a.batch_size}: there are only {num_samples} training samples; give a smaller one")
    if lines:
        raise UserError("\n".join(lines))
    return micro


def by_the_paper(a: Arguments, frozen: Frozen, index: Index, micro: int, val: Tensor, val_labels: Tensor) -> float:
    from tqdm import tqdm

    from pretrain.frozen import default_device
    from pretrain.probe import paper

    classes = a.classes or 1 + int(val_labels.max())
    head = paper.Head(val.shape[1], classes, a.seed).to(default_device())
    batches = labelled(frozen.augmented(index, micro, a.seed, a.pool, a.num_workers, a.labels), classes)
    steps = index.num_samples // a.batch_size
    losses = paper.fit(head, batches, a.batch_size, steps, a.epochs, a.warmup_epochs, a.base_lr)
    for loss in (bar := tqdm(losses, total=steps * a.epochs, desc="linear probe")):
        bar.set_postfix(loss=f"{loss:.3f}")
    return paper.accuracy(head, val, val_labels)


def labelled(batches: Iterable[tuple[Tensor, Tensor]], classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches, as long as their labels are class numbers.

    Raises:
        UserError: one is not.
    """
    for features, labels in batches:
        if (labels < 0).any():
            raise UserError("a training sample has no label: a probe needs them; labels=… says where they are")
        if (labels >= classes).any():
            raise UserError(
                f"a training sample has label {int(labels.max())}, but val ends at {classes - 1}: give classes=…"
            )
        yield features, labels

"""What every probe is told, the shards that it opens, and the result that it writes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pretrain.config import secret
from pretrain.config.arguments import word
from pretrain.config.problem import UserError
from pretrain.data.patterns import Patterns
from pretrain.files import replace_file

if TYPE_CHECKING:
    from pretrain.data.shard.index import Index
    from pretrain.interop.card import Card


@dataclass(frozen=True)
class ProbeArguments:
    """What every probe is told: which encoder, on which shards, and where its result goes."""

    checkpoint: str = word("The folder of a run, or of an export.", example="runs/mae_vitb")
    train: Patterns = word("Labelled shards that the probe learns from.", example="shards/train-*.tar")
    val: Patterns = word("Labelled shards that the accuracy is measured on.", example="shards/val-*.tar")
    out: str | None = word(
        "A file for the result, as json; without it, the result is only printed.", None, example="knn.json"
    )
    pool: Literal["cls", "mean"] | None = word(
        "How one vector is made of an image's tokens: the class token, or the mean of the patches. By default as the "
        "objective was made for.",
        None,
        example="mean",
    )
    features: Literal["trained", "student", "random", "pixels"] = word(
        "Whose features are probed: of the trained encoder (where there is a teacher, the teacher), of the student, of "
        "the encoder with random weights, or the pixels themselves.",
        "trained",
        example="random",
        was="weights",
    )
    num_workers: int = word("Threads that read and decode images; 0 reads in the main thread.", 4, example="8")
    index_dir: str | None = word(
        "A folder for the index of shards that have none beside them; by default a cache of the user's.",
        None,
        example="index",
    )
    allow_pipe: bool = word("Whether `pipe:` patterns may start programs.", False, example="true")
    labels: str = word(
        "Where a sample's class is: cls for its `.cls` member, json:KEY for a value of its `.json`, json:a.b for one "
        "further inside.",
        "cls",
        example="json:label",
    )
    skip: Patterns | None = word(
        "Lists of training samples to leave out, as `pretrain shards` writes them.", None, example="skip.json"
    )
    trust_checkpoint: bool = word(
        "Loads a checkpoint although another user owns it, or everybody may write to it.", False, example="true"
    )
    allow_targets: tuple[str, ...] = word(
        "Packages other than pretrain whose encoders and objectives may be built.", (), example="[mypackage]"
    )


def open_probe_data(a: ProbeArguments) -> tuple[Index, Index]:
    """The train and val shards of a probe, once it is clear that its result can be written.

    Raises:
        UserError: the shards cannot be read, or `out` cannot be written.
    """
    from pretrain.data.opening import open_shards
    from pretrain.data.shard import label

    if wrong := label.mistake(a.labels):
        raise UserError(f"labels={a.labels}: {wrong}")
    if a.labels == "none":
        raise UserError("labels=none: a probe needs labels; give labels=cls or labels=json:KEY")
    if a.num_workers < 0:
        raise UserError(f"num_workers={a.num_workers}: must be at least 0")
    if a.out is not None:
        try:
            Path(a.out).parent.mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            raise UserError(f"out={a.out}: {failure.strerror}") from None
        if Path(a.out).is_dir() or not os.access(Path(a.out).parent, os.W_OK):
            raise UserError(f"out={a.out}: must be a file that can be written")
    train = open_shards(a.train, a.index_dir, a.allow_pipe, prefix="", skip=a.skip)
    return train, open_shards(a.val, a.index_dir, a.allow_pipe, prefix="")


def write_result(
    card: Card, out: str | None, accuracy: float, samples: dict[str, int], protocol: dict[str, Any]
) -> None:
    """Prints a probe's accuracy and writes it as json, with all that was asked for.

    Args:
        card: of the encoder.
        out: the file.
        accuracy: the share of val samples that are right.
        samples: how many there were, of `train` and `val`.
        protocol: everything else that was asked for.
    """
    result = {
        "accuracy": accuracy,
        "samples": samples,
        "protocol": secret.recorded(protocol),
        "run_id": card.run_id,
        "step": card.step,
    }
    probe = protocol.get("solver", "k-NN")
    print(f"accuracy {accuracy:.2%}  ({probe}, {protocol['features']} features, step {card.step})")
    if out is not None:
        replace_file(Path(out), json.dumps(result, indent=1).encode())

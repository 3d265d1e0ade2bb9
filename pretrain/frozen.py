"""An encoder to probe or to export, from a run's folder or from an export."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from pretrain.assemble import as_exported, instantiate, materialise, objective_of
from pretrain.config import renamed, saved
from pretrain.config.nodes import check_nodes
from pretrain.data.shard.index import Index
from pretrain.data.shard.label import Labels
from pretrain.data.stream.loader import Loader
from pretrain.data.stream.order import Order, Shuffle
from pretrain.data.stream.reader import BatchStream
from pretrain.data.stream.report import BadSamples
from pretrain.data.stream.windows import Numbers
from pretrain.encoder.encoder import Encoder
from pretrain.interop import export
from pretrain.interop.card import Card
from pretrain.objective.objective import Objective
from pretrain.probe.features import Featurize, Pool, extract, pooled
from pretrain.records import Batch, UserError
from pretrain.trainer import checkpoint
from pretrain.trainer.trust import refuse_untrusted
from pretrain.view.color import Prepare
from pretrain.view.spec import ViewSpec

log = logging.getLogger(__name__)

Network = Literal["trained", "student", "random"]
Features = Literal["trained", "student", "random", "pixels"]

_BATCH = 256


@dataclass
class Frozen:
    """An encoder in evaluation mode, the view that it expects, and the card that an export of it would carry.

    Of a run there is also the `objective` that it was pretrained in, with the card that an export of that would carry,
    and the names of the encoder's weights that are `left` out, since they served pretraining alone.
    """

    encoder: Encoder
    view: ViewSpec
    pool: Pool
    card: Card
    objective: Objective | None = None
    objective_card: Card | None = None
    left: Sequence[str] = ()

    def featurize(self, kind: Features, pool: Pool | None, device: torch.device) -> Featurize:
        """What a probe needs: uint8 batch → features [B, D]. Of kind `pixels` they are the normalised pixels."""
        prepare, encoder = Prepare([self.view], augment=False).to(device), self.encoder.to(device)

        def features(batch: Batch) -> torch.Tensor:
            images = prepare(batch.to(device)).views[0][0]
            return images.flatten(1) if kind == "pixels" else pooled(encoder, images, pool or self.pool)

        return features

    def features(
        self,
        index: Index,
        kind: Features = "trained",
        pool: Pool | None = None,
        num_workers: int = 4,
        labels: str | None = "cls",
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [N, D] and labels [N] of all samples of shards, each once, cut centrally.

        Samples that cannot be decoded are left out, and the log says how many.

        Raises:
            UserError: the shards cannot be read, or a sample has no label.
        """
        numbers, where = Numbers(0, 1, _BATCH, index.num_samples), Labels.of(labels, index.shards, prefix="")
        order = Order(index.counts, 0, None)
        stream = BatchStream(index, order, numbers, (self.view,), random=False, threads=num_workers, labels=where)
        loader = Loader(stream, max_bad_fraction=1.0, bad=BadSamples("it is left out"))
        batches = tqdm(loader, total=-(-index.num_samples // _BATCH), desc="features", delay=2)
        result = extract(batches, self.featurize(kind, pool, default_device()), sought=str(where))
        if loader.bad:
            log.warning("%s: they are left out", loader.bad)
        return result

    def augmented(
        self,
        index: Index,
        batch: int,
        seed: int,
        pool: Pool | None = None,
        num_workers: int = 4,
        labels: str | None = "cls",
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Features [batch, D] and labels [batch] of random crops (8 to 100 % of the area) and flips, without end."""
        view, device = replace(self.view, scale=(0.08, 1.0), flip=0.5), default_device()
        prepare, encoder = Prepare([view]).to(device), self.encoder.to(device)
        order = Order(index.counts, seed, Shuffle())
        where = Labels.of(labels, index.shards, prefix="")
        stream = BatchStream(index, order, Numbers(0, 1, batch), (view,), threads=num_workers, labels=where)
        for samples in Loader(stream):
            moved = prepare(samples.to(device))
            with torch.no_grad():
                features = pooled(encoder, moved.views[0][0], pool or self.pool)
            yield features, moved.labels


def default_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(
    path: Path, network: Features = "trained", trust_checkpoint: bool = False, allow_targets: Sequence[str] = ()
) -> Frozen:
    """The encoder of a run's newest checkpoint, or of an exported folder.

    Args:
        path: of the run's folder, or of an export.
        network: `trained` is the one that is exported, where there is a teacher the teacher; `student` is the one that
            the optimizer trained; `random` and `pixels` have the weights that a run began with (an export: seed 0).
        trust_checkpoint: whether to load a checkpoint that another user could have written (see `trust.py`).
        allow_targets: packages whose encoders and objectives may be built, if the run's are not of this one. What the
            run's own files allow does not count.

    Raises:
        UserError: it is neither, or the run has no checkpoint yet.
    """
    exported = export.read(path)
    if exported is None:
        return _from_run(path, network, trust_checkpoint, allow_targets)
    card, state = exported
    if network == "student":
        raise UserError(f"checkpoint={path}: an export holds one encoder; for the student give the run's folder")
    view = {"_target_": "pretrain.view.spec.ViewSpec"} | card.view
    _refuse(f"checkpoint={path}", check_nodes({"encoder": card.encoder, "view": view}, allow_targets))
    encoder, card, _ = after_pretraining(instantiate(card.encoder), card)
    if network == "trained":
        _put(encoder, state, f"checkpoint={path}")
    return Frozen(encoder.eval(), ViewSpec(**card.view), card.pool, card)  # type: ignore[arg-type]


def _from_run(path: Path, network: Features, trust_checkpoint: bool, allow_targets: Sequence[str]) -> Frozen:
    if not (path / "config.yaml").is_file() or not (path / "run.json").is_file():
        raise UserError(f"checkpoint={path}: it is neither a run's folder nor an export")
    plain, objective = configured(path, f"checkpoint={path}", allow_targets)
    newest, step = checkpoint.newest(path / "checkpoints"), 0
    if network == "student" and objective.trained_encoder is objective.encoder_for_export:
        name = type(objective).__name__
        raise UserError(f"student: {name} has no teacher, its one network is called trained")
    if network in ("trained", "student"):
        if newest is None:
            raise UserError(f"checkpoint={path}: the run has no complete checkpoint yet")
        refuse_untrusted(newest, trust_checkpoint, above=(path, newest.parent))
        stored = checkpoint.load(newest, only=("objective", "step"))
        _put(objective, stored["objective"], f"checkpoint={path}")
        step = stored["step"]
    try:
        run_id = str(json.loads((path / "run.json").read_text(encoding="utf-8"))["run_id"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"checkpoint={path}: its run.json is not what a run wrote") from None
    view = replace(objective.views[0], count=1, colors=None)  # evaluation looks at each sample once, in its own colours
    whole = Card(
        "", run_id, step, plain["encoder"], asdict(view), objective.pool, part="objective", objective=plain["objective"]
    )
    chosen = objective.trained_encoder if network == "student" else objective.encoder_for_export
    encoder, card, left = after_pretraining(chosen, whole)
    return Frozen(encoder.eval(), view, objective.pool, card, objective.eval(), whole, left)


def configured(path: Path, asked: str, allow_targets: Sequence[str] = ()) -> tuple[dict[str, Any], Objective]:
    """The configuration of a run's folder as plain data, and its objective with the weights that training began with.

    Args:
        path: of the folder.
        asked: the word that named it, for messages.
        allow_targets: as for `load`.

    Raises:
        UserError: it names what may not be built, or is not what a run wrote.
    """
    plain = renamed.current(saved.read(path / "config.yaml"))
    nodes = {key: plain.get(key) for key in ("encoder", "objective")}
    named = [key for key, node in nodes.items() if isinstance(node, dict) and "_target_" in node]
    nameless = [f"{key}._target_ is missing" for key in nodes if key not in named]
    _refuse(asked, nameless or check_nodes(nodes, allow_targets))
    if type(plain.get("seed")) is not int:
        raise UserError(f"{asked}: seed={plain.get('seed')} in its config.yaml is no whole number; no run wrote it so")
    return plain, materialise(objective_of(nodes), plain["seed"])


def after_pretraining(encoder: Encoder, card: Card) -> tuple[Encoder, Card, list[str]]:
    """The encoder as it is used once it is pretrained: the same weights, some other arguments of its constructor.

    Args:
        encoder: pretrained.
        card: says what it was built from.

    Returns:
        The encoder, the card of what it is built from now, and the names of weights that served pretraining alone.
    """
    built, left = as_exported(encoder, card.encoder)
    return built, replace(card, part="encoder", encoder=card.encoder | encoder.after_pretraining), left


def _put(module: torch.nn.Module, state: dict[str, torch.Tensor], asked: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as failure:
        first = str(failure).splitlines()[1].strip()
        raise UserError(f"{asked}: its weights do not fit its description: {first[:200]}") from None


def _refuse(asked: str, mistakes: list[str]) -> None:
    if mistakes:
        raise UserError(f"{asked}: " + "; ".join(mistakes))

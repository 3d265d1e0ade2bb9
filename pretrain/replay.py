"""A step that a run skipped, since its loss or its gradients were not finite, made again: to see where it begins.

Everything random about a sample is a function of (seed, its number), so the weights from before the step and the
numbers of its samples are all that it takes.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pretrain.config import secret
from pretrain.data.opening import NamedPatterns, Patterns, open_training
from pretrain.data.store.source import access_of
from pretrain.data.stream.loader import Loader
from pretrain.data.stream.order import Shuffle
from pretrain.data.stream.reader import BatchStream
from pretrain.data.stream.windows import Numbers
from pretrain.frozen import configured, default_device
from pretrain.objective.objective import Objective
from pretrain.optim.clip import gradient_norms, total_norm
from pretrain.records import Batch, UserError
from pretrain.trainer.incident import Incident
from pretrain.trainer.trust import refuse_untrusted
from pretrain.view.color import Prepare

Precision = Literal["32-true", "bf16-mixed"]

_SHOWN = 10  # names in a line


@dataclass
class Finding:
    """What a step came to: the mean loss, the norm of all gradients, the names of parameters whose gradients are not
    finite, the name of the first module whose output is not, "" if all are, and the micro-batches with such a loss."""

    loss: float
    grad_norm: float
    gradients: list[str]
    module: str
    micro_batches: list[int]

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Replay:
    """The step of an incident, ready to be made again.

    Args:
        path: of the incident's folder.
        train: where the run's shards are now, if elsewhere.
        index_dir: for their index, if another than the run's.
        skip: where the run's skip lists are now, if elsewhere.
        allow_pipe: whether `pipe:` patterns may start programs.
        precision: if another than the run's.
        device: by default the GPU if there is one.
        trust_checkpoint: whether to load weights that another user could have written (see `trust.py`).
        allow_targets: packages whose encoders and objectives may be built, if the run's are not of this one.

    Raises:
        UserError: the incident, its run or its shards are not what is needed.
    """

    def __init__(
        self,
        path: Path,
        train: Patterns | NamedPatterns | None = None,
        index_dir: str | None = None,
        skip: Patterns | None = None,
        allow_pipe: bool = False,
        precision: Precision | None = None,
        device: Literal["cpu", "cuda"] | None = None,
        trust_checkpoint: bool = False,
        allow_targets: Sequence[str] = (),
    ) -> None:
        self.incident = incident = Incident.read(path)
        self.device = default_device() if device is None else torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: torch finds no GPU here")
        self.precision = precision or incident.origin.precision
        if self.precision not in get_args(Precision):
            raise UserError(
                f"incident={path}: its precision `{self.precision}` is not one of {', '.join(get_args(Precision))}"
            )
        run = path.resolve().parents[1]
        identity = _identity(run, incident, path)
        plain, self.objective = configured(run, f"incident={path}", allow_targets)
        weights = run / "incidents" / incident.weights
        refuse_untrusted(weights.parent, trust_checkpoint, above=(run, run / "incidents"))
        _load_weights(self.objective, weights)
        data = plain["data"]
        training = open_training(
            patterns := train or _recorded_patterns(data["train"]),
            data.get("sources"),
            index_dir or data["index_dir"],
            allow_pipe,
            prefix="",
            access=access_of(None, data.get("cache_dir"), data.get("cache_size", 0)),
            skip=(lists := skip or data.get("skip")),
        )
        self.index = training.index
        if self.index.digest != identity["digest"]:
            without = f", less what `{lists}` leaves out," if lists else ""
            advice = "train=… and skip=…" if lists else "train=…"
            raise UserError(
                f"`{patterns}`{without} are other shards than those of the run: name where they are now by {advice}"
            )
        self.order = training.order(incident.origin.seed, Shuffle(**identity["shuffle"]))
        self.scaled: bool = identity["scaled_decode"]

    def make(self) -> Finding:
        """Forward and backward as in the run, micro-batch by micro-batch."""
        objective, prepare = self.objective.to(self.device).train(), Prepare(self.objective.views).to(self.device)
        total, wrong, first = torch.zeros((), device=self.device), [], ""
        for number, g in enumerate(tqdm(self.incident.g, desc="micro-batches", delay=2)):
            batch = prepare(self._batch(g).to(self.device))
            with _first_not_finite(objective) as modules, self._autocast():
                loss = objective(batch, self.incident.progress).loss
            (loss / len(self.incident.g)).backward()
            total = total + loss.detach() / len(self.incident.g)
            wrong += [] if loss.isfinite() else [number]
            first = first or ("" if _is_finite(batch.views) else "the prepared images") or next(iter(modules), "")
        named = {name: one.grad for name, one in objective.named_parameters() if one.grad is not None}
        norms = gradient_norms(list(named.values()))
        gradients = [name for name, good in zip(named, norms.isfinite().tolist(), strict=True) if not good]
        return Finding(total.item(), total_norm(norms).item(), gradients, first, wrong)

    @torch.no_grad()
    def suspects(self, micro_batches: Sequence[int]) -> tuple[list[str], int]:
        """(samples of micro-batches that have a loss which is not finite even when alone, how many were tried)."""
        prepare = Prepare(self.objective.views).to(self.device)
        numbers = [g for number in micro_batches for g in self.incident.g[number]]
        found = []
        for g in tqdm(numbers, desc="samples", delay=2):
            batch = prepare(self._batch([g]).to(self.device))
            with self._autocast():
                loss = self.objective(batch, self.incident.progress).loss
            if not loss.isfinite():
                found.append(f"g={g} `{batch.keys[0]}`")
        return found, len(numbers)

    def _batch(self, g: Sequence[int]) -> Batch:
        """The samples of these numbers, which are evenly spaced, as the run's readers yield them."""
        step = g[1] - g[0] if len(g) > 1 else 1
        if step < 1 or list(range(g[0], g[-1] + 1, step)) != list(g):
            raise UserError("the incident.json is not what a run wrote: the numbers `g` are not evenly spaced")
        numbers = Numbers(g[0], step, len(g), g[-1] + 1)
        stream = BatchStream(self.index, self.order, numbers, self.objective.views, scaled=self.scaled)
        return next(iter(Loader(stream, max_bad_fraction=1.0)))

    def _autocast(self) -> torch.autocast:
        half = self.precision == "bf16-mixed"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half, cache_enabled=False)


def report(replay: Replay) -> bool:
    """Makes the step again and prints what is found; returns whether it is not finite again."""
    incident, origin = replay.incident, replay.incident.origin
    here = f"precision {replay.precision} on {replay.device.type}"
    print(f"step {incident.step} again: {len(incident.g)} × {len(incident.g[0])} samples, {here}")
    weights = [name for name, value in replay.objective.state_dict().items() if not _is_finite(value)]
    print(f"weights that are not finite: {_listed(weights)}")
    finding = replay.make()
    print(f"loss {finding.loss} (in the run {incident.loss})")
    print(f"gradient norm {finding.grad_norm} (in the run {incident.grad_norm})")
    print(f"gradients that are not finite: {_listed(finding.gradients)}")
    suspects, tried = replay.suspects(finding.micro_batches)
    share = f" ({len(suspects)} of {tried})" if tried else ""
    print(f"samples whose loss alone is not finite: {_listed(suspects)}{share}")
    print(f"first module whose output is not finite: {finding.module or 'none'}")
    if finding.finite:
        there = f"precision {origin.precision} on {origin.device}"
        print(f"not reproduced: loss and gradients are finite here ({here}; the run had {there})")
    else:
        print(f"reproduced: the loss is {finding.loss}, the gradient norm {finding.grad_norm}")
    return not finding.finite


def _recorded_patterns(train: Patterns | NamedPatterns) -> Patterns | NamedPatterns:
    """The shards as a run wrote them down, if it could do so without a secret."""
    if re.search(rf"://{secret.HIDDEN}@|[?#]{secret.HIDDEN}\b", str(train)):
        raise UserError(f"the run's record leaves out the passwords of its shards (`{train}`): name them by train=…")
    return train


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}" if names else "none"


def _identity(run: Path, incident: Incident, path: Path) -> dict[str, Any]:
    """What decides which sample is number g, as the run's folder has it."""
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        if record["run_id"] != incident.origin.run_id:
            raise UserError(f"incident={path}: it is of run {incident.origin.run_id}, but {run} is {record['run_id']}")
        if not (run / "config.yaml").is_file():
            raise UserError(f"incident={path}: its run's config.yaml is not in {run}")
        data: dict[str, Any] = {name: record["identity"]["data"][name] for name in ("digest", "shuffle")}
        data["scaled_decode"] = record["identity"]["data"].get("scaled_decode", False)
    except OSError:
        raise UserError(f"incident={path}: {run}, two folders above it, is no run's folder: leave it there") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"{run / 'run.json'} cannot be read: it is not what a run wrote") from None
    return data


def _load_weights(objective: Objective, path: Path) -> None:
    """Puts an incident's weights in place. Nothing in the file is executed."""
    try:
        objective.load_state_dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except FileNotFoundError:
        raise UserError(f"the weights of this incident were in {path}, which is no longer there") from None
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, pickle.UnpicklingError) as failure:
        raise UserError(f"{path} does not hold the weights of this run: {str(failure).splitlines()[0]}") from None


@contextmanager
def _first_not_finite(root: nn.Module) -> Iterator[list[str]]:
    """The name of the first module whose output is not finite, in an empty list at first; inner ones end first."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not _is_finite(output):
                found.append(f"{name} ({type(module).__name__})" if name else type(module).__name__)

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in root.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.values())
    return all(map(_is_finite, value)) if isinstance(value, list | tuple) else True

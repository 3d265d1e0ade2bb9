"""What a run leaves of a step that it skipped, since loss or gradients were not finite: enough to make it again.

`incidents/step_00000007/` holds `incident.json` and `state.pt`, all of the objective's weights. A skipped step leaves
the weights as they were before it, so they can still be saved when the host learns of it, one step later; and those
of steps skipped in a row are the same, so the first of them has the only copy.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.files import replace_folder
from pretrain.records import Progress, UserError
from pretrain.trainer import checkpoint
from pretrain.trainer.team import ALONE, Team

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """What all incidents of a run share."""

    run_id: str
    seed: int
    precision: str
    device: str
    micro_batch: int


@dataclass(frozen=True)
class Incident:
    """The content of an `incident.json`.

    `step` is the number that the step has in the metrics, and `progress` where the schedule stood. `loss` and
    `grad_norm` are in words, since JSON has no nan. `gradients` names the parameters whose gradients were not finite.
    `weights` is the file with the objective's weights before the step, from the folder of incidents on. `g` numbers
    the samples of each micro-batch.
    """

    origin: Origin
    step: int
    progress: Progress
    loss: str
    grad_norm: str
    gradients: list[str]
    weights: str
    g: list[list[int]]

    @staticmethod
    def read(path: Path) -> Incident:
        """The incident in a folder.

        Raises:
            UserError: there is none, or it is not what a run wrote.
        """
        try:
            content = json.loads((path / "incident.json").read_text(encoding="utf-8"))
        except OSError as failure:
            raise UserError(
                f"incident={path}: there is no incident.json to read ({failure.strerror}); name a folder "
                "RUN/incidents/step_…"
            ) from None
        except ValueError:
            content = None
        try:
            content |= {"origin": Origin(**content["origin"]), "progress": Progress(**content["progress"])}
            found = Incident(**content)
            good = re.fullmatch(r"step_\d{8,}/state\.pt", found.weights) and found.g and all(found.g)
            good = good and all(type(number) is int and number >= 0 for numbers in found.g for number in numbers)
            good = good and all(
                type(getattr(record, field.name)).__name__ == field.type
                for record in (found.origin, found.progress)
                for field in fields(record)
            )
        except (TypeError, KeyError):
            good = None
        if not good:
            raise UserError(f"incident={path}: its incident.json is not what a run wrote")
        return found


@dataclass
class Outcome:
    """A step that was queued on the device; what it came to is known there alone.

    `skipped`, `loss` and `grad_norm` are scalars, `norms` [P] those of the gradients of the P parameters `names`;
    `g` are the numbers of the samples, a tensor a micro-batch.
    """

    step: int
    progress: Progress
    skipped: Tensor
    loss: Tensor
    grad_norm: Tensor
    names: list[str]
    norms: Tensor
    g: list[Tensor]


class Incidents:
    """Finds out, without making the device wait, which steps were skipped; records them, and stops a run of them.

    Args:
        folder: where they go; made when there is one.
        origin: what they share.
        state: the objective's weights, whole.
        team: the ranks of the run; the first of them writes, what all had.
        max_in_a_row: so many skipped steps, one after the other, stop the run.
        max_folders: how many the folder may hold; what comes later is a line in the log.
    """

    def __init__(
        self,
        folder: Path,
        origin: Origin,
        state: Callable[[], dict[str, Any]],
        max_in_a_row: int = 3,
        max_folders: int = 10,
        team: Team = ALONE,
    ) -> None:
        self.team = team
        self.folder = folder
        self.origin = origin
        self.state = state
        self.max_in_a_row = max_in_a_row
        self.max_folders = max_folders
        self._pending: tuple[Outcome, _Flag] | None = None
        self._in_a_row = 0
        self._weights = ""  # the file with those of the present row of skipped steps
        self._shown: Path | None = None  # the last folder that was written

    def note(self, outcome: Outcome) -> None:
        """A step was queued. The last one must be settled."""
        assert self._pending is None
        self._pending = (outcome, _Flag(outcome.skipped))

    def settle(self) -> None:
        """Looks whether the last step was skipped.

        Call it when the next step's forward and backward are queued and its optimizer's step is not: the device has
        work while the host waits for the flag, and the weights are still those that the last step left.

        Raises:
            UserError: too many steps in a row were skipped.
        """
        if self._pending is None:
            return
        (outcome, flag), self._pending = self._pending, None
        if not flag.read():
            self._in_a_row, self._weights = 0, ""
            return
        self._in_a_row += 1
        self._record(outcome)
        if self._in_a_row >= self.max_in_a_row:
            raise UserError(
                f"step {outcome.step}: {self._in_a_row} steps in a row were skipped, since the loss or the gradients "
                f"were not finite (max_skipped_steps={self.max_in_a_row}). The run stops; its checkpoints are as they "
                "were. A lower base_lr, a longer warm-up or trainer.precision=32-true are the usual cures"
                + (f". To see where it begins: {_command(self._shown)}" if self._shown else "")
            )

    def _record(self, outcome: Outcome) -> None:
        folder = self.folder / f"step_{outcome.step:08d}"
        loss, norm = (str(value.item()) for value in (outcome.loss, outcome.grad_norm))
        said = f"step {outcome.step} is skipped: its loss is {loss}, the norm of its gradients {norm}"
        full = not folder.exists() and len(list(self.folder.glob("step_*"))) >= self.max_folders
        if self.team.first(lambda: full):
            if self.team.leads:
                log.warning("%s. %s is full, no more is recorded", said, self.folder)
            return
        wrong = (~outcome.norms.isfinite()).tolist()
        incident = Incident(
            origin=self.origin,
            step=outcome.step,
            progress=outcome.progress,
            loss=loss,
            grad_norm=norm,
            gradients=[name for name, one in zip(outcome.names, wrong, strict=True) if one],
            weights=self._weights or f"{folder.name}/state.pt",
            g=[numbers for one in self.team.gather([numbers.tolist() for numbers in outcome.g]) for numbers in one],
        )
        state = None if self._weights else self.state()
        if self.team.leads:
            self._write(folder, incident, state, said)
        self._weights = self.team.first(lambda: self._weights)

    def _write(self, folder: Path, incident: Incident, state: dict[str, Any] | None, said: str) -> None:
        try:
            replace_folder(folder, lambda partial: _fill(partial, incident, state))
        except OSError as failure:
            log.error("%s. It cannot be recorded: %s. Training goes on", said, failure)
        else:
            self._weights, self._shown = incident.weights, folder
            log.warning("%s. What it takes to make it again is in %s", said, folder)


def _fill(partial: Path, incident: Incident, state: dict[str, Any] | None) -> None:
    if state is not None:
        checkpoint.write(partial / "state.pt", state)
    (partial / "incident.json").write_text(json.dumps(asdict(incident), indent=1), encoding="utf-8")


def _command(folder: Path) -> str:
    return f"pretrain replay {shlex.quote(f'incident={folder}')}"


class _Flag:
    """A bool on its way from the device to the host."""

    def __init__(self, value: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._value = value
        if value.is_cuda:
            self._value = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._event = torch.cuda.Event(blocking=True)
            self._event.record()

    def read(self) -> bool:
        """Waits until it is here."""
        if self._event is not None:
            self._event.synchronize()
        return bool(self._value.item())

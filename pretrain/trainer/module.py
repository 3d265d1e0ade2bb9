"""The LightningModule: what happens in a step. It knows no objective by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from pretrain.objective.objective import Objective
from pretrain.optim.clip import ClipBy, clip_gradients, gradient_norms, total_norm
from pretrain.optim.groups import decay_groups
from pretrain.optim.skip import step_unless
from pretrain.records import Batch, Progress, StepOutput
from pretrain.trainer.clock import Clock
from pretrain.trainer.incident import Incidents, Outcome
from pretrain.trainer.pieces import Pieces, like
from pretrain.trainer.shard import local, sum_over_parts, wait_for_last

Schedule = Callable[[Progress], float]


class PretrainModule(LightningModule):
    """Forward, backward, schedule, clip, step, `after_step`, count.

    Where the loss or a gradient is not finite, the step leaves everything but the counters as it was. That is decided
    on the device; the host learns of it a step later, from `incidents`. Where there are several ranks, the loss and the
    metrics are the means over all of them, and so all skip, or none.

    Args:
        objective: what is trained.
        prepare: turns the loader's uint8 views into what the objective is given, on the device.
        clock: counts, and knows the position in the schedule.
        optimizer: makes the optimizer, given parameter groups.
        schedules: for keys of the parameter groups (`lr`, `weight_decay`). Groups exempt from decay stay exempt.
        accumulation: micro-batches of a step.
        incidents: told of every step.
        clip_grad_norm: greatest norm of the gradients; None leaves them alone.
        clip_grad_by: whose norm: of all gradients together, or of each parameter's by itself.
        optimizer_state: of a checkpoint to go on from, with `Pieces` for what is sharded there.
        ranks: of the run; with several, losses are averaged over them.
        dtype: of images, as the weights have it.
    """

    def __init__(
        self,
        objective: Objective,
        prepare: Callable[[Batch], Batch],
        clock: Clock,
        optimizer: partial[Optimizer],
        schedules: dict[str, Schedule],
        accumulation: int,
        incidents: Incidents,
        clip_grad_norm: float | None = None,
        clip_grad_by: ClipBy = "global",
        optimizer_state: dict[str, Any] | None = None,
        ranks: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.prepare = prepare
        self.clock = clock
        self.schedules = schedules
        self.accumulation = accumulation
        self.incidents = incidents
        self.clip_grad_norm = clip_grad_norm
        self.clip_grad_by: ClipBy = clip_grad_by
        self._make_optimizer = optimizer
        self._optimizer_state = optimizer_state
        self.ranks = ranks
        self.image_dtype = dtype
        self._sums: dict[str, Tensor] = {}  # of the metrics, over the step's micro-batches
        self._numbers: list[Tensor] = []  # of the samples of each
        self._skipped_steps: Tensor | int = 0  # in this process, counted on the device

    def configure_model(self) -> None:
        """Nothing: the objective comes as it is to be, sharded if that was asked for."""

    def configure_optimizers(self) -> Optimizer:
        optimizer = self._make_optimizer(decay_groups(self.objective, self.objective.no_decay()))
        if self._optimizer_state is not None:
            asked = self._make_optimizer.keywords  # the configuration's, which may have changed since
            groups = [{name: group[name] for name in asked if name in group} for group in optimizer.param_groups]
            optimizer.load_state_dict(_placed(self._optimizer_state, optimizer))
            for group, own in zip(optimizer.param_groups, groups, strict=True):
                group |= own
            self._optimizer_state = None
        return optimizer

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return self.prepared(batch)

    def prepared(self, batch: Batch) -> Batch:
        """What the objective is given, of a batch on the device."""
        batch = self.prepare(batch)
        if self.image_dtype == torch.float32:
            return batch
        return replace(batch, views=tuple(view.to(self.image_dtype) for view in batch.views))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        wait_for_last(self.objective, (batch_idx + 1) % self.accumulation == 0)
        output = self.objective(batch, self.clock.progress)
        for name, value in {"loss": output.loss, **output.metrics}.items():
            mean = value.detach() / self.accumulation
            self._sums[name] = self._sums[name] + mean if name in self._sums else mean
        self._numbers.append(batch.g)
        return output.loss

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        assert optimizer_closure is not None
        progress, values = self.clock.progress, self._follow_schedules(optimizer)
        optimizer_closure()  # forward and backward of the last micro-batch
        names, norms = self._clip()
        norm = total_norm(norms)
        sound = self._average(norm)
        loss = self._sums["loss"]
        skipped = ~(loss.isfinite() & sound.isfinite())
        self.incidents.settle()  # of the step before: the device has work, and the weights are as that step left them
        step_unless(skipped, optimizer.optimizer, optimizer.step)
        self.objective.after_step(progress, skipped)
        self._skipped_steps = self._skipped_steps + skipped
        self.incidents.note(
            Outcome(self.clock.state.step + 1, progress, skipped, loss, norm, names, norms, self._numbers)
        )
        counted: dict[str, Tensor | float] = {"grad_norm": norm, "skipped_steps": self._skipped_steps}
        if self.clock.state.failed_saves:
            counted["failed_saves"] = self.clock.state.failed_saves
        self.clock.state.metrics = {**self._sums, **counted, **values}
        self._sums, self._numbers = {}, []
        self.clock.advance()

    def _follow_schedules(self, optimizer: Any) -> dict[str, float]:
        """Puts what the schedules say of this step into the optimizer."""
        values = {name: schedule(self.clock.progress) for name, schedule in self.schedules.items()}
        for group in optimizer.param_groups:
            skip = {"weight_decay"} if group["exempt"] else set()
            group.update({name: value for name, value in values.items() if name not in skip})
        return values

    def _clip(self) -> tuple[list[str], Tensor]:
        """Clips the gradients; returns the names of the P parameters that have one, and their norms [P] before."""
        named = {name: one.grad for name, one in self.objective.named_parameters() if one.grad is not None}
        gradients = [local(one) for one in named.values()]
        norms = gradient_norms(gradients)
        if self.ranks > 1:
            norms = sum_over_parts(norms.square(), named.values()).sqrt()
        if self.clip_grad_norm is not None:
            clip_gradients(gradients, norms, self.clip_grad_norm, self.clip_grad_by)
        return list(named), norms

    def _average(self, norm: Tensor) -> Tensor:
        """Makes the means over this rank's micro-batches those over all ranks'; returns the mean of their norms, which
        is not finite if that of one rank is not."""
        if self.ranks == 1:
            return norm
        values = torch.stack([*self._sums.values(), norm])
        dist.all_reduce(values)
        *means, sound = (values / self.ranks).unbind()
        self._sums = dict(zip(self._sums, means, strict=True))
        return sound

    def loss(self, batch: Batch) -> StepOutput:
        """The objective on a prepared batch, as it is evaluated: without gradients, in the run's precision."""
        with self.evaluation():
            return self.objective(batch, self.clock.progress)

    def illustrate(self, batch: Batch) -> dict[str, Tensor]:
        """The objective's pictures of a prepared batch."""
        with self.evaluation():
            return self.objective.illustrate(batch)

    def health(self, batch: Batch) -> dict[str, Tensor]:
        """The objective's signs of health on a prepared batch."""
        with self.evaluation():
            return self.objective.health(batch, self.clock.progress)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Evaluation mode, without gradients, in the run's precision."""
        self.objective.eval()
        try:
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                yield
        finally:
            self.objective.train()

    def snapshot(self) -> dict[str, Any]:
        """All that a checkpoint holds: weights, optimizer, counters.

        Raises:
            UserError: this step is one too many, in a row, that were skipped.
        """
        self.incidents.settle()
        state = self.clock.state
        self.clock.read()  # evaluation and pictures of this step are training time too
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.trainer.optimizers[0].state_dict(),
            "step": state.step,
            "samples_seen": state.samples_seen,
            "seconds": state.seconds,
            "spent": dict(state.spent),
        }


def _placed(saved: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state as this rank keeps it: what has a parameter's shape is sharded as the parameter is."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]

    def place(value: Any, parameter: Tensor) -> Any:
        if isinstance(value, Pieces):
            return like(value, parameter)
        return like(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value

    state = {
        number: {name: place(value, parameters[number]) for name, value in one.items()}
        for number, one in saved["state"].items()
    }
    return {"state": state, "param_groups": saved["param_groups"]}

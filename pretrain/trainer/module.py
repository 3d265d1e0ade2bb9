"""The LightningModule: what happens in a step. It knows no objective by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from pretrain.objective.objective import Objective
from pretrain.optim.groups import decay_groups
from pretrain.records import Batch, Progress, StepOutput
from pretrain.trainer.clock import Clock

Schedule = Callable[[Progress], float]


class PretrainModule(LightningModule):
    """Forward, backward, schedule, clip, step, `after_step`, count.

    Args:
        objective: what is trained.
        prepare: turns the loader's uint8 views into what the objective is given, on the device.
        clock: counts, and knows the position in the schedule.
        optimizer: makes the optimizer, given parameter groups.
        schedules: for keys of the parameter groups (`lr`, `weight_decay`). Groups exempt from decay stay exempt.
        accumulation: micro-batches of a step.
        clip_grad_norm: greatest norm of all gradients together; None leaves them alone.
        optimizer_state: of a checkpoint to go on from.
    """

    def __init__(
        self,
        objective: Objective,
        prepare: Callable[[Batch], Batch],
        clock: Clock,
        optimizer: Callable[..., Optimizer],
        schedules: dict[str, Schedule],
        accumulation: int,
        clip_grad_norm: float | None = None,
        optimizer_state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.prepare = prepare
        self.clock = clock
        self.schedules = schedules
        self.accumulation = accumulation
        self.clip_grad_norm = clip_grad_norm
        self._make_optimizer = optimizer
        self._optimizer_state = optimizer_state
        self._sums: dict[str, Tensor] = {}  # of the metrics, over the step's micro-batches

    def configure_optimizers(self) -> Optimizer:
        optimizer = self._make_optimizer(decay_groups(self.objective, self.objective.no_decay()))
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
            self._optimizer_state = None
        return optimizer

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return self.prepare(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        output = self.objective(batch, self.clock.progress)
        for name, value in {"loss": output.loss, **output.metrics}.items():
            mean = value.detach() / self.accumulation
            self._sums[name] = self._sums[name] + mean if name in self._sums else mean
        return output.loss

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        parameters = [parameter for parameter in self.objective.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if self.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_grad_norm, norm)
        self._sums["grad_norm"] = norm

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        progress = self.clock.progress
        values = {name: schedule(progress) for name, schedule in self.schedules.items()}
        for group in optimizer.param_groups:
            skip = {"weight_decay"} if group["exempt"] else set()
            group.update({name: value for name, value in values.items() if name not in skip})
        optimizer.step(closure=optimizer_closure)
        self.objective.after_step(progress)
        self.clock.state.metrics = {**self._sums, **values}
        self._sums = {}
        self.clock.advance()

    def loss(self, batch: Batch) -> StepOutput:
        """The objective on a prepared batch, as it is evaluated: without gradients, in the run's precision."""
        with self._evaluation():
            return self.objective(batch, self.clock.progress)

    def illustrate(self, batch: Batch) -> dict[str, Tensor]:
        """The objective's pictures of a prepared batch."""
        with self._evaluation():
            return self.objective.illustrate(batch)

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        self.objective.eval()
        try:
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                yield
        finally:
            self.objective.train()

    def snapshot(self) -> dict[str, Any]:
        """All that a checkpoint holds: weights, optimizer, counters."""
        state = self.clock.state
        self.clock.read()  # evaluation and pictures of this step are training time too
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.trainer.optimizers[0].state_dict(),
            "step": state.step,
            "samples_seen": state.samples_seen,
            "seconds": state.seconds,
        }

"""How fast the run is: images a second, the share of time that it waited for data, peak memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator

import torch

from pretrain.callbacks.step import Context, StepCallback
from pretrain.records import Problem, refuse
from pretrain.trainer.events import AtFirstBatch


class Throughput(StepCallback, AtFirstBatch):
    """Adds `images_per_second`, `data_wait` and `peak_memory_gb` to the metrics of every n-th step and of the last.

    Both rates are over the time since the last such step, without evaluation, pictures and saving. The memory is the
    device's on a GPU, the training process's on a CPU, in 10⁹ bytes.

    Args:
        context: of the run.
        every_steps: how often.
    """

    def __init__(self, context: Context, every_steps: int = 20) -> None:
        refuse(self, self.problems(every_steps))
        self.context = context
        self.every_steps = every_steps

    @staticmethod
    def problems(every_steps: int, **_: object) -> Iterator[Problem]:
        if every_steps < 1:
            yield "every_steps", "must be at least 1"

    def on_first_batch(self) -> None:
        self._mark()

    def after_step(self) -> None:
        state = self.context.state
        if state.step % self.every_steps and not state.stopping:
            return
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # steps are queued: this one is not yet done
        samples, elapsed = state.samples_seen - self._samples, time.perf_counter() - self._time
        elapsed -= state.aside - self._aside
        waited = (state.waited_most - self._waited) / elapsed
        state.measure("speed", images_per_second=samples / elapsed, data_wait=waited, peak_memory_gb=peak_memory_gb())
        self._mark()

    def _mark(self) -> None:
        state = self.context.state
        self._samples, self._aside, self._waited = state.samples_seen, state.aside, state.waited_most
        self._time = time.perf_counter()


def peak_memory_gb() -> float:
    """Of the GPU if one is in use, else of this process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

"""Data parallelism by torch's DistributedDataParallel (Li et al., arXiv 2006.15704), with sums that restarts repeat."""

# Annotations are no strings here: DDP looks at those of its hook.

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor


class RepeatableDDP(DDPStrategy):
    """Lightning's, in which every gradient is summed by itself; for CPUs.

    DDP sums buckets of gradients, and lays them out anew after the first step of every process. A sum of three ranks or
    more depends on its place in a bucket: the first step after a restart would have other bits than without one.
    """

    def configure_ddp(self) -> None:
        super().configure_ddp()
        model: Any = self.model
        model.register_comm_hook(None, _each_by_itself)


def _each_by_itself(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The mean over ranks of a bucket's gradients, in place."""
    buffer = bucket.buffer().div_(dist.get_world_size())
    sums = [dist.all_reduce(gradient, async_op=True).get_future() for gradient in bucket.gradients()]  # type: ignore[union-attr]

    def summed(done: Any) -> Tensor:
        for one in done.wait():
            one.wait()  # raises what it failed of
        return buffer

    return torch.futures.collect_all(sums).then(summed)

"""A step of one rank of many, on a machine without any of them: what it holds, and the collectives it takes part in.

torch's fake process group answers every message at once, and its fake tensors have shapes but no numbers, so that no
memory is needed and nothing is computed. What runs is the trainer's own sharding and torch's own FSDP and DDP.
"""

# annotations are no strings here: DDP looks at those of its hook
import contextlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.launch.world import World
from pretrain.objective.objective import Objective
from pretrain.records import Batch
from pretrain.scaling.profile import MIDWAY
from pretrain.scaling.traffic import Collective, Held, Kind, Spread
from pretrain.trainer.shard import checkpoint_activations, local, mesh_of, shard, wait_for_last

# torch's messages: what they do, and where their arguments hold the whole and the process group
_MESSAGES: dict[str, tuple[Kind, int, int]] = {
    "c10d::_allgather_base_": ("all_gather", 0, 2),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 1, 2),
    "c10d::allreduce_": ("all_reduce", 0, 1),
}


@dataclass(frozen=True)
class Rehearsal:
    """What the first rank took part in during a step, in order, and what it held after it."""

    collectives: tuple[Collective, ...]
    held: Held


def rehearse(
    objective: Objective, spread: Spread, micro_batch: int, accumulation: int, again: bool = False
) -> Rehearsal:
    """Spreads an objective and makes an optimizer step as rank 0 of it.

    Args:
        objective: without weights; it is of no use afterwards.
        spread: over two ranks at least.
        micro_batch, accumulation: samples at a time, and how often.
        again: whether units run again in the backward pass.
    """
    if again:
        checkpoint_activations(objective.fsdp_units())
    heard = _Listener(spread.devices)
    with _fake_ranks(spread.ranks), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        network = _spread(objective, spread, fake)
        batch = _batch(objective, micro_batch)
        mixed = _dtype(spread) != torch.float32
        for number in range(accumulation):
            last = number == accumulation - 1
            with heard, _summing(network, last):
                with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                    loss = network(batch, MIDWAY).loss
                loss.backward()
        optimizer = torch.optim.AdamW([one for one in objective.parameters() if one.requires_grad])
        optimizer.step()
        held = _held(objective, optimizer)
    return Rehearsal(tuple(heard.collectives), held)


@contextlib.contextmanager
def _fake_ranks(count: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _dtype(spread: Spread) -> torch.dtype:
    """Of the matrix products."""
    return torch.bfloat16 if spread.gathered < spread.stored else torch.float32


def _spread(objective: Objective, spread: Spread, fake: FakeTensorMode) -> nn.Module:
    """The objective over fake ranks, with fake weights."""
    if spread.layout != "ddp":
        with _without(fake):
            mesh = mesh_of(World(0, spread.ranks, 0, spread.devices), spread.layout, "cpu", timeout_minutes=1)
            shard(objective, mesh, _dtype(spread))
    objective.to_empty(device="cpu").train()
    if spread.layout != "ddp":
        return objective
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the argument is about to have another name
        network = DistributedDataParallel(objective, broadcast_buffers=False, init_sync=False)
    network.register_comm_hook(None, _sum)
    return network


@contextlib.contextmanager
def _without(fake: FakeTensorMode) -> Iterator[None]:
    fake.__exit__(None, None, None)
    try:
        yield
    finally:
        fake.__enter__()


def _sum(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """What DDP does with gradients by default; its own way does not know the fake process group's answer."""
    gradients = bucket.buffer()
    dist.all_reduce(gradients)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(gradients)
    return done


def _summing(network: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Gradients are summed over nodes, or by DDP at all, after the last micro-batch alone."""
    wait_for_last(network, last)
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()  # type: ignore[no-any-return]
    return contextlib.nullcontext()


def _batch(objective: Objective, size: int) -> Batch:
    views = tuple(torch.empty(view.count, size, len(view.mean), *view.height_width) for view in objective.views)
    numbers = torch.zeros(size, dtype=torch.int64)
    return Batch(views, numbers, numbers, [""] * size, 0)


def _held(objective: Objective, optimizer: torch.optim.Optimizer) -> Held:
    parameters = list(objective.parameters())
    gradients = [one.grad for one in parameters if one.grad is not None]
    states = [one for state in optimizer.state.values() for one in state.values()]
    return Held(
        _bytes(parameters), _bytes(gradients), _bytes(one for one in states if one.ndim)
    )  # not the step's number


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of what this rank has of tensors."""
    return sum(part.numel() * part.element_size() for part in map(local, tensors))


class _Listener(TorchDispatchMode):
    """Writes down every collective that torch is asked for while it is open."""

    def __init__(self, devices: int) -> None:
        super().__init__()
        self.devices = devices
        self.collectives: list[Collective] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace in ("c10d", "_c10d_functional"):
            kind, whole, group = _MESSAGES[function.name().partition(".")[0]]
            tensors = args[whole] if isinstance(args[whole], list) else [args[whole]]
            ranks = dist.get_process_group_ranks(dist.ProcessGroup.unbox(args[group]))
            nodes = {rank // self.devices for rank in ranks}
            self.collectives.append(Collective(kind, _bytes(tensors), len(nodes), len(ranks) // len(nodes)))
        return function(*args, **(kwargs or {}))

"""Fully sharded data parallelism by torch's `fully_shard` (Zhao et al., "PyTorch FSDP", arXiv 2304.11277; Rajbhandari
et al., "ZeRO", arXiv 1910.02054): a rank keeps a part of every parameter, of its gradient and of the optimizer's state.

A unit is gathered before it runs and let go after; units are the blocks, the encoders around them, and what is left,
the objective itself. In a hybrid mesh (replicate, shard) the ranks of a machine share the parts, and machines hold
copies of one another: then only gradients travel between machines.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.launch.world import World
from pretrain.objective.objective import Objective

if TYPE_CHECKING:  # torch's own are imported where they are used: that takes half a second, and a plan needs none
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

Sharding = Literal["hybrid", "full"]

# Tokens are views of one tensor. Nothing of ours changes them in place, which is what this warns of.
warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)


def mesh_of(world: World, sharding: Sharding, device_type: str, timeout_minutes: float) -> DeviceMesh:
    """The ranks as a mesh: `shard` alone, or (`replicate`, `shard`) of machines and their ranks. They wait for each
    other so long.
    """
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

    if sharding == "full" or world.nodes == 1 or world.local_size == 1:
        return init_device_mesh(device_type, (world.size,), mesh_dim_names=("shard",))  # the group of all
    ranks = torch.arange(world.size).view(world.nodes, world.local_size)
    patience = timedelta(minutes=timeout_minutes)
    groups: list[Any] = [
        dist.new_subgroups_by_enumeration(part.tolist(), timeout=patience)[0] for part in (ranks.T, ranks)
    ]
    return DeviceMesh.from_group(groups, device_type, mesh=ranks, mesh_dim_names=("replicate", "shard"))


def shard(objective: Objective, mesh: DeviceMesh, gathered: torch.dtype | None) -> None:
    """Shards an objective, which may be on the meta device: its units, its encoders, and itself.

    Args:
        objective: without weights, or with them.
        mesh: of `mesh_of`.
        gathered: the type in which the units' weights travel before they run, None as they are. Gradients are summed in
            the weights' own type. What lies outside the units (embeddings, tables, last norms, prototypes) travels as
            it is.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    for unit in objective.fsdp_units():
        own = next(unit.parameters()).dtype
        policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=own, cast_forward_inputs=False)
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    encoders = {id(one): one for one in (objective.trained_encoder, objective.encoder_for_export)}
    for module in (*encoders.values(), objective):
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    for method in ("illustrate", "health"):
        register_fsdp_forward_method(objective, method)


def checkpoint_activations(units: Iterable[nn.Module]) -> None:
    """Lets units keep their inputs alone for the backward pass, which runs them again (Chen et al., arXiv 1604.06174).

    Their random decisions are functions of the sample, so that nothing has to be remembered for them.
    """
    for unit in units:
        again = partial(checkpoint, unit.forward, use_reentrant=False, preserve_rng_state=False)
        unit.forward = again


def wait_for_last(objective: nn.Module, last: bool) -> None:
    """Copies on other machines are told of the gradients after the last micro-batch of a step, not after each."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(objective, FSDPModule):
        objective.set_requires_all_reduce(last)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: all of it, unless it is sharded."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; where it is sharded, every rank must ask for it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def rows_of(tensor: DTensor) -> range:
    """The rows of a sharded tensor that this rank holds, none where there are fewer than ranks."""
    from torch.distributed.tensor import Shard

    mesh, count = tensor.device_mesh, tensor.shape[0]
    parts = [place for place, kind in enumerate(tensor.placements) if isinstance(kind, Shard)]
    assert [tensor.placements[place] for place in parts] == [Shard(0)], tensor.placements
    size = -(-count // mesh.size(parts[0]))
    start = min(count, mesh.get_local_rank(parts[0]) * size)
    return range(start, min(count, start + size))


def writes(tensor: DTensor) -> bool:
    """Whether this rank is the one of all that hold the same part of a tensor that writes it down."""
    from torch.distributed.tensor import Shard

    mesh = tensor.device_mesh
    return all(
        isinstance(kind, Shard) or mesh.get_local_rank(place) == 0 for place, kind in enumerate(tensor.placements)
    )


def sum_over_parts(squares: Tensor, sharded: Iterable[Tensor]) -> Tensor:
    """Adds up, over the ranks that share parts, what each found of its own; as it is where nothing is sharded."""
    from torch.distributed.tensor import DTensor, Shard

    first = next((one for one in sharded if isinstance(one, DTensor)), None)
    if first is None:
        return squares
    place = next(place for place, kind in enumerate(first.placements) if isinstance(kind, Shard))
    dist.all_reduce(squares, group=first.device_mesh.get_group(place))
    return squares


def twin(encoder: nn.Module, other: nn.Module) -> None:
    """Shards a module without weights as another one that holds all of its parameters, by name."""
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    units = [one for one in other.modules() if isinstance(one, FSDPModule)]
    names = {id(one): name for name, one in other.named_modules()}
    mesh = next(other.parameters()).device_mesh  # type: ignore[attr-defined]
    known = dict(encoder.named_modules())
    for unit in reversed(units):  # parts before what they are parts of
        if names[id(unit)] in known:
            fully_shard(known[names[id(unit)]], mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))

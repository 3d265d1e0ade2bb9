"""Stand-in for the trainer's sharding."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from pretrain.objective.objective import Objective


def mesh_of(nodes: int, devices: int, sharding: str, device_type: str) -> DeviceMesh:
    if sharding == "hybrid" and nodes > 1 and devices > 1:
        return init_device_mesh(device_type, (nodes, devices), mesh_dim_names=("replicate", "shard"))
    return init_device_mesh(device_type, (nodes * devices,), mesh_dim_names=("shard",))


def shard(objective: Objective, mesh: DeviceMesh, gathered: torch.dtype) -> None:
    inside = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    outside = MixedPrecisionPolicy(cast_forward_inputs=False)
    for unit in objective.fsdp_units():
        fully_shard(unit, mesh=mesh, mp_policy=inside)
    encoders = {id(one): one for one in (objective.trained_encoder, objective.encoder_for_export)}
    for module in (*encoders.values(), objective):
        fully_shard(module, mesh=mesh, mp_policy=outside)

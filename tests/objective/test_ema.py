"""A teacher that follows, on one device and sharded over two, whatever the sizes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from pretrain.objective.ema import follow, teacher_of

NO, YES = torch.tensor(False), torch.tensor(True)


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3), nn.LayerNorm(3))
    teacher = teacher_of(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += torch.randn_like(parameter)
    return student, teacher


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.996, 1.0])
def test_it_follows(momentum: float) -> None:
    student, teacher = networks()
    before = [one.clone() for one in teacher.parameters()]
    follow(teacher, student, momentum, NO)
    for old, new, target in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * target, atol=1e-6, rtol=1e-5)
    moved = [one.clone() for one in teacher.parameters()]
    follow(teacher, student, momentum, YES)
    assert all(map(torch.equal, moved, teacher.parameters()))


def test_it_is_never_trained() -> None:
    student, teacher = networks()
    assert not any(one.requires_grad for one in teacher.parameters())
    assert not teacher.training
    assert not {one.data_ptr() for one in student.parameters()} & {one.data_ptr() for one in teacher.parameters()}


def _sharded(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    student, teacher = networks()
    for network in (student, teacher):
        fully_shard(network, mesh=mesh)
    for _ in range(3):
        follow(teacher, student, 0.9, NO)
    whole = {name: value.full_tensor() for name, value in teacher.state_dict().items()}
    if rank == 0:
        torch.save(whole, os.path.join(folder, "teacher.pt"))
    dist.barrier()
    dist.destroy_process_group()


def test_sharded_it_is_the_same(tmp_path: Path) -> None:
    """7 × 5 over two devices: shards are uneven, and each device moves its own part. Bits are equal."""
    mp.spawn(_sharded, args=(str(tmp_path),), nprocs=2)
    student, teacher = networks()
    for _ in range(3):
        follow(teacher, student, 0.9, NO)
    sharded = torch.load(tmp_path / "teacher.pt", weights_only=True)
    assert sharded.keys() == teacher.state_dict().keys()
    assert all(torch.equal(sharded[name], value) for name, value in teacher.state_dict().items())

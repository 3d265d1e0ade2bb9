"""The hardware of a run: which precision it picks, and what it says where there is none."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from pretrain.config.check import check
from pretrain.config.overrides import composed
from pretrain.launch.world import World
from pretrain.trainer import ddp
from pretrain.trainer.parallel import Hardware, resolve_precision
from pretrain.trainer.shard import mesh_of
from pretrain.trainer.strategy import strategy_of, trainer_arguments


def test_no_gpu_is_one_sentence_that_names_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lines = [line for line in check(composed(["trainer=gpu"])) if line.startswith("trainer")]
    assert lines == [
        "trainer.accelerator=null: needs a GPU, and torch finds none here: train on the CPU with trainer=cpu"
    ]
    assert not list(Hardware.problems("one", "cpu", "cpu", None, None, 30.0))


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("avx", [False, True])
def test_a_cpu_takes_bf16_only_where_it_has_the_instructions(
    monkeypatch: pytest.MonkeyPatch, avx: bool, amx: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve_precision("cpu") == ("bf16-mixed" if avx or amx else "32-true")


@pytest.mark.parametrize("native", [False, True])
def test_a_gpu_takes_bf16_where_it_is_not_emulated(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or native)
    assert resolve_precision("gpu") == ("bf16-mixed" if native else "32-true")


def test_who_only_starts_the_ranks_asks_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask would make a place for it in the memory of the first one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: pytest.fail("asked"))
    assert Hardware("fsdp").to_start == 4


def test_ranks_wait_for_each_other_in_all_groups_as_long_as_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, make = [], dist.distributed_c10d.new_group
    monkeypatch.setattr(dist.distributed_c10d, "new_group", lambda **words: waits.append(words) or make(**words))
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=6)
    try:
        mesh = mesh_of(World(0, 6, 0, 3), "hybrid", "cpu", timeout_minutes=7)
        assert mesh.shape == (2, 3)
        assert [dist.get_process_group_ranks(mesh.get_group(name)) for name in ("replicate", "shard")] == [
            [0, 3],
            [0, 1, 2],
        ]
        assert [one["timeout"] for one in waits] == [timedelta(minutes=7)] * 5
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("fails", [False, True])
def test_a_sum_that_fails_is_a_failure(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """And not a gradient of this rank alone."""

    def work(gradient: torch.Tensor, async_op: bool) -> SimpleNamespace:
        future: torch.futures.Future[list[torch.Tensor]] = torch.futures.Future()
        if fails and len(gradient) == 2:
            future.set_exception(RuntimeError("Connection closed by peer"))
        else:
            future.set_result([gradient.mul_(3)])
        return SimpleNamespace(get_future=lambda: future)

    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", work)
    buffer = torch.ones(5)
    bucket: Any = SimpleNamespace(buffer=lambda: buffer, gradients=lambda: [buffer[:2], buffer[2:]])
    if fails:
        with pytest.raises(RuntimeError, match="closed by peer"):
            ddp._each_by_itself(None, bucket).wait()
    else:
        assert torch.equal(ddp._each_by_itself(None, bucket).wait(), torch.full((5,), 1.5))


@pytest.mark.parametrize("deterministic", [True, False])
def test_ddp_on_gpus_keeps_its_buckets_where_a_run_is_to_be_repeated(deterministic: bool) -> None:
    """It lays them out anew after the first step of a process, but not where it looks for unused parameters."""
    hardware = Hardware("ddp", "cpu", deterministic=deterministic)
    hardware.accelerator = "gpu"  # of which there is none
    strategy = strategy_of(hardware, SimpleNamespace(rests=False))  # type: ignore[arg-type]
    assert type(strategy) is DDPStrategy
    assert strategy._ddp_kwargs["find_unused_parameters"] is deterministic


def test_what_is_asked_for_is_taken() -> None:
    hardware = Hardware("one", "cpu", precision="bf16-mixed", deterministic=True)
    assert hardware.dtype == torch.bfloat16
    arguments = trainer_arguments(hardware, nn.Module())  # type: ignore[arg-type]
    assert (arguments["accelerator"], arguments["devices"]) == ("cpu", 1)
    assert (arguments["precision"], arguments["deterministic"]) == ("bf16-mixed", True)

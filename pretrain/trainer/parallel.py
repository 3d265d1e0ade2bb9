"""How a run is spread over hardware: one device, or the devices of many machines, each with a copy of the weights or
with a part of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import cached_property
from typing import Literal

import torch

from pretrain.launch.world import World, meeting_point
from pretrain.objective.objective import Objective
from pretrain.records import Problem, UserError, refuse
from pretrain.trainer import team
from pretrain.trainer.shard import Sharding, checkpoint_activations, mesh_of, shard
from pretrain.trainer.team import Team

log = logging.getLogger(__name__)

Strategy = Literal["one", "ddp", "fsdp"]
Accelerator = Literal["cpu", "gpu"]
Precision = Literal["auto", "32-true", "bf16-mixed", "64-true"]

_DTYPES = {"bf16-mixed": torch.bfloat16, "32-true": torch.float32, "64-true": torch.float64}


class Hardware:
    """The devices of a run, one process each.

    Args:
        strategy: `one` device; `ddp`: every rank has all weights; `fsdp`: every rank has a part of them. The last two
            are the first where there is only one device.
        accelerator: `cpu` or `gpu`; None is the one that `only` names, or else the GPUs of this machine.
        only: what a configuration of this name stands for; None stands for both.
        num_nodes: machines; None is as many as Slurm or torchrun started processes on.
        devices: of each machine; None is as many as processes were started there, or else all GPUs.
        precision: `auto` is bf16-mixed where the hardware has fast bf16, else 32-true; 64-true is for comparisons.
        compile: whether torch.compile fuses the blocks, one by one.
        deterministic: whether a GPU uses deterministic kernels alone; a CPU always does.
        activation_checkpointing: whether blocks keep their inputs alone for the backward pass, and run again in it.
        sharding: of fsdp over several machines: `hybrid` inside each, and copies of the parts on the others, or `full`
            over all of them.
        param_dtype: the type in which fsdp gathers the blocks' weights: `auto` is that of their matrix products,
            `float32` leaves them as they are.
        timeout_minutes: so long ranks wait for each other before they give up.
    """

    def __init__(
        self,
        strategy: Strategy = "one",
        accelerator: Accelerator | None = None,
        only: Accelerator | None = None,
        num_nodes: int | None = None,
        devices: int | None = None,
        precision: Precision = "auto",
        compile: bool = False,
        deterministic: bool = False,
        activation_checkpointing: bool = False,
        sharding: Sharding = "hybrid",
        param_dtype: Literal["auto", "float32"] = "auto",
        timeout_minutes: float = 30.0,
    ) -> None:
        refuse(self, self.problems(strategy, accelerator, only, num_nodes, devices, timeout_minutes))
        self.strategy: Strategy = strategy
        self.accelerator: Accelerator = accelerator or only or "gpu"
        self._precision: Precision = precision
        self.compile = compile
        self.deterministic = deterministic
        self.activation_checkpointing = activation_checkpointing
        self.sharding: Sharding = sharding
        self.param_dtype = param_dtype
        self.timeout_minutes = timeout_minutes
        self.world = World.of(os.environ)
        everything = _gpus() if self.accelerator == "gpu" else 1
        self.devices = devices or (self.world.local_size if self.world.started_by else everything)
        self.to_start = self.devices if strategy != "one" and not self.world.started_by else 1

    @staticmethod
    def problems(
        strategy: str,
        accelerator: str | None,
        only: str | None,
        num_nodes: int | None,
        devices: int | None,
        timeout_minutes: float,
        **_: object,
    ) -> Iterator[Problem]:
        if only and accelerator and accelerator != only:
            yield "accelerator", f"but this trainer is for one {only}: choose another, such as trainer=ddp"
            return
        gpu = (accelerator or only or "gpu") == "gpu"
        if gpu and not torch.cuda.is_available():
            several = "" if strategy == "one" else f", or on several by trainer={strategy} accelerator=cpu devices=2"
            yield (
                "accelerator",
                f"needs a GPU, and torch finds none here: train on the CPU with trainer=cpu{several}",
            )
            return
        for name, value in (("num_nodes", num_nodes), ("devices", devices)):
            if value is not None and value < 1:
                yield name, "must be at least 1"
        if timeout_minutes <= 0:
            yield "timeout_minutes", "must be positive"
        try:
            world = World.of(os.environ)
        except UserError as mistake:
            yield "num_nodes", str(mistake)
            return
        yield from _misfits(world, strategy, num_nodes, devices)
        here, wanted = _gpus(), world.local_size if world.started_by else devices or 1
        if gpu and wanted > here and not (world.started_by and here == 1):  # a task of Slurm may see its own alone
            yield "devices", f"{wanted} are wanted, and there are only {here} GPUs here"

    @cached_property
    def precision(self) -> Precision:
        """Asked for where the device is used: it makes a GPU's driver give this process a place there."""
        return resolve_precision(self.accelerator) if self._precision == "auto" else self._precision

    @property
    def world_size(self) -> int:
        """Ranks of the run, once all of them run."""
        return self.world.size

    @property
    def shards(self) -> bool:
        """Whether every rank has a part of the weights."""
        return self.strategy == "fsdp" and self.world.size > 1

    @property
    def device(self) -> torch.device:
        if self.accelerator == "cpu":
            return torch.device("cpu")
        return torch.device("cuda", self.world.local_rank % _gpus())  # a task of Slurm may see its own GPU alone

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        return _DTYPES[self.precision]

    def join(self) -> Team:
        """Meets the other ranks.

        Raises:
            UserError: they cannot be met.
        """
        if self.world.size > 1:
            if self.accelerator == "gpu":
                torch.cuda.set_device(self.device)
            team.join(self.world, self.device, meeting_point(os.environ), self.timeout_minutes)
        return Team(self.world, self.timeout_minutes)

    def materialise(self, objective: Objective, seed: int) -> None:
        """Gives an objective on the meta device its initial weights, or this rank's part of them."""
        if self.precision == "64-true":
            objective.double()
        if self.activation_checkpointing:
            checkpoint_activations(objective.fsdp_units())
        if self.shards:
            mesh = mesh_of(self.world, self.sharding, self.device.type, self.timeout_minutes)
            narrow = (self.precision, self.param_dtype) == ("bf16-mixed", "auto")
            shard(objective, mesh, torch.bfloat16 if narrow else None)
        objective.to_empty(device=self.device if self.shards else "cpu")  # what is whole, Lightning moves
        objective.init_weights(seed)


def resolve_precision(accelerator: str) -> Precision:
    """bf16-mixed where it is faster than float32, which a CPU without bf16 instructions is not."""
    if accelerator == "gpu":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "32-true"


def _misfits(world: World, strategy: str, num_nodes: int | None, devices: int | None) -> Iterator[Problem]:
    """What was asked for that is not what was started."""
    if strategy == "one":
        if world.size > 1:
            yield "strategy", f"is one process, but {world.started_by} started {world.size}: choose trainer=ddp or fsdp"
        for name, value in (("num_nodes", num_nodes), ("devices", devices)):
            if value is not None and value > 1:
                yield name, "this trainer is for one device: choose trainer=ddp or trainer=fsdp"
    elif not world.started_by:
        if num_nodes is not None and num_nodes > 1:
            yield (
                "num_nodes",
                "a process here cannot start others on other machines: submit pretrain.sbatch, which "
                "`pretrain slurm` writes, or start torchrun on each of them",
            )
    else:
        for name, value, real in (("num_nodes", num_nodes, world.nodes), ("devices", devices, world.local_size)):
            if value is not None and value != real:
                yield name, f"but {world.started_by} started processes for {real}: leave it out"


def _gpus() -> int:
    return torch.cuda.device_count()

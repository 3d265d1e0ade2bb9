"""What Lightning is told of a run's hardware: its strategies, where a process is, and what it must leave to us."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from pretrain.launch.world import World, meeting_point
from pretrain.objective.objective import Objective
from pretrain.trainer.ddp import RepeatableDDP
from pretrain.trainer.parallel import Hardware


def trainer_arguments(hardware: Hardware, objective: Objective) -> dict[str, Any]:
    """What Lightning's Trainer needs to know. For it, every process is the only one of a machine."""
    several = hardware.world.size > 1
    index = hardware.device.index
    return {
        "accelerator": hardware.accelerator,
        "devices": 1 if index is None else [index],
        "num_nodes": hardware.world.size,
        "precision": "32-true" if hardware.precision == "64-true" else hardware.precision,
        "deterministic": hardware.deterministic or None,
        "strategy": strategy_of(hardware, objective) if several else "auto",
        # under Slurm too: its own environment would save and requeue by itself
        "plugins": [_Place(hardware.world) if several else LightningEnvironment()],
    }


def strategy_of(hardware: Hardware, objective: Objective) -> DDPStrategy | ModelParallelStrategy:
    """Lightning's strategy for several ranks."""
    backend = "nccl" if hardware.accelerator == "gpu" else "gloo"
    patience = timedelta(minutes=hardware.timeout_minutes)
    if hardware.strategy == "fsdp":
        return ModelParallelStrategy(hardware.world.size, 1, process_group_backend=backend, timeout=patience)
    kind = RepeatableDDP if hardware.accelerator == "cpu" else DDPStrategy
    return kind(
        process_group_backend=backend,
        timeout=patience,
        find_unused_parameters=objective.rests or hardware.deterministic,  # then it keeps its buckets as they are, too
        broadcast_buffers=False,  # what is summed up in them during a step is each rank's own
        gradient_as_bucket_view=True,
    )


class _Place(ClusterEnvironment):
    """Where a process is, for Lightning; the process group is there already."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return meeting_point(os.environ)[0]

    @property
    def main_port(self) -> int:
        return meeting_point(os.environ)[1]

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.world.size

    def set_world_size(self, size: int) -> None:
        assert size == self.world.size

    def global_rank(self) -> int:
        return self.world.rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self.world.rank

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return self.world.rank


def quieten(trainer: Trainer) -> None:
    """Takes away what Lightning does about signals. Its handler talks with the other ranks, which hangs; when it is
    taken out again, so is ours, while the ranks part. Before every micro-batch it would make the host wait for the
    device, and end a run without saving.
    """
    handlers: Any = trainer._signal_connector
    loop: Any = trainer.fit_loop.epoch_loop
    assert callable(handlers.register_signal_handlers)
    assert callable(loop._broadcast_sigterm_tensor)
    handlers.register_signal_handlers = lambda: None
    loop._broadcast_sigterm_tensor = lambda: None

"""How a run is spread over hardware. One device, for now: a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from lightning.fabric.plugins.environments import LightningEnvironment

from pretrain.records import Problem

Precision = Literal["auto", "32-true", "bf16-mixed"]


class OneDevice:
    """One process on one CPU or one GPU.

    Args:
        accelerator: `cpu` or `gpu`.
        precision: `auto` is bf16-mixed where the hardware has fast bf16, else 32-true.
        compile: whether torch.compile fuses the blocks, one by one.
        deterministic: whether a GPU uses deterministic kernels alone; a CPU always does.
    """

    world_size = 1

    def __init__(
        self,
        accelerator: Literal["cpu", "gpu"],
        precision: Precision = "auto",
        compile: bool = False,
        deterministic: bool = False,
    ) -> None:
        self.accelerator = accelerator
        self.precision = resolve_precision(accelerator) if precision == "auto" else precision
        self.compile = compile
        self.deterministic = deterministic

    @staticmethod
    def problems(accelerator: str, **_: object) -> Iterator[Problem]:
        if accelerator == "gpu" and not torch.cuda.is_available():
            yield "accelerator", "needs a GPU, and torch finds none here: train on the CPU with trainer=cpu"

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.accelerator == "gpu" else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        return torch.bfloat16 if self.precision == "bf16-mixed" else torch.float32

    def trainer_arguments(self) -> dict[str, Any]:
        """What Lightning's Trainer needs to know."""
        return {
            "accelerator": self.accelerator,
            "devices": 1,
            "precision": self.precision,
            "deterministic": self.deterministic or None,
            "plugins": [
                LightningEnvironment()
            ],  # under Slurm too: its own environment would save and requeue by itself
        }


def resolve_precision(accelerator: str) -> Precision:
    """bf16-mixed where it is faster than float32, which a CPU without bf16 instructions is not."""
    if accelerator == "gpu":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "32-true"

"""Says, on paper, what a run on many nodes sends, how long that takes, and up to how many nodes it stays hidden.

    python scripts/scaling.py +experiment=mae_vitl num_nodes=8
    python scripts/scaling.py 'experiments=[mae_vitb,mae_vitl]' num_nodes=8 adapters=1 out=scaling.json
    python scripts/scaling.py +experiment=mae_vitl num_nodes=8 dry_run=true

Cells with three values are for trainer=ddp, trainer=fsdp (sharded inside a node) and trainer=fsdp with
trainer.sharding=full (over all ranks). `dry_run` makes a step of one rank with fake messages and fake weights, and sets
what it counts beside what was computed. Neither a GPU nor a network is needed, and nothing is measured.

All words but those below are overrides, as `python -m pretrain` takes them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig

from pretrain.assemble import objective_of
from pretrain.config.arguments import script_with_overrides
from pretrain.config.check import composed_without_data
from pretrain.plan import empty_batch
from pretrain.records import UserError
from pretrain.scaling.cluster import Cluster
from pretrain.scaling.profile import profile
from pretrain.scaling.table import COLUMNS, DRY_COLUMNS, LAYOUTS, Job, computed, dry_rows, rehearsed, row

BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Arguments:
    experiments: list[str] | None = None  # several recipes, one row each
    num_nodes: int = 8
    devices: int = 8  # of each node
    nvlink: float = 450.0  # GB/s that a device sends inside its node
    network: float = 400.0  # Gb/s of an adapter
    adapters: int = 8  # of each node
    peak: float = 989.0  # TFLOP/s of a device
    utilization: float = 0.4  # of the peak
    memory: float = 3.35  # TB/s of a device
    param_dtype: Literal["bfloat16", "float32"] = "bfloat16"  # in which FSDP gathers blocks
    dry_run: bool = False
    out: str | None = None

    @property
    def cluster(self) -> Cluster:
        network = self.adapters * self.network / 8 * 1e9
        return Cluster(self.devices, self.nvlink * 1e9, network, self.peak * 1e12, self.utilization, self.memory * 1e12)


def job(cfg: DictConfig, arguments: Arguments) -> Job:
    nodes, devices, batch = arguments.num_nodes, arguments.devices, cfg.global_batch_size
    if batch % (nodes * devices):
        raise UserError(
            f"global_batch_size={batch}: cannot be split over num_nodes={nodes} × devices={devices}; give numbers "
            "whose product divides it"
        )
    return Job(
        nodes,
        devices,
        batch,
        cfg.max_micro_batch_size,
        BYTES[arguments.param_dtype],
        cfg.trainer.activation_checkpointing,
    )


def result(cfg: DictConfig, arguments: Arguments) -> dict[str, Any]:
    run, objective = job(cfg, arguments), objective_of(cfg)
    batch = empty_batch((view.count, len(view.mean), *view.height_width) for view in objective.views)
    if arguments.dry_run:
        return rehearsed(profile(objective, batch), run, (objective_of(cfg) for _ in LAYOUTS))
    return computed(profile(objective, batch), run, arguments.cluster, arguments.adapters)


def check(arguments: Arguments) -> None:
    """
    Raises:
        UserError: a number that must be positive is not, or there is nobody to send anything to.
    """
    numbers = {name: value for name, value in asdict(arguments).items() if isinstance(value, int | float)}
    lines = [f"{name}={value}: must be positive" for name, value in numbers.items() if name != "dry_run" and value <= 0]
    if arguments.dry_run and arguments.num_nodes * arguments.devices == 1:
        lines.append("dry_run needs several ranks: give num_nodes=… or devices=…")
    if lines:
        raise UserError("\n".join(lines))


def main(arguments: Arguments, overrides: list[str]) -> None:
    check(arguments)
    recipes = [[f"+experiment={name}"] for name in arguments.experiments or []] or [[]]
    configurations = [composed_without_data([*recipe, *overrides]) for recipe in recipes]
    columns = DRY_COLUMNS if arguments.dry_run else COLUMNS
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    results = {}
    for cfg in configurations:
        found = results[cfg.name] = result(cfg, arguments)
        print("\n".join(dry_rows(cfg.name, found) if arguments.dry_run else [row(cfg.name, found)]))
    if arguments.out is not None:
        given = {name: value for name, value in asdict(arguments).items() if name not in ("experiments", "out")}
        run = {"overrides": overrides, "arguments": given, "torch": torch.__version__}
        Path(arguments.out).write_text(json.dumps(results | {"run": run}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    script_with_overrides(Arguments, __doc__ or "", main)

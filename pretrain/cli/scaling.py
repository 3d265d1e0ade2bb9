"""Says, on paper, what a run on many nodes sends, and how long that takes.

    pretrain scaling +experiment=mae_vitl num_nodes=8
    pretrain scaling 'experiments=[mae_vitb,mae_vitl]' num_nodes=8 adapters=1 out=scaling.json
    pretrain scaling +experiment=mae_vitl num_nodes=8 dry_run=true

The table also says up to how many nodes sending stays hidden behind computing. Cells with three
values are for trainer=ddp, trainer=fsdp (sharded inside a node) and trainer=fsdp with
trainer.sharding=full (over all ranks). `dry_run` makes a step of one rank with fake messages
and fake weights, and sets what it counts beside what was computed. Neither a GPU nor a network
is needed, and nothing is measured. All words but those below are overrides, as `python -m
pretrain` takes them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pretrain.config.arguments import word
from pretrain.config.problem import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pretrain.scaling.cluster import Cluster
    from pretrain.scaling.table import Job

BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Arguments:
    experiments: list[str] | None = word("Several recipes, one row each.", None, example="[mae_vitb,mae_vitl]")
    num_nodes: int = word("On how many nodes.", 8, example="16", was="nodes")
    devices: int = word("The devices of each node.", 8, example="4")
    nvlink: float = word("GB/s that a device sends inside its node.", 450.0, example="900")
    network: float = word("Gb/s of a network adapter.", 400.0, example="200")
    adapters: int = word("The network adapters of each node.", 8, example="1")
    peak: float = word("TFLOP/s of a device.", 989.0, example="312")
    utilization: float = word("What share of the peak is reached.", 0.4, example="0.5")
    memory: float = word("TB/s of a device's memory.", 3.35, example="2")
    param_dtype: Literal["bfloat16", "float32"] = word(
        "The type in which FSDP sends the parameters of a block.", "bfloat16", example="float32", was="gather"
    )
    dry_run: bool = word("Whether to count what one step of one rank sends and holds.", False, example="true")
    out: str | None = word("A file for the numbers, as json.", None, example="scaling.json")


def cluster(a: Arguments) -> Cluster:
    from pretrain.scaling.cluster import Cluster

    network = a.adapters * a.network / 8 * 1e9
    return Cluster(a.devices, a.nvlink * 1e9, network, a.peak * 1e12, a.utilization, a.memory * 1e12)


def job(cfg: DictConfig, arguments: Arguments) -> Job:
    from pretrain.scaling.table import Job

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
    from pretrain.assemble import objective_of
    from pretrain.plan import empty_batch
    from pretrain.scaling.profile import profile
    from pretrain.scaling.table import LAYOUTS, computed, rehearsed

    run, objective = job(cfg, arguments), objective_of(cfg)
    batch = empty_batch((view.count, len(view.mean), *view.height_width) for view in objective.views)
    if arguments.dry_run:
        return rehearsed(profile(objective, batch), run, (objective_of(cfg) for _ in LAYOUTS))
    return computed(profile(objective, batch), run, cluster(arguments), arguments.adapters)


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
    import torch

    from pretrain.config.check import composed_without_data
    from pretrain.scaling.table import COLUMNS, DRY_COLUMNS, dry_rows, row

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

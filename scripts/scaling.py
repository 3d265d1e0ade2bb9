"""Says, on paper, what a run on many nodes sends, how long that takes, and up to how many nodes it stays hidden.

    python scripts/scaling.py +experiment=mae_vitl nodes=8
    python scripts/scaling.py 'experiments=[mae_vitb,mae_vitl]' nodes=8 adapters=1 out=scaling.json
    python scripts/scaling.py +experiment=mae_vitl nodes=8 dry_run=true

Cells with three values are for trainer=ddp, trainer=fsdp (sharded inside a node) and trainer=fsdp with
trainer.sharding=full (over all ranks). `dry_run` makes a step of one rank with fake messages and fake weights, and sets
what it counts beside what was computed. Neither a GPU nor a network is needed, and nothing is measured.

All words but those below are overrides, as `python -m pretrain` takes them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from omegaconf import DictConfig

from pretrain.arguments import script_with_overrides
from pretrain.assemble import objective_of
from pretrain.config import composed_without_data
from pretrain.plan import empty_batch, micro_batches
from pretrain.records import UserError
from pretrain.scaling.cluster import Cluster, hidden_up_to, scaled, step
from pretrain.scaling.profile import Profile, profile
from pretrain.scaling.rehearsal import rehearse
from pretrain.scaling.traffic import Collective, Kind, Layout, Spread, held, traffic

COLUMNS = ["recipe", "M trained", "samples a device", "held by a rank, GB", "sent by a rank, GB", "compute, ms"]
COLUMNS += ["communication, ms", "update, ms", "step, ms", "hidden up to nodes", "with one adapter"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True)
class Arguments:
    experiments: list[str] | None = None  # several recipes, one row each
    nodes: int = 8
    devices: int = 8  # of each node
    nvlink: float = 450.0  # GB/s that a device sends inside its node
    network: float = 400.0  # Gb/s of an adapter
    adapters: int = 8  # of each node
    peak: float = 989.0  # TFLOP/s of a device
    utilization: float = 0.4  # of the peak
    gather: Literal["bfloat16", "float32"] = "bfloat16"  # in which FSDP gathers blocks
    memory: float = 3.35  # TB/s of a device
    recompute: bool = False  # blocks run again in the backward pass
    dry_run: bool = False
    out: str | None = None

    @property
    def cluster(self) -> Cluster:
        network = self.adapters * self.network / 8 * 1e9
        return Cluster(self.devices, self.nvlink * 1e9, network, self.peak * 1e12, self.utilization, self.memory * 1e12)

    def spread(self, layout: Layout) -> Spread:
        return Spread(layout, self.nodes, self.devices, gathered={"bfloat16": 2, "float32": 4}[self.gather])


def profiled(cfg: DictConfig) -> Profile:
    objective = objective_of(cfg)
    return profile(
        objective, empty_batch((view.count, len(view.mean), *view.height_width) for view in objective.views)
    )


def share(cfg: DictConfig, arguments: Arguments) -> tuple[int, int]:
    """(samples of a micro-batch, micro-batches) of a device."""
    batch, ranks = cfg.global_batch_size, arguments.nodes * arguments.devices
    if batch % ranks:
        raise UserError(f"global_batch_size={batch}: cannot be split over nodes={arguments.nodes} × {arguments.devices}")
    return micro_batches(batch // ranks, cfg.batch_size_per_device)


def computed(cfg: DictConfig, arguments: Arguments) -> dict[str, Any]:
    """What a recipe amounts to in every layout."""
    found, parts = profiled(cfg), share(cfg, arguments)
    trained = sum(torch.Size(shape).numel() for group in found.groups for shape in group.trained)
    one_adapter = replace(arguments.cluster, network=arguments.cluster.network / arguments.adapters)
    bound = (cfg.global_batch_size, cfg.batch_size_per_device, arguments.recompute)
    result: dict[str, Any] = {"trained": trained, "micro_batch": parts[0], "accumulation": parts[1]}
    for layout in LAYOUTS:
        spread = arguments.spread(layout)
        whole = step(found, spread, arguments.cluster, *parts, arguments.recompute)
        result["compute"] = whole.compute
        result[layout] = {
            "sent": whole.sent,
            "leaving": whole.leaving,
            "communication": whole.communication,
            "update": whole.update,
            "step": whole.seconds,
            "held": held(found.groups, spread).total,
            "hidden_up_to": hidden_up_to(scaled(found, spread, arguments.cluster, *bound)),
            "hidden_up_to_one_adapter": hidden_up_to(scaled(found, spread, one_adapter, *bound)),
        }
    return result


def row(name: str, result: dict[str, Any]) -> str:
    def three(key: str, unit: float, digits: int) -> str:
        return " / ".join(f"{result[layout][key] / unit:.{digits}f}" for layout in LAYOUTS)

    cells = [name, f"{result['trained'] / 1e6:.1f}", f"{result['micro_batch']} × {result['accumulation']}"]
    cells += [three("held", 1e9, 2), three("sent", 1e9, 2), f"{result['compute'] * 1e3:.1f}"]
    cells += [three(key, 1e-3, 1) for key in ("communication", "update", "step")]
    cells += [three(key, 1, 0) for key in ("hidden_up_to", "hidden_up_to_one_adapter")]
    return f"| {' | '.join(cells)} |"


def rehearsed(cfg: DictConfig, arguments: Arguments) -> dict[str, Any]:
    """What is counted in a step of one rank, beside what is computed."""
    groups, parts = profiled(cfg).groups, share(cfg, arguments)
    result: dict[str, Any] = {"micro_batch": parts[0], "accumulation": parts[1]}
    for layout in LAYOUTS:
        spread = arguments.spread(layout)
        counted, expected = rehearse(objective_of(cfg), spread, *parts), traffic(groups, spread).of_step(parts[1])
        result[layout] = {
            "counted": totals(counted.collectives) | {"held": asdict(counted.held)},
            "computed": totals(expected) | {"held": asdict(held(groups, spread))},
        }
    return result


def totals(collectives: Any) -> dict[str, dict[str, int]]:
    """How many collectives of each kind there are, and their bytes."""
    every: list[Collective] = list(collectives)
    by_kind = {kind: [one.bytes for one in every if one.kind == kind] for kind in get_args(Kind)}
    return {kind: {"number": len(sizes), "bytes": sum(sizes)} for kind, sizes in by_kind.items() if sizes}


def dry_rows(name: str, result: dict[str, Any]) -> list[str]:
    """A row a layout and a quantity: counted and computed."""
    lines = []
    for layout in LAYOUTS:
        counted, expected = result[layout]["counted"], result[layout]["computed"]
        for kind in get_args(Kind):
            if kind in counted:
                cells = [f"{one[kind]['number']}, {one[kind]['bytes']:,} bytes" for one in (counted, expected)]
                lines.append(f"| {' | '.join([name, layout, kind, *cells])} |")
        for what in counted["held"]:
            cells = [f"{one['held'][what]:,} bytes" for one in (counted, expected)]
            lines.append(f"| {' | '.join([name, layout, what, *cells])} |")
    return lines


def main(arguments: Arguments, overrides: list[str]) -> None:
    recipes = [[f"+experiment={name}"] for name in arguments.experiments or []] or [[]]
    columns = ["recipe", "layout", "a rank's", "counted", "computed"] if arguments.dry_run else COLUMNS
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    results = {}
    for recipe in recipes:
        cfg = composed_without_data([*recipe, *overrides])
        results[cfg.name] = (rehearsed if arguments.dry_run else computed)(cfg, arguments)
        rows = dry_rows if arguments.dry_run else lambda name, result: [row(name, result)]
        print("\n".join(rows(cfg.name, results[cfg.name])))
    if arguments.out is not None:
        run = {"overrides": overrides, "arguments": asdict(arguments), "torch": torch.__version__}
        Path(arguments.out).write_text(json.dumps(results | {"run": run}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    script_with_overrides(Arguments, __doc__ or "", main)

"""What a run amounts to on many nodes, and a rehearsal beside what was computed: numbers, and rows of tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from pretrain.objective.objective import Objective
from pretrain.plan import micro_batches
from pretrain.scaling.cluster import Cluster, hidden_up_to, scaled, step
from pretrain.scaling.profile import Profile
from pretrain.scaling.rehearsal import rehearse
from pretrain.scaling.traffic import Collective, Kind, Layout, Spread, held, traffic

LAYOUTS: tuple[Layout, ...] = get_args(Layout)  # in a cell with three values, in this order

COLUMNS = ["recipe", "M trained", "samples a device", "held by a rank, GB", "sent by a rank, GB", "compute, ms"]
COLUMNS += ["communication, ms", "update, ms", "step, ms", "hidden up to nodes", "with one adapter"]
DRY_COLUMNS = ["recipe", "layout", "a rank's", "counted", "computed"]


@dataclass(frozen=True)
class Job:
    """A run on so many nodes.

    Attributes:
        nodes, devices: machines, and devices of each.
        batch: samples of an optimizer step, over all devices, which the devices divide.
        largest: micro-batch that a device can take.
        gathered: bytes a number in which FSDP gathers units.
        activation_checkpointing: whether units run again in the backward pass.
    """

    nodes: int
    devices: int
    batch: int
    largest: int
    gathered: int
    activation_checkpointing: bool

    @property
    def parts(self) -> tuple[int, int]:
        """(samples of a micro-batch, micro-batches) of a device."""
        return micro_batches(self.batch // (self.nodes * self.devices), self.largest)

    def spread(self, layout: Layout) -> Spread:
        return Spread(layout, self.nodes, self.devices, self.gathered)


def computed(profile: Profile, job: Job, cluster: Cluster, adapters: int) -> dict[str, Any]:
    """What a job amounts to in every layout, in bytes, seconds and nodes; `adapters` of a node make up its network."""
    one_adapter = replace(cluster, network=cluster.network / adapters)
    trained = sum(math.prod(shape) for group in profile.groups for shape in group.trained)
    result: dict[str, Any] = {"trained": trained, "micro_batch": job.parts[0], "accumulation": job.parts[1]}
    for layout in LAYOUTS:
        spread = job.spread(layout)
        whole = step(profile, spread, cluster, *job.parts, job.activation_checkpointing)
        limits = [
            hidden_up_to(scaled(profile, spread, links, job.batch, job.largest, job.activation_checkpointing))
            for links in (cluster, one_adapter)
        ]
        result["compute"] = whole.compute
        result[layout] = {
            "sent": whole.sent,
            "leaving": whole.leaving,
            "communication": whole.communication,
            "update": whole.update,
            "step": whole.seconds,
            "held": held(profile.groups, spread).total,
            "hidden_up_to": limits[0],
            "hidden_up_to_one_adapter": limits[1],
        }
    return result


def row(name: str, result: dict[str, Any]) -> str:
    """A line of the table of `COLUMNS`."""

    def three(key: str, unit: float, digits: int) -> str:
        return " / ".join(f"{result[layout][key] / unit:.{digits}f}" for layout in LAYOUTS)

    cells = [name, f"{result['trained'] / 1e6:.1f}", f"{result['micro_batch']} × {result['accumulation']}"]
    cells += [three("held", 1e9, 2), three("sent", 1e9, 2), f"{result['compute'] * 1e3:.1f}"]
    cells += [three(key, 1e-3, 1) for key in ("communication", "update", "step")]
    cells += [three(key, 1, 0) for key in ("hidden_up_to", "hidden_up_to_one_adapter")]
    return _line(cells)


def rehearsed(profile: Profile, job: Job, objectives: Iterable[Objective]) -> dict[str, Any]:
    """What is counted in a step of one rank of every layout, beside what is computed; an objective for each of them."""
    result: dict[str, Any] = {"micro_batch": job.parts[0], "accumulation": job.parts[1]}
    for layout, objective in zip(LAYOUTS, objectives, strict=True):
        spread = job.spread(layout)
        counted = rehearse(objective, spread, *job.parts, job.activation_checkpointing)
        expected = traffic(profile.groups, spread).of_step(job.parts[1])
        result[layout] = {
            "counted": _totals(counted.collectives) | {"held": asdict(counted.held)},
            "computed": _totals(expected) | {"held": asdict(held(profile.groups, spread))},
        }
    return result


def dry_rows(name: str, result: dict[str, Any]) -> list[str]:
    """Lines of the table of `DRY_COLUMNS`: one for each layout and kind of collective, and one for what is held."""
    lines = []
    for layout in LAYOUTS:
        both = [result[layout][how] for how in ("counted", "computed")]
        for kind in [kind for kind in get_args(Kind) if kind in both[0] or kind in both[1]]:
            sums = [one.get(kind, {"number": 0, "bytes": 0}) for one in both]
            lines.append(_line([name, layout, kind, *(f"{one['number']}, {one['bytes']:,} bytes" for one in sums)]))
        sizes = [" + ".join(f"{size:,}" for size in one["held"].values()) for one in both]
        lines.append(_line([name, layout, "held", *(f"{one} bytes" for one in sizes)]))
    return lines


def _totals(collectives: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """How many collectives of each kind there are, and their bytes."""
    every = list(collectives)
    by_kind = {kind: [one.bytes for one in every if one.kind == kind] for kind in get_args(Kind)}
    return {kind: {"number": len(sizes), "bytes": sum(sizes)} for kind, sizes in by_kind.items() if sizes}


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"

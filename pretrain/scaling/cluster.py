"""How long a step takes on paper: what travels, over given links, beside what is computed.

The time of a collective is NCCL's own estimate (its src/graph/tuning.cc): a start, a delay for each hop, and bytes over
bandwidth, in a ring or, to sum everywhere, a tree; the shorter counts. Communication is hidden where no pass computes
for a shorter time than it communicates. Nothing here is measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pretrain.plan import micro_batches
from pretrain.scaling.profile import Profile
from pretrain.scaling.traffic import Collective, Spread, held, traffic

_PASSES = 7  # of AdamW over numbers as many as gradients: it reads four for each and writes three


@dataclass(frozen=True)
class Cluster:
    """Links and processors; by default eight H100 or H200 SXM a node, each with an adapter of 400 Gb/s.

    Attributes:
        devices: of a node.
        nvlink: bytes/s that a device sends to its neighbours in the node.
        network: bytes/s that a node sends to others, over all of its adapters.
        peak: operations/s of a device, dense, in bf16.
        utilization: the share of them that is reached while nothing is waited for.
        memory: bytes/s that a device reads and writes, of an H100.
        start: seconds before a collective moves anything.
        hop, network_hop: seconds from rank to rank inside a node, and from node to node.
    """

    devices: int = 8
    nvlink: float = 450e9
    network: float = 8 * 50e9
    peak: float = 989e12
    utilization: float = 0.4
    memory: float = 3.35e12
    start: float = 8.4e-6
    hop: float = 3.4e-6
    network_hop: float = 14e-6

    def seconds(self, one: Collective) -> float:
        """Of a collective that has the links to itself; where one rank of each node takes part, so do the others at the
        same time, and share the node's adapters."""
        bandwidth = self.nvlink
        if one.nodes > 1:
            bandwidth = min(self.nvlink, self.network * one.ranks / self.devices)
        times = 1 + (one.kind == "all_reduce")
        border, steps = times * (one.nodes - 1), times * (one.nodes * one.ranks - 1)
        ring = self.start + (steps - border) * self.hop + border * self.network_hop + one.sent / bandwidth
        if one.kind != "all_reduce":
            return ring
        depth = one.nodes.bit_length() - 1
        delay = 2 * ((one.ranks - 1) * self.hop + depth * self.network_hop)
        return min(ring, self.start + delay + 2 * one.bytes / (0.92 * bandwidth))

    def leaving(self, one: Collective) -> float:
        """Bytes that leave a node: a ring crosses its border once, and each rank that is alone in its own has one."""
        if one.nodes == 1:
            return 0.0
        return one.sent * (self.devices if one.ranks == 1 else 1)


@dataclass(frozen=True)
class Phase:
    """A forward or a backward pass, in seconds."""

    compute: float
    communication: float

    @property
    def hidden(self) -> bool:
        return self.communication <= self.compute

    @property
    def seconds(self) -> float:
        """With communication that runs beside what is computed, from beginning to end."""
        return max(self.compute, self.communication)


@dataclass(frozen=True)
class Step:
    """An optimizer step of one rank.

    Attributes:
        micro_batch: samples at a time.
        accumulation: micro-batches.
        sent: bytes that a rank sends.
        leaving: bytes that leave a node.
        phases: the passes of all micro-batches.
        update: seconds in which the optimizer moves the parameters that a rank holds.
    """

    micro_batch: int
    accumulation: int
    sent: float
    leaving: float
    phases: tuple[Phase, ...]
    update: float

    @property
    def hidden(self) -> bool:
        return all(phase.hidden for phase in self.phases)

    @property
    def compute(self) -> float:
        return sum(phase.compute for phase in self.phases)

    @property
    def communication(self) -> float:
        return sum(phase.communication for phase in self.phases)

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases) + self.update


def step(
    profile: Profile,
    spread: Spread,
    cluster: Cluster,
    micro_batch: int,
    accumulation: int,
    activation_checkpointing: bool = False,
) -> Step:
    """A step of so many micro-batches of so many samples, with or without units that run again in the backward pass."""
    moved = traffic(profile.groups, spread)
    speed = cluster.peak * cluster.utilization / micro_batch
    forward = Phase(profile.forward / speed, _together(cluster, moved.forward))
    work = (profile.backward + activation_checkpointing * profile.recomputed) / speed
    backward = Phase(work, _together(cluster, moved.backward))
    last = replace(backward, communication=_together(cluster, (*moved.backward, *moved.last)))
    everything = list(moved.of_step(accumulation))
    return Step(
        micro_batch=micro_batch,
        accumulation=accumulation,
        sent=sum(one.sent for one in everything),
        leaving=sum(cluster.leaving(one) for one in everything),
        phases=(*[forward, backward] * (accumulation - 1), forward, last),
        update=_PASSES * held(profile.groups, spread).gradients / cluster.memory,
    )


def _together(cluster: Cluster, collectives: Iterable[Collective]) -> float:
    """Of collectives of which those of the same ranks wait for each other, and those inside a node and between nodes do
    not: they run in streams of their own, over links of their own."""
    seconds: dict[tuple[int, int], float] = defaultdict(float)
    for one in collectives:
        seconds[one.nodes, one.ranks] += cluster.seconds(one)
    return max(seconds.values(), default=0.0)


def scaled(
    profile: Profile, spread: Spread, cluster: Cluster, batch: int, largest: int, activation_checkpointing: bool = False
) -> Iterator[tuple[int, Step]]:
    """(nodes, step) for every number of nodes that a global batch can be divided among, one upwards."""
    for nodes in range(1, batch // spread.devices + 1):
        wider = replace(spread, nodes=nodes)
        if batch % wider.ranks == 0:
            yield (
                nodes,
                step(profile, wider, cluster, *micro_batches(batch // wider.ranks, largest), activation_checkpointing),
            )


def hidden_up_to(steps: Iterable[tuple[int, Step]]) -> int:
    """The largest number of nodes up to which all communication is hidden, 0 if it is on none."""
    farthest = 0
    for nodes, one in steps:
        if not one.hidden:
            break
        farthest = nodes
    return farthest

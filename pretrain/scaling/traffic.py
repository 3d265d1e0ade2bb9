"""What travels between ranks in an optimizer step: the collectives of DDP (Li et al., arXiv 2006.15704) and of FSDP
(Zhao et al., arXiv 2304.11277), with their bytes.

DDP sums all gradients once a step. FSDP gathers a group's parameters before it runs, in the forward and again in the
backward pass, and sums and parts its gradients, all of it for every micro-batch; in its hybrid form the ranks of a node
do so among themselves, and nodes sum their parts once a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pretrain.scaling.profile import Group

Kind = Literal["all_gather", "reduce_scatter", "all_reduce"]
Layout = Literal["ddp", "hybrid", "full"]

BUCKET = 25 * 2**20  # bytes of gradients that DDP sums together


@dataclass(frozen=True)
class Spread:
    """How a run is spread.

    Attributes:
        layout: `ddp`, every rank has all weights; `hybrid` and `full`, FSDP inside a node or over all ranks.
        nodes: machines.
        devices: of each machine.
        gathered: bytes a number in which FSDP gathers units; what lies outside of them travels as it is stored.
        stored: bytes a number of parameters, gradients and moments, and in which gradients are summed.
    """

    layout: Layout
    nodes: int
    devices: int
    gathered: int = 2
    stored: int = 4

    @property
    def ranks(self) -> int:
        return self.nodes * self.devices

    @property
    def parts(self) -> int:
        """Ranks that a parameter is parted over."""
        if self.layout == "ddp":
            return 1
        return self.devices if self.hybrid else self.ranks

    @property
    def hybrid(self) -> bool:
        """Whether nodes hold copies of parts: there must be several nodes, and several ranks in each."""
        return self.layout == "hybrid" and self.nodes > 1 and self.devices > 1


@dataclass(frozen=True)
class Collective:
    """One message of all to all.

    Attributes:
        kind: what is done.
        bytes: of the whole: what an all-gather makes, what a reduce-scatter or an all-reduce is given by each rank.
        nodes: that take part.
        ranks: of each of them that take part. One of each: the other ranks do the same at the same time.
    """

    kind: Kind
    bytes: int
    nodes: int
    ranks: int

    @property
    def sent(self) -> float:
        """Bytes that a rank sends in a ring (Patarasuk & Yuan, 2009), as many as it receives."""
        among = self.nodes * self.ranks
        return (1 + (self.kind == "all_reduce")) * (among - 1) / among * self.bytes


@dataclass(frozen=True)
class Traffic:
    """The collectives of each micro-batch's forward and backward pass, and those that a step's last one has besides."""

    forward: tuple[Collective, ...]
    backward: tuple[Collective, ...]
    last: tuple[Collective, ...]

    def of_step(self, micro_batches: int) -> Iterator[Collective]:
        """All of an optimizer step."""
        for _ in range(micro_batches):
            yield from self.forward
            yield from self.backward
        yield from self.last


@dataclass(frozen=True)
class Held:
    """Bytes that the rank with the most of them holds from step to step; AdamW has two moments a parameter."""

    parameters: int
    gradients: int
    moments: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.moments


def traffic(groups: Iterable[Group], spread: Spread) -> Traffic:
    """What travels for so many groups, whose parameters are parted along their first dimension."""
    if spread.ranks == 1:
        return Traffic((), (), ())
    if spread.layout == "ddp":
        return Traffic((), (), tuple(_buckets(groups, spread)))
    inside = (1 if spread.hybrid else spread.nodes, spread.devices)
    forward, backward, last = [], [], []
    for group in groups:
        width = spread.gathered if group.unit else spread.stored
        gather = Collective("all_gather", width * padded(group.shapes, spread.parts), *inside)
        gradients = spread.stored * padded(group.trained, spread.parts)
        forward += [gather] * group.forward
        backward += [gather] * group.backward
        if gradients:
            backward.append(Collective("reduce_scatter", gradients, *inside))
        if gradients and spread.hybrid:
            last.append(Collective("all_reduce", gradients // spread.parts, spread.nodes, 1))
    return Traffic(tuple(forward), tuple(backward), tuple(last))


def _buckets(groups: Iterable[Group], spread: Spread) -> Iterator[Collective]:
    """All gradients in parts of equal size; DDP's own end where a parameter does."""
    total = spread.stored * sum(padded(group.trained, 1) for group in groups)
    count = math.ceil(total / BUCKET)
    sizes = [total * (number + 1) // count - total * number // count for number in range(count)]
    yield from (Collective("all_reduce", size, spread.nodes, spread.devices) for size in sizes)


def padded(shapes: Iterable[tuple[int, ...]], parts: int) -> int:
    """Numbers of parameters that are parted by rows, each filled up to a multiple of the parts."""
    return sum(-(-shape[0] // parts) * parts * math.prod(shape[1:]) for shape in shapes)


def held(groups: Iterable[Group], spread: Spread) -> Held:
    """What the first rank holds, which has as many rows of a parameter as any other."""
    groups = list(groups)
    everything, trained = (
        spread.stored * sum(padded(shapes, spread.parts) for shapes in kind) // spread.parts
        for kind in ([group.shapes for group in groups], [group.trained for group in groups])
    )
    return Held(everything, trained, 2 * trained)

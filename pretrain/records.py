"""The records that cross package borders, and the legend of their shapes.

B samples in a batch · V views of one kind a sample · C channels · H, W pixels · D channels of a token ·
K tokens · g the number of a sample in the run (samples drawn before it).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils import _pytree

from pretrain.config.problem import Problem as Problem
from pretrain.config.problem import UserError as UserError
from pretrain.config.problem import refuse as refuse


@dataclass(frozen=True)
class Replaced:
    """A sample that could not be decoded and was replaced by another."""

    g: int
    shard: str
    key: str
    cause: str
    kind: str = "damaged"  # of the cause, see `pretrain.view.pixels.Kind`


@dataclass(frozen=True)
class SourceShare:
    """What part of all samples a source of a mixture has, and how many samples it has, None if that is not known."""

    share: float
    num_samples: int | None


@dataclass
class Batch:
    """What the loader yields and what an objective is given.

    `views` holds one tensor a view specification, [V, B, C, H, W]: as they leave the loader uint8 colours, or numbers
    of the type that `ViewSpec.pixels` names; float32 and normalised once they passed `pretrain.view.color.Prepare`.
    `g` [B] int64 and `seed` are the key of every random decision about a sample, so that none depends on its neighbours
    in the batch. `labels` [B] int64 is −1 where a sample has none. `keys` are the shards' own names for the samples,
    for people: they need not be unique.

    `draws` [B, views of a sample, numbers a view] are the random numbers of colour changes, a function of (seed, g).
    They stay on the host wherever the batch goes: which samples an operation is for is decided there, and to ask a
    device for it would make the host wait for all that is queued on it. None if there are no such changes, or nobody
    has drawn them yet.
    """

    views: tuple[Tensor, ...]
    g: Tensor
    labels: Tensor
    keys: list[str]
    seed: int
    replaced: list[Replaced] = field(default_factory=list)
    draws: Tensor | None = None

    def __len__(self) -> int:
        return len(self.g)

    def part(self, start: int, stop: int) -> Batch:
        """The samples from place `start` up to `stop`, as a batch of their own."""
        g, inside = self.g[start:stop], slice(start, stop)
        views = tuple(view[:, inside] for view in self.views)
        draws = None if self.draws is None else self.draws[inside]
        replaced = [one for one in self.replaced if one.g in set(g.tolist())] if self.replaced else []
        return Batch(views, g, self.labels[inside], self.keys[inside], self.seed, replaced, draws)

    def to(self, device: object, non_blocking: bool = True) -> Batch:
        """The same batch on another device, but for its draws (Lightning calls this)."""
        move = {"device": device, "non_blocking": non_blocking}
        views = tuple(view.to(**move) for view in self.views)  # type: ignore[call-overload]
        return replace(self, views=views, g=self.g.to(**move), labels=self.labels.to(**move))  # type: ignore[call-overload]

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, but for its draws (torch's DataLoader calls this)."""
        views = tuple(view.pin_memory() for view in self.views)
        return replace(self, views=views, g=self.g.pin_memory(), labels=self.labels.pin_memory())


@dataclass(frozen=True)
class Randomness:
    """What random decisions about the rows of a batch are keyed by: the run's seed, and a number for each row.

    `number` [B] int64 is the sample's g; of view v of several, g + v·2⁴⁸.
    """

    seed: int
    number: Tensor


@dataclass
class Tokens:
    """What an encoder makes of images.

    `cls` [B, D] or None; `registers` [B, R, D] or None; `patches` [B, K, D]: all tokens of the grid, row by row, or
    the visible mask units in the order in which they were asked for, each unit's tokens row by row. `grid` is the
    (rows, columns) of output tokens that the whole image has, whatever was visible.
    """

    cls: Tensor | None
    registers: Tensor | None
    patches: Tensor
    grid: tuple[int, int]

    def joined(self) -> Tensor:
        """Class token, if there is one, and patches in one tensor: [B, (1 +) K, D]."""
        return self.patches if self.cls is None else torch.cat([self.cls[:, None], self.patches], dim=1)


@dataclass
class StepOutput:
    """The loss of a (micro-)batch, a scalar to differentiate, and detached scalars worth logging."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


for _record in (Tokens, StepOutput):  # so that what shards a module finds the tensors in what it returns
    _pytree.register_dataclass(_record)


@dataclass(frozen=True)
class Progress:
    """Where a run stands in its schedule, in integers: a float alone is off by an epoch now and then.

    `step` optimizer steps are done of `total_steps`, which are `epochs` epochs of the schedule: where a run is rescaled
    to another number of steps, they are rescaled with it.
    """

    step: int
    total_steps: int
    epochs: int

    @property
    def fraction(self) -> float:
        return self.step / self.total_steps

    @property
    def epoch(self) -> int:
        return self.step * self.epochs // self.total_steps

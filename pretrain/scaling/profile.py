"""What of an objective matters to how it is spread: which parameters travel together, how often, and what a pass costs.

Read off the modules themselves: one pass over one sample on torch's meta device, forward and back, counts which of the
modules that are sharded run, with and without a gradient, which parameters get one, and the operations of each phase.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pretrain.objective.objective import Objective
from pretrain.records import Batch, Progress

MIDWAY = Progress(1, 2, 1_000_000)  # of a run: nothing is frozen any more that is frozen at its start


@dataclass(frozen=True)
class Group:
    """Parameters that FSDP gathers and lets go together: those of a sharded module, but for those of parts of it that
    are sharded by themselves.

    Attributes:
        name: of the module, "" is the objective itself.
        unit: whether it is one of `Objective.fsdp_units`.
        shapes: of all its parameters, frozen ones and a teacher's included.
        trained: shapes of those that get a gradient.
        forward, backward: how often they are gathered for a micro-batch.
    """

    name: str
    unit: bool
    shapes: tuple[tuple[int, ...], ...]
    trained: tuple[tuple[int, ...], ...]
    forward: int
    backward: int


@dataclass(frozen=True)
class Profile:
    """The groups of an objective, and its operations an image; `recomputed` are those of the units' forward passes that
    a backward pass would do again."""

    groups: tuple[Group, ...]
    forward: int
    backward: int
    recomputed: int


@dataclass
class _Calls:
    """Of a module in one pass: all, those that a gradient passes, those whose inputs have one, and their operations."""

    all: int = 0
    trained: int = 0
    continued: int = 0
    operations: int = 0


def sharded(objective: Objective) -> dict[str, nn.Module]:
    """The modules that FSDP shards one by one, by name, parts before what they are parts of."""
    names = {id(module): name for name, module in objective.named_modules()}
    modules = [*objective.fsdp_units(), objective.trained_encoder, objective.encoder_for_export, objective]
    return {names[id(module)]: module for module in modules}


def profile(objective: Objective, batch: Batch) -> Profile:
    """Runs an objective on the meta device, where nothing is computed.

    Args:
        objective: without weights; its parameters' gradients are cleared.
        batch: prepared views of one sample, on the meta device.
    """
    modules, counter = sharded(objective), FlopCounterMode(display=False)
    with counter, _watched(modules, counter) as calls:
        loss = objective(batch, MIDWAY).loss
        forward = counter.get_total_flops()
        loss.backward()
    units, taken, groups = {id(unit) for unit in objective.fsdp_units()}, set[int](), []
    for name, module in modules.items():
        own = [one for one in module.parameters() if id(one) not in taken]
        taken |= {id(one) for one in own}
        seen, unit = calls[name], id(module) in units
        groups.append(
            Group(
                name=name,
                unit=unit,
                shapes=tuple(tuple(one.shape) for one in own),
                trained=tuple(tuple(one.shape) for one in own if one.grad is not None),
                forward=seen.all,
                backward=0 if module is objective else _gathers_back(seen),
            )
        )
    objective.zero_grad(set_to_none=True)
    return Profile(
        groups=tuple(group for group in groups if group.shapes),
        forward=forward,
        backward=counter.get_total_flops() - forward,
        recomputed=sum(calls[name].operations for name, module in modules.items() if id(module) in units),
    )


def _gathers_back(calls: _Calls) -> int:
    """How often a backward pass gathers a module: after each of its calls it is let go when the gradient of its inputs
    is known, which for inputs without one, as images, is when all is done."""
    return calls.continued + (calls.trained > calls.continued)


@contextmanager
def _watched(modules: dict[str, nn.Module], counter: FlopCounterMode) -> Iterator[dict[str, _Calls]]:
    """Counts the calls of modules while it is open."""
    calls = {name: _Calls() for name in modules}
    handles = []
    for name, module in modules.items():

        def enter(_: nn.Module, args: Any, kwargs: Any, seen: _Calls = calls[name]) -> None:
            seen.all += 1
            if torch.is_grad_enabled():
                seen.trained += 1
                seen.continued += any(
                    one.requires_grad for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)
                )
                seen.operations -= counter.get_total_flops()

        def leave(_: nn.Module, args: Any, output: Any, seen: _Calls = calls[name]) -> None:
            if torch.is_grad_enabled():
                seen.operations += counter.get_total_flops()

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()

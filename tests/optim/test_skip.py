"""A step that is left out changes no bit of weights or state, whichever optimizer would make it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.optim.lars import LARS
from pretrain.optim.skip import step_unless

MAKERS: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW fused": lambda groups: AdamW(groups, lr=0.1, fused=True),
    "AdamW foreach": lambda groups: AdamW(groups, lr=0.1, foreach=True),
    "AdamW": lambda groups: AdamW(groups, lr=0.1, foreach=False),
    "AdamW amsgrad": lambda groups: AdamW(groups, lr=0.1, fused=True, amsgrad=True, maximize=True),
    "Adam": lambda groups: Adam(groups, lr=0.1, fused=True),
    "SGD fused": lambda groups: SGD(groups, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "SGD fused, no momentum": lambda groups: SGD(groups, lr=0.1, fused=True),
    "SGD": lambda groups: SGD(groups, lr=0.1, momentum=0.9),
    "Adagrad": lambda groups: Adagrad(groups, lr=0.1, fused=True),
    "LARS": lambda groups: LARS(groups, lr=0.1),
}


class Run:
    """An optimizer with two groups of parameters, and steps of it."""

    def __init__(self, make: Callable[[Any], Optimizer]) -> None:
        torch.manual_seed(0)
        self.parameters = [nn.Parameter(torch.randn(shape)) for shape in ((5, 3), (7,))]
        self.optimizer = make([{"params": [self.parameters[0]], "weight_decay": 0.1}, {"params": [self.parameters[1]]}])

    def step(self, number: int, skipped: bool) -> None:
        torch.manual_seed(number)
        for parameter in self.parameters:
            parameter.grad = torch.full_like(parameter, torch.nan) if skipped else torch.randn_like(parameter)
        step_unless(torch.tensor(skipped), self.optimizer, self.optimizer.step)
        assert not hasattr(self.optimizer, "found_inf")

    def bits(self) -> list[torch.Tensor]:
        state = [self.optimizer.state.get(parameter, {}) for parameter in self.parameters]
        tensors = [value for one in state for value in one.values() if isinstance(value, torch.Tensor)]
        return [*(one.detach().clone() for one in self.parameters), *(one.clone() for one in tensors)]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("pattern", ["..x.", "x...", "xx..x", ".xx.x."])
def test_it_is_as_if_it_had_never_been_asked_for(name: str, pattern: str) -> None:
    """Whatever steps are left out (`x`), the very first included: the others make what they make without them."""
    run, plain = Run(MAKERS[name]), Run(MAKERS[name])
    for number, sign in enumerate(pattern):
        before = run.bits()
        run.step(number, skipped=sign == "x")
        if sign == "x":
            assert same(run.bits(), before)
        else:
            plain.step(number, skipped=False)
            assert same(run.bits(), plain.bits())


class Reads(TorchDispatchMode):
    """Counts how often a tensor is read on the host, while it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.counting = True
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += self.counting and func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["AdamW fused", "SGD fused"])
@pytest.mark.parametrize("skipped", [False, True])
def test_a_fused_step_reads_nothing_on_the_host(name: str, skipped: bool) -> None:
    run = Run(MAKERS[name])
    run.step(0, skipped=False)
    with Reads() as mode:
        step_unless(torch.tensor(skipped), run.optimizer, run.optimizer.step)
    assert mode.count == 0


@pytest.mark.parametrize("name", ["AdamW foreach", "SGD"])
@pytest.mark.parametrize("skipped", [False, True])
def test_others_are_asked_once_and_not_called(name: str, skipped: bool) -> None:
    run, calls = Run(MAKERS[name]), []
    with Reads() as mode:
        step_unless(torch.tensor(skipped), run.optimizer, lambda: calls.append(1))
    assert mode.count == 1
    assert len(calls) == (not skipped)


def test_a_state_that_was_not_fused_is_taken_up() -> None:
    """Its groups overrule the constructor's, and kernels that are not fused refuse a flag."""
    before = Run(MAKERS["AdamW"])
    before.step(0, skipped=False)
    run = Run(MAKERS["AdamW fused"])
    run.optimizer.load_state_dict(before.optimizer.state_dict())
    run.step(1, skipped=True)
    run.step(2, skipped=False)


def test_the_flag_goes_even_when_the_step_fails() -> None:
    run = Run(MAKERS["AdamW fused"])
    run.step(0, skipped=False)

    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        step_unless(torch.tensor(False), run.optimizer, fail)
    assert not hasattr(run.optimizer, "found_inf")


@pytest.mark.parametrize("name", MAKERS)
def test_a_parameter_may_join_late_and_its_first_step_be_skipped(name: str) -> None:
    """As DINO's prototypes do, which rest in the first epoch."""
    run = Run(MAKERS[name])
    torch.manual_seed(0)
    for skipped, joined in ((False, False), (True, True), (False, True)):
        for parameter in run.parameters[: 1 + joined]:
            parameter.grad = torch.full_like(parameter, torch.nan) if skipped else torch.randn_like(parameter)
        before = run.bits()
        step_unless(torch.tensor(skipped), run.optimizer, run.optimizer.step)
        assert not skipped or same(before, run.bits())
    assert all(one.isfinite().all() for one in run.bits())

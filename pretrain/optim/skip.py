"""An optimizer step that is left out where a flag on the device says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def step_unless(skipped: Tensor, optimizer: Optimizer, step: Callable[[], Any]) -> None:
    """Makes a step that leaves weights, moments and step counts as they are, to the bit, if `skipped` is true.

    Fused optimizers look at the flag on the device: their kernels take a `found_inf`, which is how torch's GradScaler
    leaves steps out. For all others it is read on the host, which waits for the device. So it is in the first step of
    any parameter: SGD only reserves its momentum then, and a skipped step would leave in it what the memory held.

    Args:
        skipped: a bool, where the parameters are.
        optimizer: the one that steps.
        step: makes its step.
    """
    if not (_takes_found_inf(optimizer) and _knows_all(optimizer)):
        if not skipped.item():
            step()
        return
    optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
    try:
        step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


def _knows_all(optimizer: Optimizer) -> bool:
    """Whether every parameter that has a gradient was in a step before."""
    parameters = (one for group in optimizer.param_groups for one in group["params"] if one.grad is not None)
    return all(optimizer.state.get(one) for one in parameters)


def _takes_found_inf(optimizer: Optimizer) -> bool:
    """Whether its kernels do. Loading a state may have replaced `fused` in the groups."""
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and getattr(optimizer, "_step_supports_amp_scaling", False)

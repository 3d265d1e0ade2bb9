"""LARS (You et al., arXiv 1708.03888) as MoCo v3 and the linear probe of MAE use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """Momentum, with the gradient of each matrix scaled to `trust` × its weights' norm; vectors are left as they are.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        weight_decay: added to the gradients of matrices before the scaling.
        momentum: share of the last step that is kept.
        trust: ratio of the update's norm to the weights'.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._scaled(parameter, parameter.grad, group)
                    state = self.state[parameter]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].mul_(group["momentum"]).add_(update)
                    parameter.add_(state["momentum"], alpha=-group["lr"])

    @staticmethod
    def _scaled(parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        if parameter.ndim <= 1:
            return gradient
        gradient = gradient + group["weight_decay"] * parameter
        norms = parameter.norm(), gradient.norm()
        ratio = group["trust"] * norms[0] / norms[1]
        return gradient * torch.where((norms[0] > 0) & (norms[1] > 0), ratio, 1.0)

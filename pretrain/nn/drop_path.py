"""Drop path: residual branches that are left out at random (Huang et al., "Stochastic depth", arXiv 1603.09382).

In the original's form every sample decides for itself. Here its decision is drawn from (seed, number of the sample,
block, branch), so it is the same in any batch, on any rank and after any restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pretrain.random import Purpose, uniform
from pretrain.records import Problem, Randomness

Mode = Literal["sample", "subset"]


class DropPath(nn.Module):
    """The two residual branches of one block, left out for some samples while training.

    Args:
        rate: probability of leaving a branch out.
        mode: `sample`: each sample decides for itself, and all are computed. `subset`: a branch is computed for a
            fixed share of the micro-batch alone, B·(1 − rate) samples rounded, but at least one (after DINOv2, arXiv
            2304.07193, §5), which saves its work, is equal in expectation, and depends on who else is in the
            micro-batch.
    """

    def __init__(self, rate: float = 0.0, mode: Mode = "sample") -> None:
        super().__init__()
        self.rate = rate
        self.mode = mode

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor], inputs: Tensor, draw: Tensor | None) -> Tensor:
        """x + branch(inputs), with the branch of a sample left out or scaled up so that the mean stays.

        Args:
            x: [B, …], what the branch is added to.
            branch: takes rows of `inputs` and gives rows like those of `x`.
            inputs: [B, …].
            draw: [B], uniform in [0, 1); None leaves nothing out.
        """
        if draw is None or self.rate == 0:
            return x + branch(inputs)
        if self.mode == "sample":
            keep = (draw >= self.rate).view(-1, *[1] * (x.ndim - 1))
            return x + torch.where(keep, branch(inputs) * (1 / (1 - self.rate)), 0)
        kept = max(1, round(len(draw) * (1 - self.rate)))
        ids = draw.argsort(descending=True, stable=True)[:kept]
        return x.index_add(0, ids, branch(inputs[ids]).to(x.dtype), alpha=len(draw) / kept)


def drop_paths(rate: float, mode: Mode, depth: int) -> list[DropPath]:
    """One for each block: rates grow evenly from 0 at the first block to `rate` at the last, as in the originals."""
    return [DropPath(one, mode) for one in torch.linspace(0, rate, depth, dtype=torch.float64, device="cpu").tolist()]


def draws(rate: float, depth: int, randomness: Randomness | None) -> Tensor | None:
    """The draws of a forward pass while training, [B, depth, 2]: two branches a block. None if nothing is dropped.

    Raises:
        ValueError: there is something to draw, but not what draws are keyed by.
    """
    if rate == 0:
        return None
    if randomness is None:
        raise ValueError(f"drop_path={rate} while training needs `randomness`; use .eval() to compute without")
    return uniform(randomness.seed, Purpose.DROP_PATH, randomness.number, 2 * depth).unflatten(1, (depth, 2))


def drop_path_problems(drop_path: float, drop_path_mode: str) -> Iterator[Problem]:
    """What is wrong with an encoder's `drop_path` and `drop_path_mode`."""
    if not 0 <= drop_path < 1:
        yield "drop_path", "must be at least 0 and below 1"
    if drop_path_mode not in get_args(Mode):
        yield "drop_path_mode", f"must be one of {', '.join(get_args(Mode))}"


def drop_path_notes(rate: float, mode: Mode) -> tuple[str, ...]:
    """What a user has to know before a run starts."""
    if rate == 0 or mode == "sample":
        return ()
    return (
        "drop_path_mode=subset: which samples a block leaves out depends on the micro-batch; other devices or another "
        "max_micro_batch_size give another run",
    )

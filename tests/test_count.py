"""Operations are counted as torch's own counter counts them."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pretrain import count
from pretrain.assemble import objective_of
from pretrain.config.overrides import composed
from pretrain.count import operations
from pretrain.plan import empty_batch
from pretrain.records import Progress
from tests.job import DINO, HIERA, SMALL


@pytest.mark.parametrize("words", [SMALL, HIERA, DINO], ids=["ViT", "Hiera", "DINO"])
def test_it_counts_what_torch_counts(words: list[str]) -> None:
    objective = objective_of(composed(words))
    batch = empty_batch((view.count, len(view.mean), *view.height_width) for view in objective.views)
    theirs = FlopCounterMode(display=False)
    with theirs:
        objective(batch, Progress(0, 1, 1)).loss.sum().backward()
    assert operations(lambda: objective(batch, Progress(0, 1, 1)).loss) == theirs.get_total_flops() > 0


def test_what_has_values_is_computed_anew() -> None:
    """On the CPU two calls with the same shapes give other values, on which the next shapes may depend."""
    weights = nn.Parameter(torch.empty(4, 4, device="meta"))

    def forward() -> torch.Tensor:
        rows = [int(torch.tensor([number, 1]).sum()) for number in (1, 2)]
        return sum((torch.empty(one, 4, device="meta") @ weights for one in rows), torch.zeros((), device="meta")).sum()  # type: ignore[return-value]

    with pytest.raises(RuntimeError, match="2"):  # 2 rows and 3 do not add up
        operations(forward)


def test_the_compiler_is_there_for_whoever_asks_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo as compiler

    monkeypatch.delitem(sys.modules, "torch._dynamo")
    monkeypatch.setattr(count.importlib, "import_module", lambda name: compiler)
    with count._without_compiler():
        stand_in = sys.modules["torch._dynamo"]
        assert stand_in.disable(forward := lambda: 1) is forward
        assert "torch._dynamo" in sys.modules
        assert stand_in.config is compiler.config
    assert "torch._dynamo" not in sys.modules

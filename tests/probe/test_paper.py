"""The paper's protocol: its schedule, its head, and that it learns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pretrain.optim.lars import LARS
from pretrain.probe import paper


def stream(dim: int, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        labels = torch.randint(0, 4, (batch,), generator=generator)
        features = torch.nn.functional.one_hot(labels, dim) * 3.0 + torch.randn(batch, dim, generator=generator)
        yield features * 0.01 + 5, labels  # badly scaled: the normalisation has to do its work


def test_it_learns() -> None:
    head = paper.Head(8, 4, seed=0)
    losses = list(paper.fit(head, stream(8, 128), 256, steps_per_epoch=10, epochs=60, warmup_epochs=2, base_lr=20.0))
    assert len(losses) == 600
    assert losses[0] == pytest.approx(1.386, abs=0.05)  # ln 4
    assert losses[-1] < losses[0] / 2
    features, labels = next(stream(8, 1000))
    assert paper.accuracy(head, features, labels) > 0.95


def test_head_is_the_published_one() -> None:
    head = paper.Head(1000, 100, seed=1)
    assert head.norm.eps == 1e-6
    assert not list(head.norm.parameters())
    assert head.linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert (head.linear.bias == 0).all()
    assert torch.equal(head.linear.weight, paper.Head(1000, 100, seed=1).linear.weight)


def test_rates_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = LARS.step
    monkeypatch.setattr(LARS, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1])
    head = paper.Head(4, 4, seed=0)
    list(paper.fit(head, stream(4, 512), 1024, steps_per_epoch=2))
    assert len(rates) == 180
    peak = 0.1 * 1024 / 256
    assert rates[0] == 0
    assert rates[10] == pytest.approx(peak / 2)
    assert rates[20] == pytest.approx(peak)
    assert rates[100] == pytest.approx(peak / 2)

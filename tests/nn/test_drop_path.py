"""Drop path: decisions belong to samples, the mean stays, and `subset` computes what it says alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pretrain.nn.drop_path import DropPath, Mode, draws, drop_path_notes, drop_paths
from pretrain.records import Randomness


def test_rates_grow_evenly_to_the_last_block() -> None:
    assert [round(one.rate, 6) for one in drop_paths(0.3, "sample", 4)] == [0.0, 0.1, 0.2, 0.3]
    assert [one.rate for one in drop_paths(0.3, "sample", 1)] == [0.0]
    assert drop_paths(0.2, "sample", 5)[-1].rate == 0.2  # to the last bit: a share of it is counted


def test_a_decision_depends_on_seed_number_block_and_branch_alone() -> None:
    numbers = torch.tensor([5, 2**40 + 1, 7])
    together = draws(0.5, 3, Randomness(9, numbers))
    assert together is not None
    assert together.shape == (3, 3, 2)
    alone = draws(0.5, 3, Randomness(9, numbers[1:2]))
    assert alone is not None
    assert torch.equal(together[1], alone[0])
    assert len(together.unique()) == together.numel()  # no two blocks, branches or samples share a draw
    other = draws(0.5, 3, Randomness(10, numbers))
    assert other is not None
    assert not torch.equal(together, other)


def test_without_a_rate_nothing_is_drawn_and_without_keys_it_is_refused() -> None:
    assert draws(0.0, 3, None) is None
    with pytest.raises(ValueError, match=r"drop_path=0.1 while training needs `randomness`; use \.eval\(\)"):
        draws(0.1, 3, None)


def test_a_kept_sample_is_scaled_and_a_dropped_one_left_alone() -> None:
    drop, x = DropPath(0.25), torch.ones(3, 2, 4)
    out = drop(x, lambda rows: 3 * rows, x, torch.tensor([0.24, 0.25, 0.9]))
    assert torch.equal(out[:, 0, 0], torch.tensor([1.0, 5.0, 5.0]))  # 1 + 3 / 0.75
    assert torch.equal(drop(x, lambda rows: 3 * rows, x, None), 4 * x)


@pytest.mark.parametrize("mode", ["sample", "subset"])
def test_the_mean_over_draws_is_what_no_dropping_gives(mode: Mode) -> None:
    drop, x = DropPath(0.3, mode), torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    drawn = draws(0.3, 1, Randomness(0, torch.arange(10 * 3000)))
    assert drawn is not None
    outs = [drop(x, lambda rows: rows.square() + 1, x, draw) for draw in drawn[:, 0, 0].view(3000, 10)]
    expected = x + x.square() + 1
    error = (torch.stack(outs).mean(0) - expected).abs() / (expected - x)
    assert error.max() < 0.06  # a branch is there or not: σ of the mean is √(0.3 / 0.7 / 3000) = 0.012; five of them


def test_subset_computes_its_share_of_the_samples_alone() -> None:
    seen: list[int] = []

    def branch(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return rows

    x, draw = torch.ones(10, 3), torch.arange(10) / 10
    out = DropPath(0.3, "subset")(x, branch, x, draw)
    assert seen == [7]
    assert torch.equal(out[:3], x[:3])  # those of the least draws are left out
    torch.testing.assert_close(out[3:], x[3:] * (1 + 10 / 7))
    DropPath(0.9, "subset")(x[:1], branch, x[:1], draw[:1])
    assert seen == [7, 1]  # never none at all
    DropPath(0.2, "subset")(x, branch, x, draw)
    DropPath(0.01, "subset")(x, branch, x, draw)
    assert seen == [7, 1, 8, 10]  # the nearest share: little is not more than asked for


def test_gradients_reach_kept_samples_alone() -> None:
    inputs = torch.ones(4, 2, requires_grad=True)
    out = DropPath(0.5, "subset")(torch.zeros(4, 2), torch.exp, inputs, torch.tensor([0.1, 0.8, 0.2, 0.9]))
    out.sum().backward()
    assert inputs.grad is not None
    assert (inputs.grad.abs().sum(1) > 0).tolist() == [False, True, False, True]


def test_the_note_says_what_depends_on_the_micro_batch() -> None:
    assert drop_path_notes(0.2, "sample") == drop_path_notes(0.0, "subset") == ()
    assert "depends on the micro-batch" in drop_path_notes(0.2, "subset")[0]


def test_a_kept_branch_is_scaled_exactly_in_half_precision_too() -> None:
    x = torch.zeros(2, 1, dtype=torch.bfloat16)
    out = DropPath(0.1)(x, lambda rows: torch.full((2, 1), 9.0), x, torch.tensor([0.05, 0.5]))
    assert out.flatten().tolist() == pytest.approx([0.0, 10.0], rel=1e-6)

"""Rows of a tensor that several files hold."""

from __future__ import annotations

import pytest
import torch

from pretrain.trainer.pieces import Pieces

WHOLE = torch.arange(14.0).view(7, 2)
STORED = Pieces([7, 2], {6: WHOLE[6:], 0: WHOLE[:3], 3: WHOLE[3:6]})  # of three ranks, in any order


@pytest.mark.parametrize("wanted", [range(7), range(4), range(4, 7), range(2, 4), range(5, 6), range(7, 7)])
def test_any_rows_are_put_together(wanted: range) -> None:
    assert torch.equal(STORED.rows(wanted), WHOLE[wanted.start : wanted.stop])


def test_the_whole_is_all_rows() -> None:
    assert torch.equal(STORED.whole(), WHOLE)


def test_missing_rows_are_no_answer() -> None:
    with pytest.raises(ValueError, match=r"rows 2 to 7 of a tensor of shape \[7, 2\] are not all there"):
        Pieces([7, 2], {0: WHOLE[:3], 6: WHOLE[6:]}).rows(range(2, 7))

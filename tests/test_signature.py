"""Which values a type hint admits."""

from __future__ import annotations

from typing import Any

import pytest

from pretrain.signature import matches


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, float, True),
        (True, int, False),
        ("3", int, False),
        (None, int | None, True),
        ([1, 2.5], tuple[float, float], True),
        (["a"], list[float], False),
        (3, list[int], False),
        ({"_target_": "pretrain.data.order.Shuffle"}, int, False),
    ],
)
def test_values_match_their_hints(value: Any, hint: Any, expected: bool) -> None:
    assert matches(value, hint) is expected

"""Which values a type hint admits."""

from __future__ import annotations

from typing import Any

import pytest

from pretrain.config.signature import locate, matches


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
        ({"_target_": "pretrain.data.stream.order.Shuffle"}, int, False),
    ],
)
def test_values_match_their_hints(value: Any, hint: Any, expected: bool) -> None:
    assert matches(value, hint) is expected


@pytest.mark.parametrize(
    ("dotted", "reason"),
    [
        ("pretrain.data.store.source.Path", "is a class of pathlib"),
        ("torch.hub.Request", "is a class of urllib.request"),
        ("torch.utils.data.DataLoader", "is none of the classes of torch that may be built"),
        ("torch.package.PackageImporter", "is none of the classes of torch"),
        ("torch.optim.lr_scheduler.LambdaLR", "is none of the classes of torch"),
        ("lightning.pytorch.Trainer", "is none of the classes of lightning"),
        ("torch.hub.load", "is no class"),
        ("os.system", "is outside what may be built"),
        ("torch.optim.AdamW", ""),
        ("torch.nn.LayerNorm", ""),
        ("lightning.pytorch.callbacks.DeviceStatsMonitor", ""),
    ],
)
def test_what_a_target_may_name(dotted: str, reason: str) -> None:
    found, said = locate(dotted)
    assert said.startswith(reason)
    assert (found is None) == bool(reason)

"""The benchmark of the data: its baselines are the official recipes, and what it calls alike is alike."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.assemble import objective_of
from pretrain.config.overrides import composed
from pretrain.view import crop
from tests.scripts import loaded

pytest.importorskip("torchvision")


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return loaded("bench_data")


def photograph() -> bytes:
    """Of 900 × 720 pixels, with details of six: a crop has to be made smaller, and to be made smoother for it."""
    coarse = np.random.default_rng(0).integers(256, size=(120, 150, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((900, 720), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.mark.parametrize(("name", "recipe"), [("MAE", "mae_vitb"), ("DINO", "dino_vits16")])
def test_views_are_those_of_the_recipes(bench: dict[str, Any], name: str, recipe: str) -> None:
    views = objective_of(composed([f"+experiment={recipe}"])).views
    for ours, theirs in zip(bench[name], views, strict=True):
        assert (ours.size, ours.count, ours.colors) == (theirs.size, theirs.count, theirs.colors)
        assert (tuple(ours.scale), ours.interpolation) == (tuple(theirs.scale), theirs.interpolation)


def test_baselines_make_the_official_views(bench: dict[str, Any]) -> None:
    """Of black, which no change of colour changes, so that only the normalisation is left to see."""
    black = Image.new("RGB", (300, 240))
    views = [bench["official_mae"]()(black), *bench["official_dino"]()(black)]
    assert [tuple(view.shape) for view in views] == [(3, 224, 224)] * 3 + [(3, 96, 96)] * 8
    least = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])[:, None, None]
    for view in views:
        torch.testing.assert_close(view, least.expand_as(view))


def test_likeness_is_that_to_pillow(bench: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    alike = list(bench["likeness"](photograph(), 0, bench["DINO"]))
    assert len(alike) == 10
    assert min(alike) > 50
    resize = crop.F.interpolate
    monkeypatch.setattr(crop.F, "interpolate", lambda image, **named: resize(image, **named | {"antialias": False}))
    assert min(bench["likeness"](photograph(), 0, bench["DINO"])) < 45

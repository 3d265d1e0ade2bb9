"""Views of other numbers than 8-bit colours: cut in float, kept in the files' type, normalised by their own scale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain.config.check import check_nodes
from pretrain.encoder.vit import ViT
from pretrain.objective.dino import DINO
from pretrain.objective.dino_head import DINOHead
from pretrain.objective.picture import colours
from pretrain.records import Batch
from pretrain.view.color import Prepare
from pretrain.view.crop import Box, crop
from pretrain.view.spec import Colors, ViewSpec

FIVE: dict[str, Any] = {"mean": (0.1, 0.2, 0.3, 0.4, 0.5), "std": (0.5, 0.4, 0.3, 0.2, 0.1)}
TYPES = ("uint8", "uint16", "int16", "float16", "float32")


@pytest.mark.parametrize("pixels", TYPES)
def test_crops_are_resized_in_float_and_keep_their_type(pixels: Any) -> None:
    """Edges overshoot in a bicubic resize: integers end at the limits of their type, as colours do."""
    numbers = np.random.default_rng(0).integers(0, 2, (40, 50, 5))
    low, high = (np.iinfo(pixels).min, np.iinfo(pixels).max) if "int" in pixels else (-1, 1)
    image = np.where(numbers > 0, high, low).astype(pixels)
    spec, box = ViewSpec(16, pixels=pixels, **FIVE), Box(3, 5, 30, 41)
    view = crop(image, box, spec)
    assert view.shape == (5, 16, 16)
    assert view.dtype == spec.dtype == getattr(torch, pixels)
    inside = torch.from_numpy(image[3:33, 5:46].astype(np.float32)).permute(2, 0, 1)[None]
    exact = F.interpolate(inside, size=(16, 16), mode="bicubic", antialias=True)[0]
    expected = exact.round().clamp(float(low), float(high)) if "int" in pixels else exact
    tolerance = {"float16": 2e-3, "float32": 1e-6, "uint8": 16}.get(pixels, 0)  # torch rounds between the axes
    assert (view.float() - expected).abs().max() <= tolerance
    if "int" in pixels:
        assert exact.max() > high
        assert view.float().max() == high
    whole = crop(image[:16, :16], Box(0, 0, 16, 16), spec)
    assert np.array_equal(whole.permute(1, 2, 0).numpy(), image[:16, :16])  # what is not resized is not touched


def batch_of(spec: ViewSpec, count: int = 64) -> Batch:
    numbers = np.random.default_rng(0).integers(0, 100, (spec.count, count, *spec.height_width, spec.channels))
    name = "uint8" if spec.pixels == "rgb" else spec.pixels
    views = torch.from_numpy(numbers.astype(name)).permute(0, 1, 4, 2, 3)
    return Batch((views,), torch.arange(count), torch.zeros(count), [""] * count, seed=3)


@pytest.mark.parametrize("pixels", TYPES)
def test_views_are_normalised_by_their_own_scale_and_flipped(pixels: Any) -> None:
    spec = ViewSpec(6, count=2, pixels=pixels, full_scale=50, **FIVE)
    batch = batch_of(spec)
    plain = Prepare([spec], augment=False)(batch).views[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    torch.testing.assert_close(plain, (batch.views[0].float() / 50 - mean) / std, atol=1e-5, rtol=1e-5)
    moved = Prepare([spec])(batch).views[0]
    flipped = (moved == plain.flip(-1)).flatten(2).all(2)
    assert ((moved == plain).flatten(2).all(2) ^ flipped).all()
    assert 40 < flipped.sum() < 88  # of 128
    same = Prepare([ViewSpec(6, count=2)])(batch_of(ViewSpec(6, count=2))).g  # keyed alike
    assert torch.equal(same, batch.g)


def test_blur_is_for_any_channels() -> None:
    """Of a constant it is nothing, and it is the same for a channel whatever lies beside it."""
    colors = Colors(jitter=0, grayscale=0, blur=1.0, blur_sigma=(1.5, 1.5))
    spec = ViewSpec(12, pixels="uint16", full_scale=1000, flip=0, colors=colors, **FIVE)
    batch = batch_of(spec, 4)
    batch.views[0][0, 0] = 700
    five = Prepare([spec])(batch).views[0]
    plain = Prepare([spec], augment=False)(batch).views[0]
    torch.testing.assert_close(five[0, 0], plain[0, 0], atol=1e-5, rtol=1e-5)
    assert (five[0, 1].std((1, 2)) < 0.5 * plain[0, 1].std((1, 2))).all()
    for channel in range(5):
        alone = replace(spec, mean=FIVE["mean"][channel : channel + 1], std=FIVE["std"][channel : channel + 1])
        view = replace(batch, views=(batch.views[0][:, :, channel : channel + 1],))
        torch.testing.assert_close(Prepare([alone])(view).views[0][:, :, 0], five[:, :, channel], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": [0.5] * 4, "std": [0.5] * 4}, "must be three numbers, for red, green and blue; images of other"),
        ({"pixels": "uint16", "mean": [0.5] * 4}, "and `std` must have a number for each channel"),
        ({"pixels": "uint16", "mean": [], "std": []}, "must have a number for each channel"),
        ({"pixels": "int8"}, "pixels=int8: must be "),
        ({"pixels": "uint16", "full_scale": 0}, "must be positive: the number that counts as 1"),
        ({"full_scale": 65535}, "is 255 where `pixels` is rgb"),
        ({"pixels": "uint8", "colors": {"_target_": "pretrain.view.spec.Colors"}}, "defined for RGB alone"),
        (
            {"pixels": "uint8", "colors": {"_target_": "pretrain.view.spec.Colors", "jitter": 0, "solarize": [0.1]}},
            "solarize",
        ),
    ],
)
def test_numbers_that_cannot_be_are_refused(arguments: dict[str, Any], message: str) -> None:
    (line, *_) = check_nodes({"view": {"_target_": "pretrain.view.spec.ViewSpec", "size": 8} | arguments})
    assert message in line
    if "colors" not in arguments and "int8" not in arguments.values():
        with pytest.raises(ValueError, match="ViewSpec"):
            ViewSpec(8, **arguments)


def test_allowed_changes_of_other_numbers_are_not_refused() -> None:
    colors = {"_target_": "pretrain.view.spec.Colors", "jitter": 0, "grayscale": 0, "blur": 0.5, "solarize": 0}
    view = {
        "_target_": "pretrain.view.spec.ViewSpec",
        "size": 8,
        "pixels": "float32",
        "full_scale": 1,
        "colors": colors,
    }
    assert check_nodes({"view": view | {"mean": [0.5] * 13, "std": [0.1] * 13}}) == []


def test_all_views_of_dino_are_of_the_same_numbers() -> None:
    encoder = ViT(img_size=16, patch_size=4, in_chans=5, embed_dim=12, depth=1, num_heads=2)
    whole = ViewSpec(16, count=2, pixels="uint16", full_scale=1000, **FIVE)
    DINO(encoder, DINOHead, whole, replace(whole, size=8))
    for other in ({"pixels": "int16"}, {"full_scale": 10.0}):
        with pytest.raises(ValueError, match=r"objective.local_view.pixels=.*all views of a sample are of the same"):
            DINO(encoder, DINOHead, whole, replace(whole, size=8, **other))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"objective.global_view.mean: 3 channels, but encoder.in_chans=5"):
        DINO(encoder, DINOHead, ViewSpec(16, count=2))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_pictures_show_three_channels_or_the_first_as_grey(channels: int) -> None:
    mean, std = ([value / 10 for value in range(1, channels + 1)] for _ in range(2))
    spec = ViewSpec(4, pixels="uint16", full_scale=1000, mean=mean, std=std)
    images = torch.rand(2, channels, 4, 4)
    shown = colours(images, spec)
    assert shown.shape == (2, 3, 4, 4)
    for place in range(3):
        own = place if channels >= 3 else 0
        expected = (images[:, own] * std[own] + mean[own]) * 255
        torch.testing.assert_close(shown[:, place].float(), expected.round().clamp(0, 255))

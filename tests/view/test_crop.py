"""Crops: torchvision's distribution, Pillow's pixels."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.view.crop import Box, central_box, crop, draws, random_box
from pretrain.view.decode import decode
from pretrain.view.spec import ViewSpec

SPEC = ViewSpec(224)


def boxes(height: int, width: int, spec: ViewSpec, count: int) -> np.ndarray:
    numbers = draws(0, torch.arange(count), [spec])[:, 0]
    return np.array([random_box(row, height, width, spec) for row in numbers])


def test_boxes_lie_inside_and_have_the_stated_areas_and_aspects() -> None:
    found = boxes(300, 400, SPEC, 2000)
    top, left, height, width = found.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    share = height * width / (300 * 400)
    assert 0.19 < share.min() < 0.22
    assert share.max() > 0.9
    assert (np.abs(np.log(width / height)) < np.log(4 / 3) + 0.02).all()
    assert (top == 0).any()
    assert (top + height == 300).any()


def test_distribution_is_torchvisions() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    torch.manual_seed(0)
    image = torch.zeros(3, 300, 400)
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = boxes(300, 400, SPEC, 4000)
    for column in range(4):
        quantiles = np.linspace(0.05, 0.95, 10)
        a, b = (np.quantile(values[:, column], quantiles) for values in (ours, theirs))
        assert np.abs(a - b).max() < 12  # pixels: 4000 draws place a quantile to about 1 %


def test_an_image_that_no_attempt_fits_gets_a_central_box() -> None:
    assert random_box(np.full(22, 0.999), 10, 400, SPEC) == Box(0, 193, 10, 13)
    assert random_box(np.full(22, 0.5), 1, 1, SPEC) == Box(0, 0, 1, 1)


def test_draws_are_the_samples_own() -> None:
    specs = [ViewSpec(224), ViewSpec(96, count=3)]
    g = torch.arange(5)
    together = draws(1, g, specs)
    assert together.shape == (5, 4, 22)
    assert np.array_equal(draws(1, g[3:4], specs)[0], together[3])


@pytest.mark.parametrize(("height", "width"), [(256, 256), (300, 400), (500, 333)])
def test_central_box_is_resize_then_centre_crop(height: int, width: int) -> None:
    """224 / 0.875 = 256: torchvision's Resize(256) and CenterCrop(224), in source pixels."""
    box = central_box(height, width, SPEC)
    scale = min(height, width) / 256
    assert abs(box.height - 224 * scale) <= 1
    assert abs(box.top - (height - 224 * scale) / 2) <= 1
    assert abs(box.left - (width - 224 * scale) / 2) <= 1
    assert central_box(32, 32, ViewSpec(32, crop_pct=1.0)) == Box(0, 0, 32, 32)


def test_a_crop_stays_channels_last_and_is_what_torch_makes_of_the_slice() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(90, 120, 3), dtype=np.uint8)
    spec = ViewSpec(32)
    resized = crop(pixels, Box(5, 7, 60, 80), spec)
    assert resized.permute(1, 2, 0).is_contiguous()
    plain = torch.from_numpy(pixels).permute(2, 0, 1)[None, :, 5:65, 7:87].clone(memory_format=torch.contiguous_format)
    assert torch.equal(resized, torch.nn.functional.interpolate(plain, (32, 32), mode="bicubic", antialias=True)[0])


def test_a_box_of_the_views_size_is_copied() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    view = crop(pixels, Box(3, 5, 16, 16), ViewSpec(16))
    assert np.array_equal(view.permute(1, 2, 0).numpy(), pixels[3:19, 5:21])


def test_resizing_equals_pillows_antialiased_bicubic(data_dir: Path) -> None:
    """On real photographs: ≥ 50 dB at the 5th percentile, that is, rounding."""
    quality = []
    with tarfile.open(data_dir / "photos" / "photos-000000.tar") as tar:
        photos = [tar.extractfile(info).read() for info in tar if info.name.endswith("jpg")]  # type: ignore[union-attr]
    numbers = draws(0, torch.arange(len(photos)), [SPEC])
    for data, row in zip(photos, numbers, strict=True):
        pixels = decode(data)
        box = random_box(row[0], *pixels.shape[:2], SPEC)
        ours = crop(pixels, box, SPEC).permute(1, 2, 0).numpy().astype(float)
        image = Image.open(io.BytesIO(data)).convert("RGB")
        image = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        theirs = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)).astype(float)
        quality.append(10 * np.log10(255**2 / max(1e-9, ((ours - theirs) ** 2).mean())))
    assert np.percentile(quality, 5) > 50

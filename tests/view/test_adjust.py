"""Colour operations on batches against torchvision's, image by image, and against what 8-bit images become.

Float tolerance: 1e-5. Both sides compute in float32 in another order of operations; four in a row, with factors up to
2, differ by 2e-6 at most on these images. An 8-bit image rounds after every operation: tolerances there are in levels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from pretrain.view import adjust

v2 = pytest.importorskip("torchvision.transforms.v2").functional

COUNT = 24
OURS = (adjust.brightness, adjust.contrast, adjust.saturation, adjust.hue)
THEIRS = (v2.adjust_brightness, v2.adjust_contrast, v2.adjust_saturation, v2.adjust_hue)
ORDERS = torch.tensor(list(itertools.permutations(range(4))))
CORNERS = torch.tensor(list(itertools.product([0.0, 128 / 255, 1.0], repeat=3)))  # [27, 3]: all ties between channels

exactly = {"atol": 0, "rtol": 0}
closely = {"atol": 1e-5, "rtol": 0}


def noise(count: int = COUNT, height: int = 20, width: int = 17) -> Tensor:
    """Levels of 8 bits, with ties between channels in the first pixels."""
    levels = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0)) / 255
    levels[:, :, 0, :17] = CORNERS.T[:, :17]
    levels[:, :, 1, :10] = CORNERS.T[:, 17:]
    return levels


def photos() -> Tensor:
    """Smooth images, whose neighbouring pixels are alike, as 8-bit levels: [24, 3, 40, 36]."""
    coarse = torch.rand(COUNT, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(coarse, size=(40, 36), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round() / 255


def factors(seed: int = 2) -> Tensor:
    """[24, 4]: up to 2, as strong as jitter can be, and any hue."""
    drawn = torch.rand(COUNT, 4, generator=torch.Generator().manual_seed(seed))
    drawn[0, :3], drawn[1, :3] = 0, 1
    return torch.cat([2 * drawn[:, :3], drawn[:, 3:] - 0.5], dim=1)


def bytes_of(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def pil(image: Tensor) -> Image.Image:
    return Image.fromarray(bytes_of(image).permute(1, 2, 0).numpy())


def levels_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("number", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_an_operation_of_jitter_is_torchvisions(number: int) -> None:
    images, parameters = noise(), factors()[:, number]
    expected = torch.stack([THEIRS[number](image, float(x)) for image, x in zip(images, parameters, strict=True)])
    before = images.clone()
    torch.testing.assert_close(OURS[number](images, parameters), expected, **closely)
    assert torch.equal(images, before)


@pytest.mark.parametrize("number", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_8_bit_images_differ_by_their_rounding(number: int) -> None:
    """torchvision and Pillow round down after each blend, 0.4 levels on average, and luma and its mean before it; ours
    does not, so that it does not darken. Pillow turns hue in HSV of 8 bits, in 256 steps.
    """
    images, parameters = photos(), factors()[:, number]
    ours = OURS[number](images, parameters)
    pairs = list(zip(images, parameters.tolist(), strict=True))
    of_bytes = torch.stack([THEIRS[number](bytes_of(image), x) for image, x in pairs])
    of_pillow = torch.stack([levels_of(THEIRS[number](pil(image), x)) for image, x in pairs])
    assert (ours - of_bytes / 255).abs().max() * 255 < (1.01, 1.6, 2.1, 1.1)[number]
    assert (ours - of_pillow).abs().max() * 255 < (1.01, 1.6, 1.6, 17)[number]
    assert (ours - of_bytes / 255).abs().mean() * 255 < (0.5, 0.6, 0.6, 0.2)[number]
    assert (ours - of_pillow).abs().mean() * 255 < (0.5, 0.6, 0.6, 1)[number]


def test_jitter_in_every_order_is_torchvisions_one_after_another() -> None:
    """All 24 orders in one batch."""
    images, parameters = noise(), factors()
    expected = []
    for image, row, order in zip(images, parameters.tolist(), ORDERS.tolist(), strict=True):
        for number in order:
            image = THEIRS[number](image, row[number])
        expected.append(image)
    before = images.clone()
    jittered = adjust.jitter(images, parameters, ORDERS)
    torch.testing.assert_close(jittered, torch.stack(expected), **closely)
    assert torch.equal(images, before)
    strong = torch.tensor([0.6, 1.8, 0.5, 0.2]).expand(COUNT, -1)
    alike = adjust.jitter(images[:1].expand_as(images), strong, ORDERS)
    assert len((alike * 1e4).round().flatten(1).unique(dim=0)) > 12  # the order matters, so the test can see it


def test_jitter_of_sorted_images_is_that_of_unsorted_ones() -> None:
    images, parameters = noise(), factors()
    place = torch.from_numpy(adjust.place_of_hue(ORDERS.numpy()))
    assert place[0] == 3  # brightness, contrast, saturation, hue
    sorting = place.argsort(stable=True)
    assert not torch.equal(sorting, torch.arange(COUNT))
    ordered, jittered = images[sorting], adjust.jitter(images, parameters, ORDERS)
    assert torch.equal(adjust.jitter(ordered, parameters[sorting], ORDERS[sorting]), jittered[sorting])
    assert torch.equal(ordered, images[sorting])


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    """Bit by bit, but for blur: products of matrices may add in another order in another batch."""
    images, parameters = noise(height=33, width=40), factors()
    sigma = parameters[:, 0] + 0.1
    some = torch.tensor([17, 3, 4])
    operations: list[Callable[[Tensor], Tensor]] = [
        lambda at: adjust.jitter(images[at], parameters[at], ORDERS[at]),
        lambda at: adjust.grayscale(images[at]),
        lambda at: adjust.solarize(images[at], 0.5),
        *(lambda at, n=n: OURS[n](images[at], parameters[at, n]) for n in range(4)),  # type: ignore[misc]
    ]
    everything = torch.arange(COUNT)
    for operation in operations:
        assert torch.equal(operation(everything)[some], operation(some))
    blurred = adjust.blur(images, sigma, 6)
    torch.testing.assert_close(adjust.blur(images[some], sigma[some], 6), blurred[some], atol=1e-6, rtol=0)


def test_gray_is_torchvisions() -> None:
    images = noise()
    gray = adjust.grayscale(images)
    assert gray.shape == images.shape
    torch.testing.assert_close(gray, v2.rgb_to_grayscale(images, num_output_channels=3), **closely)
    torch.testing.assert_close(adjust.gray(images), v2.rgb_to_grayscale(images), **closely)
    pillows = torch.stack([levels_of(v2.rgb_to_grayscale(pil(image), num_output_channels=3)) for image in images])
    assert (gray - pillows).abs().max() * 255 < 0.55  # half a level of rounding, and weights of four digits


def test_gray_images_stay_gray() -> None:
    """Under all but brightness and contrast they also stay themselves. torchvision's weights add up to 0.9999."""
    images = noise()[:, :1].expand(-1, 3, -1, -1).contiguous()
    parameters = factors()
    torch.testing.assert_close(adjust.grayscale(images), images, atol=1.01e-4, rtol=0)
    torch.testing.assert_close(adjust.saturation(images, parameters[:, 2]), images, atol=1.01e-4, rtol=0)
    torch.testing.assert_close(adjust.hue(images, parameters[:, 3]), images, **closely)
    jittered = adjust.jitter(images, parameters, ORDERS)
    torch.testing.assert_close(jittered, jittered.mean(1, keepdim=True).expand_as(jittered), **closely)


def test_what_changes_nothing() -> None:
    images, one, zero = noise(), torch.ones(COUNT), torch.zeros(COUNT)
    for operation in OURS[:3]:
        torch.testing.assert_close(operation(images, one), images, **exactly)
    torch.testing.assert_close(adjust.hue(images, zero), images, **closely)
    torch.testing.assert_close(adjust.hue(images, one), images, **closely)  # all the way round
    torch.testing.assert_close(adjust.blur(images, torch.full((COUNT,), 0.1), 6), images, atol=1e-20, rtol=0)
    torch.testing.assert_close(adjust.solarize(images, 1.5), images, **exactly)
    still = torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(COUNT, 4)
    torch.testing.assert_close(adjust.jitter(images, still, ORDERS), images, **closely)


def test_hue_turns_primaries_into_each_other() -> None:
    red, green, blue = torch.eye(3)[:, None, :, None, None]  # [1, 3, 1, 1] each
    third = torch.tensor([1 / 3])
    for before, after in ((red, green), (green, blue), (blue, red)):
        torch.testing.assert_close(adjust.hue(before, third), after, **closely)
    torch.testing.assert_close(adjust.hue(red, torch.tensor([0.5])), 1 - red, **closely)


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (40, 70), (96, 96), (5, 33), (1, 7)], ids=str)
def test_blur_is_torchvisions_with_each_images_own_sigma(size: tuple[int, int]) -> None:
    """Sides below the radius shorten the kernel; sides above 32 are blurred in blocks."""
    images = torch.rand(6, 3, *size)
    sigma, radius = torch.tensor([0.1, 0.5, 0.9, 1.3, 2.0, 1.7]), 6
    kernel = [2 * min(radius, side - 1) + 1 for side in reversed(size)]  # width, height
    pairs = zip(images, sigma.tolist(), strict=True)
    expected = torch.stack([v2.gaussian_blur(image, kernel, [x, x]) for image, x in pairs])
    torch.testing.assert_close(adjust.blur(images, sigma, radius), expected, **closely)


def test_blur_is_nearly_pillows_in_the_middle() -> None:
    """Pillow takes three box filters for a Gaussian, and repeats the border instead of reflecting it."""
    images = photos()
    sigma = torch.linspace(0.5, 2, COUNT)
    ours = adjust.blur(images, sigma, 6)
    blurred = [pil(image).filter(ImageFilter.GaussianBlur(x)) for image, x in zip(images, sigma.tolist(), strict=True)]
    apart = (ours - torch.stack([levels_of(image) for image in blurred])).abs()[..., 6:-6, 6:-6] * 255
    assert apart.max() < 4
    assert apart.mean() < 0.5


def test_blur_keeps_what_is_even_and_the_variance_that_sigma_says() -> None:
    even = torch.full((2, 3, 50, 40), 0.7)
    torch.testing.assert_close(adjust.blur(even, torch.tensor([0.3, 2.0]), 6), even, **closely)
    point = torch.zeros(2, 3, 41, 41)
    point[:, :, 20, 20] = 1
    sigma = torch.tensor([1.0, 2.0])
    spread = adjust.blur(point, sigma, 20).sum(2)[:, 0] @ (torch.arange(41.0) - 20) ** 2
    torch.testing.assert_close(spread, sigma**2, atol=1e-3, rtol=0)


def test_blur_is_float32_under_autocast() -> None:
    images, sigma = noise(), factors()[:, 0] + 0.1
    with torch.autocast("cpu", torch.bfloat16):
        blurred = adjust.blur(images, sigma, 6)
    assert blurred.dtype == torch.float32
    assert torch.equal(blurred, adjust.blur(images, sigma, 6))


@pytest.mark.parametrize("threshold", [0, 128, 255])
def test_solarize_is_exact_on_8_bit_levels(threshold: int) -> None:
    levels = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    expected = v2.solarize(levels.to(torch.uint8), threshold)
    ours = adjust.solarize(levels / 255, threshold / 255)
    assert torch.equal((ours * 255).round().to(torch.uint8), expected)
    torch.testing.assert_close(ours, v2.solarize(levels / 255, threshold / 255), **exactly)


def test_values_stay_between_0_and_1() -> None:
    """A level of 1e-6 beyond, from rounding, is no harm: the next blend clamps it."""
    images, parameters = noise(), factors()
    for changed in (adjust.jitter(images, parameters, ORDERS), adjust.hue(images, parameters[:, 3])):
        assert changed.min() > -1e-6
        assert changed.max() < 1 + 1e-6
        assert math.isfinite(float(changed.sum()))

"""Patches: their order, their pixels, and the convolution that the projection stands for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pretrain.nn.mask_unit import token_ids
from pretrain.nn.patch import (
    OverlappingPatchEmbed,
    PatchEmbed,
    PixelOrder,
    grid_of,
    only_visible,
    patchify,
    unpatchify,
)


@pytest.mark.parametrize("order", ["chw", "hwc"])
def test_patchify_takes_each_pixel_from_its_place(order: PixelOrder) -> None:
    images = torch.randn(2, 3, 8, 12)
    patches = patchify(images, 4, order=order)
    for row in range(2):
        for column in range(3):
            square = images[1, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            expected = square if order == "chw" else square.permute(1, 2, 0)
            assert torch.equal(patches[1, 3 * row + column], expected.flatten())
    assert torch.equal(unpatchify(patches, (2, 3), 4, order), images)


def test_patchify_of_some_patches_is_some_of_all() -> None:
    images = torch.randn(2, 3, 8, 12)
    ids = torch.tensor([[5, 0], [1, 2]])
    expected = patchify(images, 4).gather(1, ids[..., None].expand(-1, -1, 48))
    assert torch.equal(patchify(images, 4, ids), expected)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(patchify(channels_last, 4, ids), expected)


def test_projection_is_the_convolution() -> None:
    images, embed = torch.randn(2, 3, 8, 12), PatchEmbed(4, 3, 10)
    expected = F.conv2d(images, embed.proj.weight, embed.proj.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(images), expected)


def test_images_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ValueError, match="9×8 pixels cannot be cut into squares of 4"):
        grid_of(torch.zeros(1, 3, 9, 8), 4)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(7, 4, 3), (3, 1, 1), (4, 4, 0), (5, 2, 2), (9, 4, 4)])
def test_visible_tokens_equal_a_convolution_of_the_image_without_its_masked_pixels(
    kernel: int, stride: int, padding: int
) -> None:
    """The original's way: the whole image, masked pixels set to zero. Every border of every unit is met."""
    embed = OverlappingPatchEmbed(kernel, stride, padding, in_chans=3, embed_dim=5)
    assert list(embed.problems(kernel, stride, padding)) == []
    unit, rows, columns = 2 * stride, 3, 4
    images = torch.randn(2, 3, rows * unit, columns * unit)
    for visible in [torch.tensor([[number], [11 - number]]) for number in range(12)] + [
        torch.stack([torch.randperm(12)[:5] for _ in range(2)]) for _ in range(5)
    ]:
        ids = token_ids(visible, columns, 2).flatten(1)
        shown = only_visible(images, visible, unit)
        expected = embed(shown).gather(1, ids[..., None].expand(-1, -1, 5))
        hidden = torch.where(only_visible(torch.ones_like(images), visible, unit) == 1, images, float("nan"))
        torch.testing.assert_close(embed.visible(hidden, visible, unit, ids), expected, rtol=1e-5, atol=1e-6)


def test_kernels_that_do_not_make_one_token_a_stride_are_refused() -> None:
    for kernel, stride, padding in [(7, 4, 1), (7, 4, 4), (3, 0, 1)]:
        assert len(list(OverlappingPatchEmbed.problems(kernel, stride, padding))) == 1
    assert list(OverlappingPatchEmbed.problems(2, 4, 0)) == []  # gaps between kernels: each token has its square

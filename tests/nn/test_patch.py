"""Patches: their order, their pixels, and the convolution that the projection stands for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pretrain.nn.patch import PatchEmbed, PixelOrder, grid_of, patchify, unpatchify


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

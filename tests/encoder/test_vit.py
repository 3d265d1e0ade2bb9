"""ViT: what it computes, what it must not look at, and its sizes."""

from __future__ import annotations

import pytest
import torch

from pretrain.encoder.vit import ViT
from pretrain.nn.drop_path import draws
from pretrain.records import Randomness


@pytest.fixture
def vit() -> ViT:
    return ViT(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3).eval()


def test_masked_pixels_cannot_alter_visible_latents(vit: ViT) -> None:
    torch.manual_seed(0)
    images, visible = torch.randn(2, 3, 16, 16, requires_grad=True), torch.tensor([[0, 5, 6], [15, 2, 9]])
    tokens = vit(images, visible)
    assert tokens.cls is not None
    # squares: the sum of what a norm gives out is a constant, and its gradient is rounding alone
    weights = torch.rand_like(tokens.patches)
    (gradient,) = torch.autograd.grad((weights * tokens.patches.square()).sum() + tokens.cls.pow(3).sum(), images)
    for sample in range(2):
        seen = gradient[sample].abs().sum(0).view(4, 4, 4, 4).sum((1, 3)).flatten() > 1e-4
        assert seen.nonzero().flatten().tolist() == sorted(visible[sample].tolist())
    changed = images.detach().clone()
    changed[0, :, 12:, 12:] = 1e6  # patch 15 of the first image is masked
    changed[0, :, 0:4, 4:8] = float("nan")  # and so is patch 1
    assert torch.equal(vit(changed, visible).patches[0], tokens.patches[0])


def test_visible_tokens_come_in_the_order_asked_for(vit: ViT) -> None:
    images, ids = torch.randn(1, 3, 16, 16), torch.tensor([[3, 14, 7]])
    tokens, turned = vit(images, ids), vit(images, ids.flip(1))
    torch.testing.assert_close(tokens.patches.flip(1), turned.patches)
    everything = vit(images, torch.arange(16)[None])
    torch.testing.assert_close(everything.patches, vit(images).patches)


def test_other_sizes_need_not_be_square(vit: ViT) -> None:
    tokens = vit(torch.randn(2, 3, 24, 8))
    assert tokens.grid == (6, 2)
    assert tokens.patches.shape == (2, 12, 24)


def test_feature_maps_are_those_of_the_chosen_blocks(vit: ViT) -> None:
    images = torch.randn(2, 3, 24, 8)
    first, last = vit.feature_maps(images, [0, -1])
    assert first.shape == last.shape == (2, 24, 6, 2)
    torch.testing.assert_close(vit.norm(last.flatten(2).transpose(1, 2)), vit(images).patches)
    even = ViT(img_size=16, patch_size=4, embed_dim=24, depth=8, num_heads=3).eval()
    for one, block in zip(even.feature_maps(images), (1, 3, 5, 7), strict=True):
        assert torch.equal(one, even.feature_maps(images, [block])[0])


def test_drop_path_is_drawn_for_each_sample_whatever_the_batch() -> None:
    vit = ViT(img_size=16, patch_size=4, embed_dim=24, depth=4, num_heads=3, drop_path=0.6).train()
    images, number = torch.randn(4, 3, 16, 16), torch.tensor([3, 8, 1, 2**41])
    together = vit(images, randomness=Randomness(5, number)).patches
    for sample in range(4):
        alone = vit(images[sample : sample + 1], randomness=Randomness(5, number[sample : sample + 1])).patches
        torch.testing.assert_close(together[sample : sample + 1], alone)
    again, other = vit.forward_views([images, images[:2]], [Randomness(5, number), Randomness(6, number[:2])])
    assert torch.equal(again.patches, together)
    assert not torch.allclose(other.patches, together[:2], atol=1e-3)
    with pytest.raises(ValueError, match=r"drop_path=0\.6 while training needs `randomness`"):
        vit(images)
    assert not torch.allclose(vit.eval()(images).patches, together, atol=1e-3)


def test_drop_path_reaches_every_branch_by_its_own_draw_and_rate() -> None:
    vit = ViT(img_size=16, patch_size=4, embed_dim=24, depth=4, num_heads=3, drop_path=0.6).train()
    images, randomness = torch.randn(6, 3, 16, 16), Randomness(11, torch.arange(6))
    drawn = draws(0.6, 4, randomness)
    assert drawn is not None
    x, _ = vit._embed(images, None)
    for number, block in enumerate(vit.blocks):
        share = 0.6 * number / 3
        keep = ((drawn[:, number] >= share) / (1 - share)).view(6, 2, 1, 1)
        x = x + keep[:, 0] * block.attn(block.norm1(x))
        x = x + keep[:, 1] * block.mlp(block.norm2(x))
    torch.testing.assert_close(vit(images, randomness=randomness).patches, vit.norm(x)[:, 1:])
    with pytest.raises(ValueError, match=r"there are no blocks \[4\]: the encoder has 4"):
        vit.feature_maps(images, [4])


def test_intermediate_ends_with_the_output(vit: ViT) -> None:
    images = torch.randn(2, 3, 16, 16)
    last, first = vit.intermediate(images, [-1, 0])
    torch.testing.assert_close(last.patches, vit(images).patches)
    assert not torch.equal(first.patches, last.patches)


def test_views_of_several_sizes(vit: ViT) -> None:
    views = [torch.randn(2, 3, 16, 16), torch.randn(3, 3, 8, 8)]
    tokens = vit.forward_views(views)
    assert [one.grid for one in tokens] == [(4, 4), (2, 2)]
    torch.testing.assert_close(tokens[1].patches, vit(views[1]).patches)


@pytest.mark.parametrize(
    ("millions", "sizes"),
    [
        (85.8, {}),
        (303.3, {"embed_dim": 1024, "depth": 24, "num_heads": 16}),
        (630.8, {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": 14}),
    ],
)
def test_parameter_counts_are_the_official_ones(millions: float, sizes: dict[str, int]) -> None:
    with torch.device("meta"):
        vit = ViT(**sizes)
    assert round(sum(parameter.numel() for parameter in vit.parameters()) / 1e6, 1) == millions
    assert len(vit.state_dict()) == {12: 150, 24: 294, 32: 390}[len(vit.blocks)]


def test_built_on_the_meta_device_it_gets_the_same_weights(vit: ViT) -> None:
    with torch.device("meta"):
        empty = ViT(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.to_empty(device="cpu")
    empty.init_weights(seed=0)
    vit.init_weights(seed=0)
    for name, value in vit.state_dict().items():
        assert torch.equal(empty.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 225}, "`img_size` must be a positive multiple of `patch_size` \\(=16\\)"),
        ({"num_heads": 7}, "`num_heads` must divide `embed_dim` \\(=768\\)"),
        ({"position": "relative"}, "`position` must be fixed or learned"),
        ({"img_size": [224]}, r"`img_size` must be one number or \[height, width\]"),
        ({"img_size": [224, 100]}, "`img_size` must be a positive multiple"),
        ({"img_size": 1, "num_heads": 5}, "num_heads.*; .*img_size"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_together(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViT(**arguments)

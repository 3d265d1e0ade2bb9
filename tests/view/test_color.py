"""What the device does to views: flips and numbers, each sample by its own key."""

from __future__ import annotations

from dataclasses import replace

import torch

from pretrain.records import Batch
from pretrain.view.color import Prepare
from pretrain.view.spec import ViewSpec


def batch(count: int, seed: int = 0) -> Batch:
    views = torch.randint(0, 256, (2, count, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Batch((views, views[:1]), torch.arange(count), torch.zeros(count), [""] * count, seed)


SPECS = [ViewSpec(4, count=2), ViewSpec(4, mean=(0.5,) * 3, std=(0.25,) * 3, flip=0.0)]


def test_pixels_are_normalised_as_torchvision_does() -> None:
    views = batch(5).views
    first, second = Prepare(SPECS, flip=False)(batch(5)).views
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SPECS[0].mean, SPECS[0].std))
    torch.testing.assert_close(first, (views[0].float() / 255 - mean) / std, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(second, (views[1].float() / 255 - 0.5) / 0.25, atol=1e-6, rtol=1e-6)


def test_half_of_the_views_are_flipped_each_by_its_own_draw() -> None:
    plain, flipped = Prepare(SPECS, flip=False)(batch(500)), Prepare(SPECS)(batch(500))
    turned = (plain.views[0] != flipped.views[0]).flatten(2).any(2)  # [V, B]
    assert torch.equal(flipped.views[0][turned], plain.views[0].flip(-1)[turned])
    assert (turned.float().mean(1) - 0.5).abs().max() < 0.1
    assert not torch.equal(turned[0], turned[1])
    assert torch.equal(plain.views[1], flipped.views[1])  # flip=0


def test_neighbours_do_not_matter() -> None:
    whole = batch(6)
    part = replace(whole, views=tuple(view[:, 3:4] for view in whole.views), g=whole.g[3:4])
    assert torch.equal(Prepare(SPECS)(part).views[0], Prepare(SPECS)(whole).views[0][:, 3:4])

"""Hiera: what it computes, what it must not look at, and its sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.assemble import instantiate
from pretrain.config.overrides import composed
from pretrain.encoder.hiera import Hiera
from pretrain.nn.drop_path import draws
from pretrain.nn.mask_unit import MaskUnitAttention, pool
from pretrain.records import Randomness
from tests.hiera import small


def units_seen(gradient: Tensor, unit: int) -> list[int]:
    """The mask units with a pixel that a gradient [C, H, W] reaches."""
    cells = gradient.abs().sum(0).unflatten(1, (-1, unit)).unflatten(0, (-1, unit))
    return (cells.sum((1, 3)).flatten() > 1e-6).nonzero().flatten().tolist()


@pytest.mark.parametrize("sizes", [{}, {"patch_kernel": 7, "patch_stride": 4, "patch_padding": 3, "img_size": 128}])
@pytest.mark.parametrize("options", [{"q_pool": 2, "multi_scale_fusion": True}, {"q_pool": 3}])
def test_masked_pixels_cannot_leak_over_any_border(sizes: dict[str, int], options: dict[str, Any]) -> None:
    """Kernels overlap the borders of units: for every unit, all its neighbours are masked and turned to NaN."""
    encoder = small(**sizes, **options)
    side = encoder.mask_unit
    torch.manual_seed(0)
    images = torch.randn(1, 3, *encoder.img_size)
    for unit in range(16):
        row, column = divmod(unit, 4)
        visible = torch.tensor([[unit, (unit + 7) % 16]])  # the other lies elsewhere: attention sees both
        kept = [divmod(one, 4) for one in visible[0].tolist()]
        others = torch.full_like(images, float("nan"))
        for row, column in kept:
            place = (..., slice(row * side, row * side + side), slice(column * side, column * side + side))
            others[place] = images[place]
        assert torch.equal(encoder(others, visible).patches, encoder(images, visible).patches)


def test_every_visible_unit_is_looked_at_and_no_other() -> None:
    encoder = small()
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    visible = torch.tensor([[0, 5, 6, 9], [15, 2, 8, 3]])
    tokens = encoder(images, visible).patches
    weights = torch.rand_like(tokens)
    (gradient,) = torch.autograd.grad((weights * tokens.square()).sum(), images)
    for sample in range(2):
        assert units_seen(gradient[sample], encoder.mask_unit) == sorted(visible[sample].tolist())


@pytest.mark.parametrize("options", [{"q_pool": 1}, {"q_pool": 2, "multi_scale_fusion": True}, {"q_pool": 3}])
def test_visible_units_come_in_the_order_asked_for(options: dict[str, Any]) -> None:
    encoder = small(**options)
    images, ids = torch.randn(1, 3, 64, 64), torch.tensor([[3, 14, 7]])
    unit = (encoder.mask_unit // encoder.token_size) ** 2
    tokens, turned = encoder(images, ids).patches, encoder(images, ids.flip(1)).patches
    torch.testing.assert_close(tokens.unflatten(1, (3, unit)).flip(1), turned.unflatten(1, (3, unit)))
    everything = encoder(images, torch.arange(16)[None]).patches.unflatten(1, (16, unit))
    whole = encoder(images)
    side = encoder.mask_unit // encoder.token_size
    assert whole.grid == (4 * side, 4 * side)
    rows = whole.patches.unflatten(1, (4, side, 4, side)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
    torch.testing.assert_close(everything, rows)


@pytest.mark.parametrize("windowed", [True, False])
@pytest.mark.parametrize("pooled", [True, False])
def test_attention_folded_into_the_batch_equals_the_plain_five_dimensional_one(windowed: bool, pooled: bool) -> None:
    """As the original and timm compute it: [B, heads, windows, tokens, d], by two products and a softmax."""
    attention = MaskUnitAttention(12, 24, num_heads=3, pooled=pooled, windowed=windowed)
    x = torch.randn(2, 5, 16, 12)
    q, k, v = attention.qkv(x).view(2, 5, 16, 3, 3, 8).permute(3, 0, 4, 1, 2, 5)  # [B, heads, units, tokens, d]
    if pooled:
        q = q.unflatten(3, (4, 4)).amax(dim=3)
    if not windowed:
        q, k, v = (one.flatten(2, 3)[:, :, None] for one in (q, k, v))
    out = ((q * 8**-0.5) @ k.transpose(-1, -2)).softmax(dim=-1) @ v
    expected = attention.proj(out.permute(0, 2, 3, 1, 4).reshape(2, 5, -1, 24))
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-6)  # float32 sums in other orders


def test_attention_reaches_a_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused kernels take four dimensions: five would silently fall back to the plain product."""
    seen: list[int] = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: (seen.append(q.ndim), fused(q, k, v))[1])
    small()(torch.randn(1, 3, 64, 64))
    assert seen == [4] * 5
    with torch.profiler.profile() as profile:
        small()(torch.randn(1, 3, 64, 64))
    names = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    assert "aten::_scaled_dot_product_attention_math" not in names


SIZES = [("tiny", 27.14, 55.0), ("small", 34.24, 62.1), ("base", 50.76, 78.6)]
SIZES += [("base_plus", 69.00, 97.6), ("large", 212.59, 242.9), ("huge", 670.73, 710.1)]


@pytest.mark.parametrize(("size", "alone", "with_decoder"), SIZES)
def test_parameter_counts_are_the_official_ones(size: str, alone: float, with_decoder: float) -> None:
    with torch.device("meta"):
        encoder = instantiate(composed([f"encoder=hiera_{size}"]).encoder)
        cfg = composed([f"+experiment=mae_hiera_{size}"])
        mae = instantiate(cfg.objective)(encoder=instantiate(cfg.encoder))
    assert all(parameter.is_meta for parameter in mae.parameters())
    assert round(sum(parameter.numel() for parameter in encoder.parameters()) / 1e6, 2) == alone
    assert round(sum(parameter.numel() for parameter in mae.parameters()) / 1e6, 1) == with_decoder
    if size == "tiny":
        assert len(encoder.state_dict()) == 157 - 2  # the classification head
        assert len(mae.state_dict()) == 263
    assert (encoder.mask_unit, encoder.token_size, mae.encoder.token_size) == (32, 32, 16)


def test_feature_maps_are_a_pyramid_and_need_not_be_square() -> None:
    encoder = small()
    images = torch.randn(2, 3, 48, 80)
    maps = encoder.feature_maps(images)
    assert [tuple(one.shape) for one in maps] == [(2, 8, 24, 40), (2, 16, 12, 20), (2, 32, 6, 10), (2, 64, 3, 5)]
    tokens = encoder(images)
    assert tokens.grid == (3, 5)
    torch.testing.assert_close(encoder.norm(maps[-1].flatten(2).transpose(1, 2)), tokens.patches)
    chosen = encoder.feature_maps(images, [-1, 0])
    assert torch.equal(chosen[0], maps[-1])
    assert torch.equal(chosen[1], maps[0])


def test_a_map_lies_where_the_image_has_it() -> None:
    """A bright square in one corner alters the first stage's map there alone."""
    encoder = small()
    images = torch.zeros(1, 3, 48, 80)
    bright = images.clone()
    bright[..., 20:24, 70:74] = 5.0
    change = (encoder.feature_maps(bright)[0] - encoder.feature_maps(images)[0]).abs().sum(1)[0]
    rows, columns = change.nonzero().unbind(1)
    assert {row // 8 for row in rows.tolist()} == {1}  # the unit of 8 × 8 tokens that holds the square
    assert {column // 8 for column in columns.tolist()} == {4}


def test_intermediate_takes_blocks_that_the_final_norm_fits() -> None:
    encoder = small(stages=(1, 1, 1, 2))
    images = torch.randn(1, 3, 64, 64)
    last, first = encoder.intermediate(images, [-1, 3])
    assert torch.equal(last.patches, encoder(images).patches)
    assert not torch.equal(first.patches, last.patches)
    with pytest.raises(ValueError, match=r"does not fit the tokens of blocks \[0\]: take blocks from 3 to 4"):
        encoder.intermediate(images, [0])


def test_fewer_poolings_leave_the_weights_as_they_are() -> None:
    pretraining, whole = small(q_pool=2, multi_scale_fusion=True), small(q_pool=3)
    assert pretraining.after_pretraining == {"q_pool": 3, "multi_scale_fusion": False}
    extra = pretraining.state_dict().keys() - whole.state_dict().keys()
    assert extra == {f"multi_scale_fusion_heads.{n}.{name}" for n in (0, 1) for name in ("weight", "bias")}
    shapes = {key: value.shape for key, value in whole.state_dict().items()}
    assert shapes == {key: value.shape for key, value in pretraining.state_dict().items() if key not in extra}


def test_fusion_is_the_strided_convolution_of_the_stages_ends() -> None:
    encoder = small(q_pool=2, multi_scale_fusion=True)
    images = torch.randn(2, 3, 64, 64)
    maps = encoder.feature_maps(images)
    fused = maps[-1] + sum(
        head(one)
        for head, one in zip(encoder.multi_scale_fusion_heads, maps, strict=False)  # the first two maps
    )
    expected = encoder.norm(fused.permute(0, 2, 3, 1)).flatten(1, 2)
    torch.testing.assert_close(encoder(images).patches, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", ["absolute", "absolute_window"])
def test_at_another_resolution_the_window_part_repeats_and_the_rest_is_stretched(position: str) -> None:
    encoder = small(position=position, global_pos_size=2)
    window, side = torch.randn(8, 8, 8), encoder.mask_unit_size
    with torch.no_grad():
        if position == "absolute":  # 4×4 windows, a repeated part and one that is constant in each quarter
            encoder.pos_embed.copy_(window.repeat(4, 4, 1).flatten(0, 1)[None])
        else:
            encoder.pos_embed.fill_(0.5)
            encoder.pos_embed_win.copy_(window.permute(2, 0, 1)[None])
    table = encoder._positions((3 * side, 5 * side)).unflatten(0, (3 * side, 5 * side))
    shift = 0.0 if position == "absolute" else 0.5
    torch.testing.assert_close(table, window.repeat(3, 5, 1) + shift, atol=1e-5, rtol=0)


def test_decay_spares_the_position_tables() -> None:
    assert small().no_decay() == {"pos_embed"}
    assert small(position="absolute_window").no_decay() == {"pos_embed", "pos_embed_win"}


def test_drop_path_is_drawn_for_each_sample_whatever_the_batch() -> None:
    encoder = small(drop_path=0.6).train()
    images, number = torch.randn(4, 3, 64, 64), torch.tensor([3, 8, 1, 2**41])
    together = encoder(images, randomness=Randomness(5, number)).patches
    for sample in range(4):
        alone = encoder(images[sample : sample + 1], randomness=Randomness(5, number[sample : sample + 1])).patches
        torch.testing.assert_close(together[sample : sample + 1], alone)
    assert not torch.allclose(together, encoder.eval()(images).patches, atol=1e-3)
    with pytest.raises(ValueError, match=r"drop_path=0\.6 while training needs `randomness`"):
        encoder.train()(images)


def test_drop_path_reaches_every_branch_by_its_own_draw_and_rate() -> None:
    """Block by block, written out: rates grow evenly; both branches, at the start of a stage too, have their draws."""
    encoder, rate = small(drop_path=0.6).train(), 0.6
    images, randomness = torch.randn(6, 3, 64, 64), Randomness(11, torch.arange(6))
    drawn = draws(rate, 5, randomness)
    assert drawn is not None
    x = encoder._embed(images, None)
    for number, block in enumerate(encoder.blocks):
        share = rate * number / 4
        keep = ((drawn[:, number] >= share) / (1 - share)).view(6, 2, 1, 1, 1)
        normed = block.norm1(x)
        shortcut = pool(block.proj(normed), int(block.attn.pooled)) if hasattr(block, "proj") else x
        x = shortcut + keep[:, 0] * block.attn(normed)
        x = x + keep[:, 1] * block.mlp(block.norm2(x))
    torch.testing.assert_close(encoder(images, randomness=randomness).patches, encoder._tokens(x, images, True).patches)
    other = encoder(images, randomness=Randomness(12, torch.arange(6))).patches
    assert not torch.allclose(other, encoder(images, randomness=randomness).patches, atol=1e-3)


def test_oblong_images_are_masked_in_place() -> None:
    """Shown as a whole or unit by unit, an image of 2 × 3 units gives the same tokens."""
    for options in ({"q_pool": 3}, {"q_pool": 2, "multi_scale_fusion": True}, {"position": "absolute_window"}):
        encoder = small(**options)
        images = torch.randn(2, 3, 32, 48)
        side, whole = encoder.mask_unit // encoder.token_size, encoder(images).patches
        units = whole.unflatten(1, (2, side, 3, side)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
        order = torch.tensor([[5, 0, 3, 1, 4, 2], [2, 4, 0, 5, 1, 3]])
        shown = encoder(images, order).patches.unflatten(1, (6, side * side))
        expected = units[torch.arange(2)[:, None], order]
        torch.testing.assert_close(shown, expected, rtol=1e-4, atol=1e-5)


def test_features_drop_nothing_and_know_their_blocks() -> None:
    encoder, images = small(drop_path=0.9), torch.randn(1, 3, 64, 64)
    still = encoder.feature_maps(images)
    moving = encoder.train().feature_maps(images)  # a head may be trained on it
    assert all(torch.equal(one, other) for one, other in zip(still, moving, strict=True))
    assert torch.equal(encoder.intermediate(images, [-1])[0].patches, encoder.eval()(images).patches)
    with pytest.raises(ValueError, match=r"there are no blocks \[5, -6\]: the encoder has 5, 0 to 4"):
        encoder.feature_maps(images, [0, 5, -6])


def test_images_in_any_memory_layout_are_taken() -> None:
    encoder, images, visible = small(), torch.randn(2, 3, 64, 64), torch.tensor([[0, 7], [3, 9]])
    turned = images.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(encoder(turned, visible).patches, encoder(images, visible).patches)


def test_subset_drop_path_says_what_it_depends_on() -> None:
    assert small(drop_path=0.2).notes == ()
    assert "depends on the micro-batch" in small(drop_path=0.2, drop_path_mode="subset").notes[0]
    encoder = small(drop_path=0.5, drop_path_mode="subset").train()
    out = encoder(torch.randn(5, 3, 64, 64), randomness=Randomness(0, torch.arange(5))).patches
    assert out.isfinite().all()


def test_built_on_the_meta_device_it_gets_the_same_weights() -> None:
    arguments: dict[str, Any] = {"img_size": 64, "embed_dim": 8, "stages": (1, 1, 1, 1), "q_pool": 2}
    arguments |= {"multi_scale_fusion": True}
    built = Hiera(**arguments)
    with torch.device("meta"):
        empty = Hiera(**arguments)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.to_empty(device="cpu")
    empty.init_weights(seed=0)
    for name, value in built.state_dict().items():
        assert torch.equal(empty.state_dict()[name], value), name


def test_initial_weights_are_distributed_as_the_originals() -> None:
    encoder = Hiera(img_size=128, embed_dim=64, stages=(1, 1, 1, 1), q_pool=2, multi_scale_fusion=True)
    for weight in (encoder.blocks[2].attn.qkv.weight, encoder.blocks[3].proj.weight, encoder.patch_embed.proj.weight):
        bound = (6 / (weight.shape[0] + weight[0].numel())) ** 0.5  # Xavier uniform
        assert 0.95 * bound < weight.abs().max() <= bound
        assert abs(weight.std().item() / (bound / 3**0.5) - 1) < 0.05
    assert abs(encoder.pos_embed.std().item() / 0.02 - 1) < 0.05
    for head in encoder.multi_scale_fusion_heads:  # left at torch's default for a convolution
        bound = head.weight[0].numel() ** -0.5
        assert 0.95 * bound < head.weight.abs().max() <= bound
        assert 0.9 * bound < head.bias.abs().max() <= bound
    for name, parameter in encoder.named_parameters():
        if name.endswith(".bias") and "fusion" not in name and "patch_embed" not in name:
            assert (parameter == 0).all(), name
        if "norm" in name and name.endswith(".weight"):
            assert (parameter == 1).all(), name


def test_pooling_takes_gradients_to_the_greatest_query() -> None:
    x = torch.tensor([1.0, 5.0, 2.0, 5.0], requires_grad=True)
    pool(x.view(1, 1, 4, 1)).sum().backward()
    assert x.grad is not None
    assert x.grad.sum() == 1  # of two that tie, one has it, as in the original


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 100}, r"`img_size` must be a positive multiple of a mask unit \(.* = 32\)"),
        ({"q_pool": 4}, r"`q_pool` must be at least 0 and below the number of `stages` \(=4\)"),
        ({"mask_unit_size": 4}, "`mask_unit_size` must be a multiple of 8, which 4 stages pool to 1"),
        ({"mask_unit_attn": [True]}, "`mask_unit_attn` must say true or false for each of the 4 `stages`"),
        ({"num_heads": 5}, r"`num_heads` must divide `embed_dim` \(=96\)"),
        ({"patch_padding": 1}, "`patch_padding` must make one token of `patch_stride`"),
        ({"patch_padding": -1}, "`patch_padding` must make one token of `patch_stride`"),
        ({"drop_path": 1.0}, "`drop_path` must be at least 0 and below 1"),
        ({"drop_path_mode": "batch"}, "`drop_path_mode` must be one of sample, subset"),
        ({"position": "relative"}, "`position` must be absolute or absolute_window"),
        ({"stages": [], "img_size": 5}, "img_size.*; .*stages"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_together(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hiera(**arguments)

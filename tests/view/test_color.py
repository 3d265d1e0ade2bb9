"""What the device does to views: flips, colours and numbers, each sample by its own key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.config.check import check_nodes
from pretrain.data.shard.index import open_index
from pretrain.data.stream.order import Order, Shuffle
from pretrain.data.stream.reader import BatchStream
from pretrain.data.stream.windows import Numbers
from pretrain.records import Batch
from pretrain.view import adjust, color
from pretrain.view.color import Draw, Prepare
from pretrain.view.spec import Colors, ViewSpec
from tests.data.shards import write_shards


def batch(count: int, seed: int = 0) -> Batch:
    views = torch.randint(0, 256, (2, count, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Batch((views, views[:1]), torch.arange(count), torch.zeros(count), [""] * count, seed)


def batch_for(specs: Sequence[ViewSpec], count: int, seed: int = 0) -> Batch:
    """Noise as the reader hands it over: channels last in memory."""
    generator, views = torch.Generator().manual_seed(0), []
    for spec in specs:
        pixels = torch.randint(0, 256, (spec.count, count, *spec.height_width, 3), generator=generator)
        views.append(pixels.to(torch.uint8).permute(0, 1, 4, 2, 3))
    return Batch(tuple(views), torch.arange(count) * 7 + 2**33, torch.zeros(count), [""] * count, seed)


def part_of(whole: Batch, places: list[int]) -> Batch:
    return replace(whole, views=tuple(view[:, places] for view in whole.views), g=whole.g[places])


NOTHING = Colors(jitter=0, grayscale=0, blur=0)
SPECS = [ViewSpec(4, count=2), ViewSpec(4, mean=(0.5,) * 3, std=(0.25,) * 3, flip=0.0)]
COLORED = [
    ViewSpec((24, 20), count=2, colors=Colors(blur=[1.0, 0.1], solarize=[0.0, 0.5])),
    ViewSpec(8, mean=(0.5,) * 3, std=(0.25,) * 3),  # no changes of colour
    ViewSpec(16, count=3, flip=0.3, colors=Colors(brightness=1.5, hue=0.5, jitter=0.6, solarize=0.2)),
]


def test_pixels_are_normalised_as_torchvision_does() -> None:
    views = batch(5).views
    first, second = Prepare(SPECS, augment=False)(batch(5)).views
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SPECS[0].mean, SPECS[0].std))
    torch.testing.assert_close(first, (views[0].float() / 255 - mean) / std, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(second, (views[1].float() / 255 - 0.5) / 0.25, atol=1e-6, rtol=1e-6)


def test_half_of_the_views_are_flipped_each_by_its_own_draw() -> None:
    plain, flipped = Prepare(SPECS, augment=False)(batch(500)), Prepare(SPECS)(batch(500))
    turned = (plain.views[0] != flipped.views[0]).flatten(2).any(2)  # [V, B]
    assert torch.equal(flipped.views[0][turned], plain.views[0].flip(-1)[turned])
    assert (turned.float().mean(1) - 0.5).abs().max() < 0.1
    assert not torch.equal(turned[0], turned[1])
    assert torch.equal(plain.views[1], flipped.views[1])  # flip=0


def test_neighbours_do_not_matter() -> None:
    whole = batch(6)
    part = replace(whole, views=tuple(view[:, 3:4] for view in whole.views), g=whole.g[3:4])
    assert torch.equal(Prepare(SPECS)(part).views[0], Prepare(SPECS)(whole).views[0][:, 3:4])


def slowly(image: Tensor, numbers: Tensor, view: int, spec: ViewSpec) -> Tensor:
    """One view [3, h, w] uint8, by its numbers [len(Draw)], one operation of torchvision after another."""
    v2 = pytest.importorskip("torchvision.transforms.v2").functional
    drawn = dict(zip(Draw, numbers.tolist(), strict=True))
    image = image.float() / 255
    if drawn[Draw.FLIP] < spec.flip:
        image = v2.horizontal_flip(image)
    if (colors := spec.colors) is not None:
        blur, solarize = (
            chance if isinstance(chance, int | float) else chance[view] for chance in (colors.blur, colors.solarize)
        )
        if drawn[Draw.JITTER] < colors.jitter:
            strengths = [colors.brightness, colors.contrast, colors.saturation]
            ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths] + [(-colors.hue, colors.hue)]
            operations = [v2.adjust_brightness, v2.adjust_contrast, v2.adjust_saturation, v2.adjust_hue]
            for number in list(permutations(range(4)))[int(drawn[Draw.ORDER] * 24)]:
                least, greatest = ranges[number]
                image = operations[number](image, least + drawn[Draw(Draw.BRIGHTNESS + number)] * (greatest - least))
        if drawn[Draw.GRAYSCALE] < colors.grayscale:
            image = v2.rgb_to_grayscale(image, num_output_channels=3)
        if drawn[Draw.BLUR] < blur:
            least, greatest = colors.blur_sigma
            sigma = least + drawn[Draw.SIGMA] * (greatest - least)
            image = v2.gaussian_blur(image, [13, 13], [sigma, sigma])
        if drawn[Draw.SOLARIZE] < solarize:
            image = v2.solarize(image, colors.solarize_threshold / 255)
    return v2.normalize(image, list(spec.mean), list(spec.std))


def test_a_batch_is_what_torchvision_makes_of_every_view_by_itself() -> None:
    """To 2e-5, in units of the normalised pixel: float32 in another order, divided by a std of 0.2. Solarize jumps
    where rounding decides on which side of the threshold a pixel lies: that may be one pixel in a hundred thousand.
    """
    whole = batch_for(COLORED, 40)
    numbers = color.draws(0, whole.g, COLORED)
    assert numbers is not None
    first = 0
    for ours, views, spec in zip(Prepare(COLORED)(whole).views, whole.views, COLORED, strict=True):
        expected = torch.stack(
            [
                torch.stack([slowly(image, numbers[b, first + v], v, spec) for b, image in enumerate(views[v])])
                for v in range(spec.count)
            ]
        )
        assert ours.shape == views.shape
        assert ours.dtype == torch.float32
        apart = (ours - expected).abs() > 2e-5
        assert apart.float().mean() < 1e-5
        first += spec.count


def test_the_loaders_batch_stays_as_it_was() -> None:
    """Its pixels may lie in memory that others read; of floats and one channel nothing needs to be copied."""
    spec = ViewSpec(8, mean=(0.5,), std=(0.5,), pixels="float32", full_scale=4.0, colors=Colors(jitter=0, grayscale=0))
    pixels = torch.rand(1, 3, 1, 8, 8)
    batch = Batch((pixels.clone(),), torch.arange(3), torch.zeros(3), [""] * 3, 0)
    Prepare([spec])(batch)
    assert torch.equal(batch.views[0], pixels)


@pytest.mark.parametrize("chunk", [1, 5000, 2**30])
def test_batch_and_place_in_it_do_not_matter(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Bit by bit but for blurred views: products of matrices may add in another order in another batch."""
    sharp = [replace(spec, colors=spec.colors and replace(spec.colors, blur=0)) for spec in COLORED]
    for specs, tolerance in ((sharp, 0.0), (COLORED, 1e-5)):
        whole = batch_for(specs, 30)
        expected = Prepare(specs)(whole).views
        with monkeypatch.context() as patch:
            patch.setattr(color, "_CHUNK", chunk)
            for places in (list(range(30)), [29, 3, 17], [5]):
                for ours, theirs in zip(Prepare(specs)(part_of(whole, places)).views, expected, strict=True):
                    torch.testing.assert_close(ours, theirs[:, places], atol=tolerance, rtol=0)


def test_views_without_changes_of_colour_are_what_they_are_alone() -> None:
    """Bit by bit; and changes that never happen leave the flips of views without them."""
    plain = [ViewSpec(8, count=2), ViewSpec(8)]
    whole = batch_for(plain, 20)
    alone = Prepare(plain)(whole).views
    beside = Prepare([plain[0], replace(plain[1], colors=Colors())])(whole).views
    assert torch.equal(beside[0], alone[0])
    assert not torch.equal(beside[1], alone[1])
    never = Prepare([replace(spec, colors=NOTHING) for spec in plain])(whole).views
    for ours, theirs in zip(never, alone, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_evaluation_changes_nothing() -> None:
    whole = batch_for(COLORED, 10)
    for drawn in (None, color.draws(0, whole.g, COLORED)):
        ours = Prepare(COLORED, augment=False)(replace(whole, draws=drawn)).views
        plain = [replace(spec, flip=0.0, colors=None) for spec in COLORED]
        assert all(map(torch.equal, ours, Prepare(plain)(whole).views))


def changed(colors: Colors, count: int = 3000) -> Tensor:
    """[V, B]: which of two views of every sample changes of colour touch."""
    spec = ViewSpec(4, count=2, flip=0.0, colors=colors)
    whole = batch_for([spec], count)
    plain = Prepare([spec], augment=False)(whole).views[0]
    return ((Prepare([spec])(whole).views[0] - plain).abs() > 1e-4).flatten(2).any(2)


@pytest.mark.parametrize(
    ("operation", "chance"),
    [("jitter", 0.8), ("grayscale", 0.2), ("blur", 0.5), ("solarize", 0.1), ("blur", 1.0), ("solarize", 0.0)],
)
def test_every_operation_has_its_probability_in_every_view(operation: str, chance: float) -> None:
    settings: dict[str, Any] = {operation: chance, "blur_sigma": (1.0, 2.0)}
    touched = changed(replace(NOTHING, **settings)).float()
    assert (touched.mean(1) - chance).abs().max() < 0.03  # 3000 draws: a standard deviation of 0.009 at most
    assert abs(touched.prod(0).mean() - chance**2) < 0.03  # the views of a sample are drawn independently


def test_operations_happen_independently() -> None:
    numbers = color.draws(0, torch.arange(4000), [ViewSpec(4, count=2, colors=Colors())])
    assert numbers is not None
    correlation = torch.corrcoef(numbers.flatten(1).T)
    assert correlation.shape == (22, 22)
    assert (correlation - torch.eye(22)).abs().max() < 0.08


def test_a_list_gives_each_view_its_own_probability() -> None:
    for operation in ("blur", "solarize"):
        settings: dict[str, Any] = {operation: [1.0, 0.0], "blur_sigma": (1.0, 2.0)}
        first, second = changed(replace(NOTHING, **settings), 50)
        assert first.all()
        assert not second.any()


def test_factors_and_orders_are_drawn_as_torchvision_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ranges for each factor, uniformly filled; and all 24 orders, equally often."""
    v2 = pytest.importorskip("torchvision.transforms.v2")
    strengths = {"brightness": 0.4, "contrast": 1.5, "saturation": 0.2, "hue": 0.1}
    seen: list[tuple[Tensor, Tensor]] = []
    jitter = adjust.jitter

    def spy(images: Tensor, factors: Tensor, orders: Tensor) -> Tensor:
        seen.append((factors, orders))
        return jitter(images, factors, orders)

    monkeypatch.setattr(adjust, "jitter", spy)
    changed(Colors(jitter=1, grayscale=0, blur=0, **strengths))  # type: ignore[arg-type]
    factors, orders = (torch.cat(parts) for parts in zip(*seen, strict=True))
    theirs = v2.ColorJitter(**strengths)
    for number, name in enumerate(strengths):
        least, greatest = getattr(theirs, name)
        inside = (factors[:, number] - least) / (greatest - least)
        quantiles = torch.quantile(inside, torch.linspace(0, 1, 11, dtype=inside.dtype))
        assert inside.min() >= 0
        assert inside.max() <= 1
        assert (quantiles - torch.linspace(0, 1, 11)).abs().max() < 0.03
    kinds, counts = orders.unique(dim=0, return_counts=True)
    assert len(kinds) == 24
    assert (counts / len(orders) - 1 / 24).abs().max() < 0.012  # a standard deviation of 0.0026


def test_greatest_and_least_numbers_are_taken() -> None:
    spec = ViewSpec(8, colors=Colors(jitter=1, grayscale=1, blur=1, solarize=1))
    whole = batch_for([spec], 2)
    for number in (0.0, 1 - 2**-24):
        ours = Prepare([spec])(replace(whole, draws=torch.full((2, 1, len(Draw)), number)))
        assert ours.views[0].isfinite().all()


def test_the_device_is_never_waited_for() -> None:
    """On the meta device nothing has a value: what needs one on the host fails. And draws stay on the host."""
    whole = batch_for(COLORED, 10)
    there = replace(whole, draws=color.draws(0, whole.g, COLORED)).to("meta")
    assert there.views[0].device.type == "meta"
    assert there.draws is not None
    assert there.draws.device.type == "cpu"
    ours = Prepare(COLORED).to("meta")(there)
    assert [view.shape for view in ours.views] == [view.shape for view in whole.views]
    with pytest.raises(NotImplementedError):  # whereas the numbers of samples that are there alone must be fetched
        Prepare(COLORED).to("meta")(replace(there, draws=None))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_of_it() -> None:
    whole = batch_for(COLORED, 40)
    there = Prepare(COLORED).to("cuda")(whole.to("cuda")).views
    for ours, theirs in zip(Prepare(COLORED)(whole).views, there, strict=True):
        assert ((ours - theirs.cpu()).abs() > 2e-5).float().mean() < 1e-5  # solarize jumps, as above


@pytest.mark.parametrize("random", [True, False])
def test_the_reader_draws_what_prepare_would_draw(tmp_path: Path, random: bool) -> None:
    index = open_index(write_shards(tmp_path / "d", [10, 7]), str(tmp_path / "i"))
    for specs in (COLORED, [ViewSpec(8)]):
        stream = BatchStream(index, Order(index.counts, 3, Shuffle()), Numbers(4, 1, 6, 16), tuple(specs), random)
        for read in stream:
            if specs is not COLORED or not random:
                assert read.draws is None
                continue
            assert read.draws is not None
            assert read.draws.shape == (6, 6, len(Draw))
            ours, theirs = (Prepare(specs)(one).views for one in (read, replace(read, draws=None)))
            assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"jitter": 1.1}, "jitter"),
        ({"grayscale": -0.1}, "grayscale"),
        ({"blur": [0.5, 2]}, "blur"),
        ({"solarize": -1}, "solarize"),
        ({"brightness": -0.1}, "brightness"),
        ({"contrast": -0.1}, "contrast"),
        ({"saturation": -0.1}, "saturation"),
        ({"hue": 0.6}, "hue"),
        ({"blur_sigma": (0.0, 2.0)}, "blur_sigma"),
        ({"blur_sigma": (2.0, 1.0)}, "blur_sigma"),
        ({"blur_sigma": (1.0,)}, "blur_sigma"),
        ({"solarize_threshold": 256}, "solarize_threshold"),
    ],
)
def test_impossible_colours_are_refused(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^Colors: `{name}` must be"):
        Colors(**wrong)


def test_lists_must_fit_the_number_of_views_before_and_after_they_are_built() -> None:
    with pytest.raises(
        ValueError, match=r"`count` is 3, but `colors.blur` has 2 values: give it one number, or a list"
    ):
        ViewSpec(8, count=3, colors=Colors(blur=[0.5, 1.0]))
    node = {"_target_": "pretrain.view.spec.Colors", "solarize": [0.0, 0.2], "blur": [0.5]}
    view = {"_target_": "pretrain.view.spec.ViewSpec", "size": 8, "count": 2, "colors": node}
    (line,) = check_nodes({"view": view})
    assert line == "view.count=2: is 2, but `colors.blur` has 1 values: give it one number, or a list of 2"
    assert check_nodes({"view": view | {"colors": node | {"blur": 0.5}}}) == []
    assert "hue" in check_nodes({"view": view | {"colors": node | {"blur": 0.5, "hue": 2.0}}})[0]
    assert check_nodes({"view": view | {"colors": None}}) == []

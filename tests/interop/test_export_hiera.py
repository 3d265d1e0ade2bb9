"""Hiera's exports load through the libraries they are for and give the same features, with and without its decoder."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from pretrain.assemble import instantiate, materialise, objective_of
from pretrain.config.overrides import composed
from pretrain.encoder.hiera import Hiera
from pretrain.interop import export
from pretrain.interop.card import Card
from pretrain.objective.objective import Objective
from pretrain.records import UserError
from pretrain.view.spec import ViewSpec
from tests.hiera import perturb

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

SMALL = {
    "img_size": 64,
    "embed_dim": 8,
    "stages": [1, 1, 2, 1],
    "patch_kernel": 3,
    "patch_stride": 2,
    "patch_padding": 1,
}
SIZES: dict[str, dict[str, Any]] = {
    "square": {},
    "oblong": {"img_size": [48, 80], "num_heads": 2, "mlp_ratio": 2.0},
    "original patches": {"img_size": 96, "patch_kernel": 7, "patch_stride": 4, "patch_padding": 3},
    "three stages": {"stages": [1, 2, 2], "q_pool": 2, "mask_unit_size": 4, "mask_unit_attn": [True, True, False]},
}


def make(system: str, **sizes: Any) -> tuple[Hiera, Card]:
    node: Any = OmegaConf.to_container(composed(["encoder=hiera_tiny"]).encoder)
    node |= SMALL | sizes
    encoder = instantiate(node).eval()
    perturb(encoder)
    view = json.loads(json.dumps(asdict(ViewSpec(encoder.img_size))))
    return encoder, Card(system, "r1", 7, node, view, "mean")


def make_mae(**objective: Any) -> tuple[Objective, Card]:
    words = [f"encoder.{name}={json.dumps(value).replace(' ', '')}" for name, value in SMALL.items()]
    words += [
        f"{'' if name.startswith('encoder.') else 'objective.'}{name}={value}" for name, value in objective.items()
    ]
    decoder = ["objective.decoder.embed_dim=16", "objective.decoder.depth=2", "objective.decoder.num_heads=2"]
    cfg = composed(["+experiment=mae_hiera_tiny", *words, *decoder])
    mae = materialise(objective_of(cfg), 0).eval()
    perturb(mae)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    view = json.loads(json.dumps(asdict(mae.views[0])))
    card = Card("", "r1", 7, plain["encoder"], view, "mean", part="objective", objective=plain["objective"])
    return mae, card


@pytest.mark.parametrize("system", ["timm", "hf", "official"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_features_are_equal_through_the_library(tmp_path: Path, system: str, sizes: dict[str, Any]) -> None:
    encoder, card = make(system, **sizes)
    assert export.write(tmp_path / "x", card, encoder) <= 1e-5  # float32 sums in other orders
    loaded = export.read(tmp_path / "x")
    assert loaded is not None
    assert loaded[0] == card
    assert loaded[1].keys() == encoder.state_dict().keys()
    assert all(torch.equal(loaded[1][key], value) for key, value in encoder.state_dict().items())


def test_timm_says_the_absolute_window_positions_too(tmp_path: Path) -> None:
    encoder, card = make("timm", position="absolute_window", global_pos_size=3)
    assert export.write(tmp_path / "x", card, encoder) <= 1e-5
    with pytest.raises(UserError, match=r"encoder\.position=absolute_window: transformers has absolute alone"):
        export.write(tmp_path / "y", replace(card, format="hf"), encoder)


def test_stage_maps_are_equal_through_timm(tmp_path: Path) -> None:
    encoder, card = make("timm", img_size=[48, 80])
    export.write(tmp_path / "x", card, encoder)
    model = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True, features_only=True).eval()
    images = torch.randn(2, 3, 48, 80)
    with torch.no_grad():
        for mine, other in zip(encoder.feature_maps(images), model(images), strict=True):
            assert (mine - other).abs().max() <= 1e-5 * mine.abs().max()


def test_timm_reads_it_without_further_words(tmp_path: Path) -> None:
    encoder, card = make("timm")
    export.write(tmp_path / "x", card, encoder)
    model = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True)
    assert type(model).__name__ == "Hiera"
    fine_tuned = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True, num_classes=5)
    assert fine_tuned(torch.randn(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize("system", ["hf", "official"])
def test_the_decoder_goes_along(tmp_path: Path, system: str) -> None:
    mae, card = make_mae()
    assert export.write(tmp_path / "x", replace(card, format=system), mae) <= 1e-5
    loaded = export.read(tmp_path / "x")
    assert loaded is not None
    assert loaded[1].keys() == make(system)[0].state_dict().keys()  # read back, it is an encoder to probe
    encoder = mae.encoder_for_export.state_dict()
    assert all(torch.equal(value, encoder[key]) for key, value in loaded[1].items())


def test_transformers_computes_the_same_loss(tmp_path: Path) -> None:
    mae, card = make_mae()
    export.write(tmp_path / "x", replace(card, format="hf"), mae)
    model = transformers.HieraForPreTraining.from_pretrained(tmp_path / "x").eval()
    images, noise = torch.randn(2, 3, 64, 64), torch.rand(2, 16)
    order = noise.argsort(dim=1)
    loss: Any = mae.loss  # of MAE
    with torch.no_grad():
        theirs = model(images, noise=noise).loss
        assert loss(images, order[:, :6], order[:, 6:]).item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("system", "part", "sizes", "message"),
    [
        (
            "timm",
            "encoder",
            {"mask_unit_size": 16},
            "mask_unit_size=16: timm puts units in the right order",
        ),
        (
            "hf",
            "encoder",
            {"mask_unit_size": 16},
            "transformers puts units in the right order only with 8",
        ),
        ("hf", "encoder", {"mask_unit_attn": [True, False, True, False]}, "transformers attends otherwise"),
        ("timm", "encoder", {"norm_eps": 1e-5}, "use format=hf"),
        ("timm", "objective", {}, "timm has no autoencoders; take format=hf or format=official"),
        ("onnx", "objective", {}, "an ONNX graph is of the encoder"),
    ],
)
def test_what_a_format_cannot_say_is_refused(
    tmp_path: Path, system: str, part: str, sizes: dict[str, Any], message: str
) -> None:
    encoder, card = make(system, **sizes)
    with pytest.raises(UserError, match=message):
        export.write(tmp_path / "x", replace(card, part=part), encoder)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("system", "objective", "message"),
    [
        ("hf", {"pixel_order": "hwc"}, "objective.pixel_order=hwc: transformers' HieraForPreTraining has chw alone"),
        ("hf", {"encoder.mask_unit_attn": "[true,true,true,false]"}, "transformers attends inside smaller windows"),
        ("hf", {"decoder.position": "fixed"}, "objective.decoder.position=fixed: .* has learned alone"),
        ("hf", {"view.size": "128"}, "objective.view.size=128: transformers has that of encoder.img_size"),
        (
            "official",
            {"encoder.position": "absolute_window"},
            "encoder.position=absolute_window: .* has absolute alone",
        ),
        ("official", {"pixel_order": "hwc", "view.size": "128"}, r"(?s)view.size=128: .*pixel_order=hwc: "),
        ("official", {"decoder.position": "fixed"}, "objective.decoder.position=fixed: the original code has"),
    ],
)
def test_an_autoencoder_unlike_the_original_is_refused(
    tmp_path: Path, system: str, objective: dict[str, str], message: str
) -> None:
    mae, card = make_mae(**objective)
    with pytest.raises(UserError, match=message):
        export.write(tmp_path / "x", replace(card, format=system), mae)


def test_onnx_gives_the_same_features_for_any_batch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    encoder, card = make("onnx")
    assert export.write(tmp_path / "x", card, encoder) <= 1e-5
    assert export.onnx.theirs(tmp_path / "x", card, torch.randn(1, 3, 64, 64)).shape == (1, 16, 64)

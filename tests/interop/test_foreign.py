"""Published weights come in from every system, every key accounted for, and wrong ones are refused with the reason."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from pretrain.encoder.encoder import Encoder
from pretrain.encoder.vit import ViT
from pretrain.frozen import load
from pretrain.interop import export, foreign
from pretrain.interop import timm as timm_files
from pretrain.interop.card import Card
from pretrain.interop.huggingface_hiera import objective_from_theirs
from pretrain.records import UserError
from tests.conftest import Golden, close
from tests.interop.test_export import SIZES
from tests.interop.test_export import make as make_vit
from tests.interop.test_export_hiera import make as make_hiera
from tests.interop.test_export_hiera import make_mae
from tests.scripts import run_script

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

MAKE: dict[str, Any] = {"ViT": lambda system: make_vit(SIZES[0], system), "Hiera": make_hiera}


def empty(encoder: Encoder, card: Card) -> Encoder:
    other: Encoder = type(encoder)(**{key: value for key, value in card.encoder.items() if key != "_target_"})
    return other.eval()


@pytest.mark.parametrize("family", MAKE)
@pytest.mark.parametrize("source", ["timm", "hf", "official"])
def test_weights_come_in_from_every_system(tmp_path: Path, family: str, source: foreign.Source) -> None:
    encoder, card = MAKE[family](source)
    export.write(tmp_path / "x", card, encoder)
    (tmp_path / "x" / "pretrain.json").unlink()  # what others publish has no card of ours
    path = tmp_path / "x" / "model.pth" if source == "official" else tmp_path / "x"
    other = empty(encoder, card)
    assert foreign.load_into(other, source, path) == []
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("source", ["hf", "official"])
def test_decoder_and_fusion_are_left_out_by_name(tmp_path: Path, source: foreign.Source) -> None:
    mae, card = make_mae()
    export.write(tmp_path / "x", replace(card, format=source), mae)
    encoder, plain = make_hiera("timm")
    path = tmp_path / "x" / "model.pth" if source == "official" else tmp_path / "x"
    left = foreign.load_into(empty(encoder, plain), source, path)
    assert len(left) == len(mae.state_dict()) - len(encoder.state_dict())
    assert any("multi_scale_fusion_heads" in key for key in left)


@pytest.mark.parametrize(
    ("family", "source", "heads"),
    [
        ("ViT", "timm", ["head.weight", "head.bias"]),
        ("Hiera", "timm", ["head.fc.weight", "head.fc.bias"]),
        ("ViT", "hf", ["classifier.weight"]),
        ("Hiera", "hf", ["classifier.weight"]),
    ],
)
def test_a_classifier_is_left_out_by_name(
    tmp_path: Path, family: str, source: foreign.Source, heads: list[str]
) -> None:
    encoder, card = MAKE[family](source)
    export.write(tmp_path / "x", card, encoder)
    path = tmp_path / "x" / "model.safetensors"
    save_file(load_file(path) | {name: torch.zeros(3) for name in heads}, path)
    assert sorted(foreign.load_into(empty(encoder, card), source, path)) == sorted(heads)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    encoder, card = make_hiera("timm")
    export.write(tmp_path / "x", card, encoder)
    deeper, _ = make_hiera("timm", stages=[1, 1, 3, 1])
    with pytest.raises(
        UserError, match=r"(?s)they do not fit this encoder:\n.*in the file, .* in the encoder.*and \d+ more"
    ):
        foreign.load_into(deeper, "timm", tmp_path / "x")
    with pytest.raises(UserError, match=r"these are no hf weights of a Hiera: .*says no `depths`"):
        foreign.load_into(encoder, "hf", tmp_path / "x")
    with pytest.raises(UserError, match=r"`.*nowhere.pth` cannot be read"):
        foreign.load_into(encoder, "official", tmp_path / "nowhere.pth")
    torch.save({"model_state": {"blocks.0.strange": torch.zeros(1), "x": torch.zeros(1)}}, tmp_path / "y.pth")
    with pytest.raises(UserError, match="`x` is no key of an official Hiera checkpoint"):
        foreign.load_into(encoder, "official", tmp_path / "y.pth")
    torch.save({"epoch": 3}, tmp_path / "z.pth")
    with pytest.raises(UserError, match="holds no weights"):
        foreign.load_into(encoder, "official", tmp_path / "z.pth")


def test_a_training_run_of_the_original_code_comes_in_too(tmp_path: Path) -> None:
    """Its file also holds the optimizer and the arguments as an `argparse.Namespace`."""
    encoder, card = make_vit(SIZES[0], "official")
    rest = {"optimizer": {"state": {}, "param_groups": []}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save({"model": encoder.state_dict()} | rest, tmp_path / "checkpoint-3.pth")
    other = empty(encoder, card)
    assert foreign.load_into(other, "official", tmp_path / "checkpoint-3.pth") == []
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("golden", ["dino_vit"], indirect=True)
@pytest.mark.parametrize("whole", [True, False], ids=["training run", "released backbone"])
def test_golden_weights_of_dino_come_in(golden: Golden, tmp_path: Path, whole: bool) -> None:
    config, backbone = golden.config, golden.state("backbone.")
    names = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "norm_eps")
    vit = ViT(img_size=config["img_size"][0], position="learned", **{name: config[name] for name in names}).eval()
    content: dict[str, Any] = backbone
    if whole:
        teacher = {f"backbone.{key}": value for key, value in backbone.items()}
        teacher |= {f"head.{key}": value for key, value in golden.state("head.").items()}
        content = {"student": {"module.backbone.norm.bias": torch.zeros(1)}, "teacher": teacher, "epoch": 3}
    torch.save(content, tmp_path / "dino.pth")
    left = foreign.load_into(vit, "official", tmp_path / "dino.pth")
    assert left == ([key for key in teacher if key.startswith("head.")] if whole else [])
    tokens = vit(golden["global_images"])
    assert tokens.cls is not None
    assert close(tokens.cls, golden["cls_global"])


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.marker, "w"))


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"model": Attack(tmp_path / "marker")}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="or holds more than tensors and settings"):
        foreign.load_into(make_hiera("timm")[0], "official", tmp_path / "bad.pth")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", [b"", b"dots...", b"<html>", b"PK\x03\x04 damaged", b"\x80\x02."])
def test_damaged_files_are_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"`.*x\.pth` cannot be read: it is damaged"):
        foreign.load_into(make_hiera("timm")[0], "official", tmp_path / "x.pth")


# ── files as the libraries themselves write them ─────────────────────────────────────────────────────────────────────

HIERA_SIZES = {"image_size": [64, 64], "embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]}
HIERA_SIZES |= {"patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1]}
DECODER = {"decoder_hidden_size": 16, "decoder_depth": 2, "decoder_num_heads": 2, "num_query_pool": 2}
VIT_SIZES = {"image_size": 32, "patch_size": 4, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
VIT_SIZES |= {"intermediate_size": 192, "layer_norm_eps": 1e-6}


def written_by_transformers(kind: str, folder: Path, **config: Any) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, kind)(
        getattr(transformers, f"{kind.partition('For')[0].removesuffix('Model')}Config")(**config)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("HieraModel", HIERA_SIZES),
        ("HieraForImageClassification", HIERA_SIZES),
        ("HieraForPreTraining", HIERA_SIZES | DECODER),
        ("ViTModel", VIT_SIZES),
    ],
)
def test_what_transformers_saved_comes_in(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    written_by_transformers(kind, tmp_path / "x", **config)
    encoder, card = make_vit(SIZES[0], "hf") if kind.startswith("ViT") else make_hiera("hf")
    left = foreign.load_into(encoder, "hf", tmp_path / "x")
    saved = load_file(tmp_path / "x" / "model.safetensors")
    (tmp_path / "old").mkdir()  # as older releases stored it
    shutil.copy(tmp_path / "x" / "config.json", tmp_path / "old")
    torch.save(saved, tmp_path / "old" / "pytorch_model.bin")
    older = empty(encoder, card)
    assert foreign.load_into(older, "hf", tmp_path / "old") == left
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in older.state_dict().items())
    parts = sum("attention.attention" in key for key in saved)  # query, key and value are one of ours
    assert len(encoder.state_dict()) + len(left) == len(saved) - parts * 2 // 3
    if kind != "HieraForPreTraining":  # whose norm its encoder alone does not read
        found = foreign.difference(encoder, card, "hf", tmp_path / "x")
        assert found is not None
        assert found <= 1e-5


def test_transformers_autoencoder_comes_in_whole(tmp_path: Path) -> None:
    written_by_transformers("HieraForPreTraining", tmp_path / "x", **HIERA_SIZES, **DECODER)
    mae, _ = make_mae()
    state = load_file(tmp_path / "x" / "model.safetensors")
    mae.load_state_dict(objective_from_theirs(mae, [1, 1, 2, 1], state))
    model = transformers.HieraForPreTraining.from_pretrained(tmp_path / "x").eval()
    images, noise = torch.randn(2, 3, 64, 64), torch.rand(2, 16)
    order, loss = noise.argsort(dim=1), cast(Any, mae).loss
    with torch.no_grad():
        expected = model(images, noise=noise).loss.item()
        assert loss(images, order[:, :6], order[:, 6:]).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="1 keys are missing or too many, first `x`"):
        objective_from_theirs(mae, [1, 1, 2, 1], state | {"x": torch.zeros(1)})


@pytest.mark.parametrize("family", ["ViT", "Hiera"])
def test_what_timm_saved_comes_in(tmp_path: Path, family: str) -> None:
    encoder, card = make_vit(SIZES[0], "timm") if family == "ViT" else make_hiera("timm")
    content = timm_files.configuration(card)
    model = timm.create_model(content["architecture"], num_classes=7, **content["model_args"])
    (tmp_path / "x").mkdir()
    save_file(model.state_dict(), tmp_path / "x" / "model.safetensors")
    (tmp_path / "x" / "config.json").write_text(json.dumps(content | {"num_classes": 7}))
    assert len(foreign.load_into(encoder, "timm", tmp_path / "x")) == 2
    found = foreign.difference(encoder, card, "timm", tmp_path / "x")
    assert found is not None
    assert found <= 1e-5


def test_what_shapes_do_not_show_is_noticed(tmp_path: Path) -> None:
    written_by_transformers("ViTModel", tmp_path / "x", **VIT_SIZES | {"num_attention_heads": 6})
    sizes = ["encoder.img_size=32", "encoder.patch_size=4", "encoder.embed_dim=48", "encoder.depth=2"]
    words = ["source=hf", f"weights={tmp_path / 'x'}", f"out={tmp_path / 'out'}", "encoder=vit_base", *sizes]
    wrong = run_script("import_weights", *words, "encoder.num_heads=3")
    assert "features differ from those of the source" in wrong.stderr
    assert not (tmp_path / "out").exists()
    right = run_script("import_weights", *words, "encoder.num_heads=6")
    assert "features differ from those of the source by at most" in right.stdout, right.stderr
    other = tmp_path / "y"
    written_by_transformers("ViTModel", other, **VIT_SIZES | {"num_attention_heads": 6, "hidden_act": "relu"})
    words[1] = f"weights={other}"
    refused = run_script("import_weights", *words, "encoder.num_heads=6")  # all that `encoder` can say is right
    assert "features differ from those of the source" in refused.stderr


def test_names_that_collide_are_refused(tmp_path: Path) -> None:
    encoder, card = make_hiera("timm")
    export.write(tmp_path / "x", card, encoder)
    path = tmp_path / "x" / "model.safetensors"
    save_file(load_file(path) | {"norm.weight": torch.zeros(64)}, path)
    with pytest.raises(UserError, match=r"it holds both `norm` and `head\.norm`"):
        foreign.load_into(encoder, "timm", path)
    tuned = {"model": {"fc_norm.weight": torch.zeros(1), "cls_token": torch.zeros(1)}}
    torch.save(tuned, tmp_path / "tuned.pth")
    with pytest.raises(UserError, match="fine-tuned with a norm of its own after pooling"):
        foreign.load_into(make_vit(SIZES[0], "timm")[0], "official", tmp_path / "tuned.pth")


def test_two_files_are_two_sources(tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / str(number)).mkdir()
        save_file({"x": torch.full((1,), float(number))}, tmp_path / str(number) / "model.safetensors")
    assert foreign.identity("timm", tmp_path / "0") != foreign.identity("timm", tmp_path / "1")


def test_the_script_takes_weights_in_and_they_can_be_probed(tmp_path: Path) -> None:
    mae, card = make_mae()
    export.write(tmp_path / "x", replace(card, format="official"), mae)
    sizes = ["encoder.img_size=64", "encoder.embed_dim=8", "encoder.stages=[1,1,2,1]", "encoder.patch_kernel=3"]
    sizes += ["encoder.patch_stride=2", "encoder.patch_padding=1"]
    words = ["source=official", f"weights={tmp_path / 'x' / 'model.pth'}", f"out={tmp_path / 'out'}", "format=hf"]
    result = run_script("import_weights", *words, "encoder=hiera_tiny", *sizes)
    assert result.returncode == 0, result.stderr
    assert f"{len(mae.encoder_for_export.state_dict()) - 4} tensors taken in" in result.stdout  # all but the fusion
    assert "left out: " in result.stdout
    assert "features differ by at most" in result.stdout
    frozen = load(tmp_path / "out")
    trained = mae.encoder_for_export.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in frozen.encoder.state_dict().items())
    wrong = run_script("import_weights", *words, "encoder=hiera_tinny")
    assert wrong.returncode != 0
    assert "there is no such option" in wrong.stderr
    wrong = run_script("import_weights", *words, "encoder=hiera_tiny", "encodr.depth=3")
    assert "did you mean encoder" in wrong.stderr

"""Exports load through the libraries they are for, give the same features, and overwrite nothing of others."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from pretrain.encoder.vit import ViT
from pretrain.interop import export, weights
from pretrain.interop.card import Card
from pretrain.records import UserError
from pretrain.view.spec import ViewSpec

pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

SIZES = [
    {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3},
    {"img_size": [32, 48], "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0},
    {"img_size": 32, "patch_size": 16, "embed_dim": 192, "depth": 2, "num_heads": 3, "qkv_bias": False, "in_chans": 3},
]


def make(sizes: dict[str, object], system: str, run_id: str = "r1") -> tuple[ViT, Card]:
    encoder = ViT(**sizes).eval()  # type: ignore[arg-type]
    with torch.no_grad():  # every parameter counts: none may be left at a value that a library starts with
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    everything = {"img_size": 224, "patch_size": 16, "in_chans": 3, "embed_dim": 768, "depth": 12, "num_heads": 12}
    everything |= {"mlp_ratio": 4.0, "qkv_bias": True, "norm_eps": 1e-6} | sizes
    node = {"_target_": "pretrain.encoder.vit.ViT"} | everything
    return encoder, Card(system, run_id, 7, node, json.loads(json.dumps(asdict(ViewSpec(encoder.img_size)))), "mean")


@pytest.mark.parametrize("system", ["timm", "hf"])
@pytest.mark.parametrize("sizes", SIZES, ids=["square", "oblong", "no bias"])
def test_features_are_equal_through_the_library(tmp_path: Path, system: str, sizes: dict[str, object]) -> None:
    encoder, card = make(sizes, system)
    assert export.write(tmp_path / "x", card, encoder) <= 1e-5  # float32 sums in other orders
    loaded = export.read(tmp_path / "x")
    assert loaded is not None
    assert loaded[0] == card
    assert loaded[1].keys() == encoder.state_dict().keys()
    for key, value in encoder.state_dict().items():
        assert torch.equal(loaded[1][key], value), key


def test_a_wrong_export_is_noticed(tmp_path: Path) -> None:
    encoder, card = make(SIZES[0], "timm")
    export.write(tmp_path / "x", card, encoder)
    with torch.no_grad():
        encoder.blocks[0].attn.qkv.weight.mul_(1.001)
    assert export.difference(tmp_path / "x", encoder) > 1e-5


def test_an_export_that_is_wrong_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, card = make(SIZES[0], "timm")
    export.write(tmp_path / "x", card, encoder)
    before = (tmp_path / "x" / "model.safetensors").read_bytes()
    with torch.no_grad():
        encoder.cls_token.add_(1)
    wrong = torch.randn(4, 65, 48)
    monkeypatch.setattr(export.timm, "theirs", lambda folder, card, images: wrong)
    with pytest.raises(UserError, match=r"features differ by .* nothing was written"):
        export.write(tmp_path / "x", card, encoder)

    def missing(folder: Path, card: Card, images: torch.Tensor) -> torch.Tensor:
        raise ModuleNotFoundError("No module named 'timm'", name="timm")

    monkeypatch.setattr(export.timm, "theirs", missing)
    with pytest.raises(UserError, match=r"format=timm needs timm: pip install 'pretrain\[interop\]'"):
        export.write(tmp_path / "x", card, encoder)
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    encoder, card = make(SIZES[0], "timm")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    export.write(tmp_path / "link", card, encoder)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model.safetensors").is_file()
    (tmp_path / "real" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no whole export"):
        export.read(tmp_path / "real")


def test_timm_reads_it_without_further_words(tmp_path: Path) -> None:
    import timm

    encoder, card = make(SIZES[0], "timm")
    export.write(tmp_path / "x", card, encoder)
    model = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True)
    assert model.num_classes == 0
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    assert model.state_dict().keys() == encoder.state_dict().keys()
    fine_tuned = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True, num_classes=5)
    assert fine_tuned(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    content = json.loads((tmp_path / "x" / "config.json").read_text())
    assert content["num_classes"] == 0
    assert content["pretrained_cfg"]["input_size"] == [3, 32, 32]


def test_transformers_reads_it_without_a_key_too_many_or_too_few(tmp_path: Path) -> None:
    encoder, card = make(SIZES[0], "hf")
    export.write(tmp_path / "x", card, encoder)
    model, report = transformers.AutoModel.from_pretrained(
        tmp_path / "x", add_pooling_layer=False, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(model).__name__ == "ViTModel"
    assert model.config.layer_norm_eps == 1e-6
    keys = load_file(tmp_path / "x" / "model.safetensors").keys()
    assert "encoder.layer.0.attention.attention.query.weight" in keys  # the names that every release reads
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "x")
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    wide = torch.randint(0, 256, (3, 40, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = processor(wide, return_tensors="pt")["pixel_values"][0]
    side = round(32 / 0.875)  # the short side, then the centre, as probes cut images
    resized = F.interpolate(wide[None].float(), (side, round(side * 90 / 40)), mode="bicubic", antialias=True)
    top, left = (resized.shape[2] - 32) // 2, (resized.shape[3] - 32) // 2
    ours = resized[0, :, top : top + 32, left : left + 32].clamp(0, 255) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    assert (theirs - (ours - mean) / std).abs().mean() < 0.02  # it rounds to whole colours: up to 0.5 / 255 / 0.22


def test_an_export_replaces_only_one_of_the_same_run(tmp_path: Path) -> None:
    encoder, card = make(SIZES[0], "timm")
    target = tmp_path / "x"
    target.mkdir()  # an empty folder may be used
    export.write(target, card, encoder)
    with torch.no_grad():
        encoder.cls_token.add_(1)
    export.write(target, card, encoder)
    assert torch.equal(load_file(target / "model.safetensors")["cls_token"], encoder.cls_token)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    for other, whose in ((make(SIZES[0], "timm", "r2")[1], "another run"), (make(SIZES[0], "hf")[1], "this run")):
        with pytest.raises(UserError, match=f"it holds a timm export of {whose}"):
            export.write(target, other, encoder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty and holds no export"):
        export.write(tmp_path / "mine", card, encoder)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_a_failed_export_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, card = make(SIZES[0], "timm")
    export.write(tmp_path / "x", card, encoder)
    before = (tmp_path / "x" / "model.safetensors").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        export.write(tmp_path / "x", card, encoder)
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_format_cannot_say_is_refused(tmp_path: Path) -> None:
    encoder, card = make(SIZES[0] | {"norm_eps": 1e-5}, "timm")
    with pytest.raises(UserError, match="use format=hf"):
        export.write(tmp_path / "x", card, encoder)
    assert not (tmp_path / "x").exists()


def test_onnx_gives_the_same_features_for_any_batch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    encoder, card = make(SIZES[0], "onnx")
    export.write(tmp_path / "x", card, encoder)
    for batch in (1, 5):
        assert export.onnx.theirs(tmp_path / "x", card, torch.randn(batch, 3, 32, 32)).shape == (batch, 65, 48)
    with pytest.raises(UserError, match="holds a graph, not an encoder"):
        export.read(tmp_path / "x")

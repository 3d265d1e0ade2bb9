"""Probes take a run or an export; the scripts' answers agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pretrain.data.opening import open_shards
from pretrain.frozen import load
from pretrain.records import UserError
from tests.data.shards import image_bytes, write_tar
from tests.job import HIERA, Job
from tests.scripts import run_script


def test_a_run_and_its_exports_are_the_same_encoder(job: Job) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    job.run("max_steps=3")
    exports = {"timm": job.tmp / "t", "hf": job.tmp / "h"}
    for system, out in exports.items():
        result = run_script("export", f"checkpoint={job.out}", f"format={system}", f"out={out}")
        assert result.returncode == 0, result.stderr
        assert "features differ by at most" in result.stdout
    shards = open_shards(str(job.shards), str(job.tmp / "index"))
    expected = load(job.out).features(shards, num_workers=0)
    for out in exports.values():
        features, labels = load(out).features(shards, num_workers=0)
        torch.testing.assert_close(features, expected[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(labels, expected[1])
    assert labels.tolist() == [number % 10 for number in range(41)]  # each once, in the shards' order


def test_weights_can_be_trained_random_or_absent(job: Job) -> None:
    job.run("max_steps=3", "base_lr=1.0", "warmup_epochs=0")
    shards = open_shards(str(job.shards), str(job.tmp / "index"))
    trained, _ = load(job.out).features(shards, num_workers=0)
    start, _ = load(job.out, "random").features(shards, "random", num_workers=0)
    pixels, _ = load(job.out).features(shards, "pixels", num_workers=0)
    assert trained.shape == start.shape == (41, 24)
    assert not torch.allclose(trained, start, atol=1e-3)
    assert pixels.shape == (41, 3 * 8 * 8)
    cls, _ = load(job.out).features(shards, pool="cls", num_workers=0)
    assert not torch.allclose(trained, cls)


def test_probe_scripts_write_what_they_found(job: Job) -> None:
    job.run("max_steps=3")
    common = [
        f"checkpoint={job.out}",
        f"train={job.shards}/s-{{000000..000003}}.tar",
        f"val={job.shards}",
        "num_workers=0",
    ]
    for name, extra in [
        ("knn", ["k=3"]),
        ("linear_probe", []),
        ("linear_probe", ["solver=sgd", "batch_size=8", "epochs=2", "warmup_epochs=1"]),
    ]:
        out = job.tmp / "results" / f"{name}.json"
        result = run_script(name, *common, *extra, f"out={out}")
        assert result.returncode == 0, result.stderr
        content = json.loads(out.read_text())
        assert 0 <= content["accuracy"] <= 1
        assert f"accuracy {content['accuracy']:.2%}" in result.stdout
        assert content["protocol"]["pool"] == "mean"
        assert content["protocol"]["probe"] in ("knn", "linear")
        assert content["samples"] == {"train": 41, "val": 41}
    for name, extra, message in [
        ("knn", ["k=0"], "k=0 must be at least 1"),
        ("knn", [f"out={job.tmp}"], "must be a file that can be written"),
        ("knn", ["num_workers=-1"], "num_workers=-1: must be at least 0"),
        ("knn", ["train=pipe:cat x"], "allow it by allow_pipe=true"),
        ("linear_probe", ["solver=sgd", "batch_size=0", "epochs=1"], "batch_size=0: must have a divisor"),
        (
            "linear_probe",
            ["solver=sgd", "batch_size=0", "epochs=1"],
            "warmup_epochs=10: must be at least 0 and below",
        ),
        ("linear_probe", ["solver=sgd", "batch_size=8", "epochs=20", "classes=4"], "give classes="),
    ]:
        given = {word.partition("=")[0] for word in extra}
        words = [*(word for word in common if word.partition("=")[0] not in given), *extra]
        result = run_script(name, *words)
        assert result.returncode == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_a_broken_sample_is_left_out_and_not_replaced(job: Job) -> None:
    job.run("max_steps=1")
    members = [("a.png", image_bytes(1)), ("a.cls", b"1"), ("b.png", b"no image"), ("b.cls", b"2")]
    members += [("c.png", image_bytes(3)), ("c.cls", b"3")]
    index = open_shards(str(write_tar(job.tmp / "t.tar", members)), str(job.tmp / "i"))
    features, labels = load(job.out).features(index, num_workers=0)
    assert labels.tolist() == [1, 3]
    assert len(features) == 2


def test_what_is_neither_a_run_nor_an_export_is_refused(job: Job, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run's folder nor an export"):
        load(tmp_path)
    job.run("max_steps=1")
    for path in (job.out / "checkpoints").glob("step_*"):
        (path / "COMPLETE").unlink()
    with pytest.raises(UserError, match="no complete checkpoint yet"):
        load(job.out)


RUNS_A_PROGRAM = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler.SubprocessHandler"


@pytest.mark.parametrize("target", ["subprocess.Popen", RUNS_A_PROGRAM, "torch.nn.Identity", "logging.FileHandler"])
def test_a_target_in_somebodys_files_is_not_built(job: Job, tmp_path: Path, target: str) -> None:
    job.run("max_steps=1")
    path = job.out / "config.yaml"
    original = path.read_text()
    reason = r"outside what may be built|none of the classes|there is no such key|is no encoder|is missing"
    path.write_text(original.replace("pretrain.encoder.vit.ViT", target))
    with pytest.raises(UserError, match=reason):
        load(job.out)
    hidden = f"hidden:\n  _target_: {target}\n  filename: {tmp_path / 'marker'}\nencoder: ${{hidden}}\nunused:\n"
    path.write_text(original.replace("encoder:\n", hidden))
    with pytest.raises(UserError, match=reason):
        load(job.out)
    card = {"format": "timm", "run_id": "r", "step": 1, "view": {"size": 8}, "pool": "mean"}
    (tmp_path / "x").mkdir()
    encoder = {"_target_": target, "entrypoint": "touch", "args": [str(tmp_path / "marker")]}
    (tmp_path / "x" / "pretrain.json").write_text(json.dumps(card | {"encoder": encoder}))
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "x" / "model.safetensors")
    with pytest.raises(UserError, match="is not what an export wrote"):
        load(tmp_path / "x")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("encoder", [None, {}, {"_target_": 3}, {"_target_": "pretrain.encoder.vit.ViT", "widht": 3}])
def test_a_damaged_card_is_said(tmp_path: Path, encoder: object) -> None:
    from safetensors.torch import save_file

    card = {"format": "hf", "run_id": "r", "step": 1, "view": {"size": 8, "sise": 3}, "pool": "mean"}
    (tmp_path / "pretrain.json").write_text(json.dumps(card | {"encoder": encoder}))
    save_file({"cls_token": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError):
        load(tmp_path)


def test_unlabelled_samples_are_refused_by_name(job: Job) -> None:
    from tests.data.shards import write_shards

    job.run("max_steps=1")
    write_shards(job.tmp / "u", [3], labels=False)
    with pytest.raises(UserError, match="sample `00000` has no label"):
        load(job.out).features(open_shards(str(job.tmp / "u"), str(job.tmp / "i")), num_workers=0)


def test_hiera_is_probed_and_exported_with_all_its_poolings(job: Job) -> None:
    """Pretrained with one pooling and fusion, used with two and without: same weights, other features."""
    pytest.importorskip("timm")
    job.run(*HIERA, "max_steps=2")
    frozen = load(job.out)
    assert frozen.card.encoder["q_pool"] == 2
    assert not frozen.card.encoder["multi_scale_fusion"]
    assert frozen.encoder.token_size == 8
    assert frozen.objective is not None
    trained = frozen.objective.encoder_for_export
    assert trained.token_size == 4
    state = trained.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in frozen.encoder.state_dict().items())
    shards = open_shards(str(job.shards), str(job.tmp / "index"))
    features, _ = frozen.features(shards, num_workers=0)
    for system, part in (("timm", "encoder"), ("hf", "objective"), ("official", "objective")):
        out = job.tmp / f"{system}-{part}"
        result = run_script("export", f"checkpoint={job.out}", f"format={system}", f"part={part}", f"out={out}")
        assert result.returncode == 0, result.stderr
        again, _ = load(out).features(shards, num_workers=0)
        torch.testing.assert_close(again, features, atol=1e-5, rtol=1e-5)
    refused = run_script("export", f"checkpoint={out}", "format=official", "part=objective", f"out={job.tmp / 'y'}")
    assert "an export has no decoder; take the run's folder" in refused.stderr

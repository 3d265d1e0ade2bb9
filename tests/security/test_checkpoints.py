"""Checkpoints and weights of strangers: refused with a sentence, and nothing in them is run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pretrain
from pretrain.frozen import load
from pretrain.interop.official import load as load_official
from pretrain.records import UserError
from pretrain.trainer import checkpoint
from tests.job import Job
from tests.scripts import run_script
from tests.security.planted import pickled, saved


def plant(folder: Path, content: bytes, name: str = "state.pt") -> None:
    """Puts a file in a checkpoint, with a manifest to which it is whole."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "COMPLETE").read_text())
    manifest["files"][name] = len(content)
    (folder / "COMPLETE").write_text(json.dumps(manifest))


def newest(job: Job) -> Path:
    path = checkpoint.newest(job.out / "checkpoints")
    assert path is not None
    return path


@pytest.mark.parametrize("content", [pickled, saved])
def test_a_planted_checkpoint_is_refused_everywhere(job: Job, content: Callable[[Path], bytes]) -> None:
    job.run("max_steps=2")
    marker = job.tmp / "marker"
    plant(newest(job), content(marker))
    with pytest.raises(UserError, match="holds more than tensors and plain data"):
        job.run("max_steps=4")
    with pytest.raises(UserError, match="holds more than tensors and plain data"):
        pretrain.load(job.out)
    shards = f"{job.shards}/s-*.tar"
    probe = [f"checkpoint={job.out}", f"train={shards}", f"val={shards}", f"index_dir={job.tmp / 'i'}"]
    for name, *words in (
        ("knn", *probe),
        ("linear_probe", *probe),
        ("export", f"checkpoint={job.out}", "format=official", f"out={job.tmp / 'x'}"),
    ):
        result = run_script(name, *words)
        assert result.returncode == 1
        assert "holds more than tensors and plain data" in result.stderr, result.stderr
        assert "Traceback" not in result.stderr
    assert not marker.exists()
    assert not (job.tmp / "x").exists()


def test_files_of_other_trainers_beside_a_checkpoint_are_not_read(job: Job) -> None:
    """`.metadata` is what torch.distributed.checkpoint unpickles, `last.ckpt` what Lightning would."""
    job.run("max_steps=2")
    marker, path = job.tmp / "marker", newest(job)
    for name in (".metadata", "meta.pt", "__0_0.distcp", "hpc_ckpt_1.ckpt"):
        plant(path, pickled(marker), name)
    for name in ("last.ckpt", "hpc_ckpt_1.ckpt"):
        (job.out / name).write_bytes(pickled(marker))
    job.run("max_steps=2")
    assert not marker.exists()


@pytest.mark.parametrize("content", [pickled, saved])
def test_a_planted_shard_of_a_checkpoint_is_refused(job: Job, content: Callable[[Path], bytes]) -> None:
    job.run("max_steps=2")
    marker = job.tmp / "marker"
    plant(newest(job), content(marker), "shard_00000_of_00002.pt")
    with pytest.raises(UserError, match=r"shard_00000_of_00002.pt` cannot be read: it is damaged, or holds more than"):
        job.run("max_steps=2")
    for script, words in (
        ("consolidate", [f"out={job.tmp / 'w'}"]),
        ("export", ["format=timm", f"out={job.tmp / 'e'}"]),
    ):
        result = run_script(script, f"checkpoint={job.out}", *words)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr, result.stderr
    assert not marker.exists()


@pytest.mark.parametrize("content", [pickled, saved])
@pytest.mark.parametrize("source", ["official", "timm", "hf"])
def test_planted_weights_are_not_imported(tmp_path: Path, content: Callable[[Path], bytes], source: str) -> None:
    marker = tmp_path / "marker"
    for name in ("pytorch_model.bin", "model.safetensors", "model.pth", "model.ckpt"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / name).write_bytes(content(marker))
        words = [f"source={source}", f"weights={folder / name}", f"out={tmp_path / 'x'}", "encoder.depth=1"]
        result = run_script("import_weights", *words)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr, result.stderr
        assert not marker.exists(), name
    assert not (tmp_path / "x").exists()


def test_code_beside_foreign_weights_is_not_run(tmp_path: Path) -> None:
    """`auto_map` in a config.json names Python files that transformers runs if it is told to."""
    from safetensors.torch import save_file

    marker, folder = tmp_path / "marker", tmp_path / "w"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}}))
    (folder / "pytorch_model.bin").write_bytes(pickled(marker))
    result = run_script("import_weights", "source=hf", f"weights={folder}", f"out={tmp_path / 'x'}")
    assert result.returncode == 1
    assert not marker.exists()


def test_a_planted_export_is_not_probed(job: Job) -> None:
    job.run("max_steps=1")
    out, marker = job.tmp / "x", job.tmp / "marker"
    assert run_script("export", f"checkpoint={job.out}", "format=official", f"out={out}").returncode == 0
    (file,) = out.glob("*.pth")
    file.write_bytes(saved(marker))
    words = [f"checkpoint={out}", f"train={job.shards}/s-*.tar", f"val={job.shards}/s-*.tar"]
    result = run_script("knn", *words, f"index_dir={job.tmp / 'i'}")
    assert result.returncode == 1
    assert "could run when it is read" in result.stderr
    for read in (load_official, pretrain.load):
        with pytest.raises(UserError, match="could run when it is read"):
            read(file if read is load_official else out)
    assert not marker.exists()


def test_a_run_saves_nothing_that_weights_only_refuses(job: Job) -> None:
    job.run("max_steps=2")
    for path in job.out.rglob("*.pt"):
        assert torch.load(path, weights_only=True)
        assert not torch.serialization.get_unsafe_globals_in_checkpoint(path)


# ── whose checkpoint it is ───────────────────────────────────────────────────────────────────────────────────────────


def test_what_everybody_may_write_to_is_not_gone_on_from(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    job.run("max_steps=2")
    for path in (job.out, job.out / "checkpoints", newest(job), newest(job) / "state.pt"):
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        with pytest.raises(UserError, match=f"everybody may write to {path}.*trust_checkpoint=true"):
            job.run("max_steps=4")
        path.chmod(mode)
    path.chmod(mode | 0o002)
    probe = [f"checkpoint={job.out}", f"train={job.shards}/s-*.tar", f"val={job.shards}/s-*.tar"]
    probe.append(f"index_dir={job.tmp / 'i'}")
    refused = run_script("knn", *probe)
    assert "trust_checkpoint=true" in refused.stderr
    assert run_script("knn", *probe, "trust_checkpoint=true").returncode == 0
    with pytest.raises(UserError, match="everybody may write to"):
        pretrain.load(job.out)
    assert pretrain.load(job.out, trust_checkpoint=True).step == 2
    assert pretrain.load(job.out, "random").step == 0
    assert run_script("knn", *probe, "features=random").returncode == 0  # reads no checkpoint
    caplog.clear()
    run = job.run("max_steps=2", "stop_after_steps=3", "trust_checkpoint=true")
    assert run.state.step == 2
    assert "is loaded since trust_checkpoint=true" in caplog.text


def test_what_a_group_may_write_to_is_gone_on_from_with_a_warning(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    before = os.umask(0o002)
    try:
        job.run("max_steps=2")
    finally:
        os.umask(before)
    job.run("max_steps=2")
    assert "is writable by its group" in caplog.text
    caplog.clear()
    for path in [job.out, *job.out.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o022)
    job.run("max_steps=2")
    assert "writable" not in caplog.text


def test_a_checkpoint_of_another_user_is_refused(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.run("max_steps=2")
    if os.geteuid() == 0:
        os.chown(newest(job) / "state.pt", 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UserError, match=r"state.pt belongs to user|run belongs to user"):
        job.run("max_steps=4")
    with pytest.raises(UserError, match="belongs to user"):
        load(job.out)
    assert job.run("max_steps=2", "trust_checkpoint=true").state.step == 2


def test_a_link_to_a_strangers_file_is_his(job: Job) -> None:
    job.run("max_steps=2")
    state, elsewhere = newest(job) / "state.pt", job.tmp / "elsewhere.pt"
    shutil.move(state, elsewhere)
    elsewhere.chmod(0o666)
    state.symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"everybody may write to .*state.pt"):
        job.run("max_steps=4")

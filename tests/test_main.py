"""`python -m pretrain`, as it is typed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pretrain.data.opening import open_shards
from tests.job import Job
from tests.program import pretrain, quiet


@pytest.fixture(autouse=True)
def _no_shards_are_named_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRETRAIN_TRAIN_SHARDS", raising=False)


def anew(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In a process that Python starts from nothing."""
    command = [sys.executable, "-m", "pretrain", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=900)


def test_cfg_job_shows_everything_without_shards_or_gpu(tmp_path: Path) -> None:
    result = anew("+experiment=mae_vitl", "--cfg", "job", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    cfg = OmegaConf.create(result.stdout)
    assert (cfg.encoder.depth, cfg.objective.decoder.depth, cfg.global_batch_size) == (24, 8, 4096)
    assert not list(tmp_path.iterdir())


def test_a_wrong_command_ends_with_sentences_and_touches_nothing(tmp_path: Path) -> None:
    result = pretrain("+experiment=mae_vitl", "encoder.depht=3", "trainer=cpu", cwd=tmp_path)
    assert result.returncode == 1
    assert "encoder.depht=3: there is no such key; did you mean encoder.depth?" in result.stderr
    assert "PRETRAIN_TRAIN_SHARDS" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_says_what_it_does(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = f"{job.shards}/s-{{000000..000003}}.tar"
    overrides = [word for word in job.overrides("max_micro_batch_size=4") if not word.startswith("data.train")]
    monkeypatch.setenv("PRETRAIN_TRAIN_SHARDS", shards)
    result = anew(*overrides, cwd=job.tmp)
    assert result.returncode == 0, result.stderr
    for line in [
        "global batch 8 = 1 device × 4 samples × 2 accumulated",
        "lr 4.6875e-05 (base_lr 0.0015 per 256), warm-up 10.0% of the run",
        "41 samples an epoch, 5 steps an epoch, 12 steps (2.3 epochs)",
        "attention sdpa, precision 32-true",
        f"checkpoint: {job.out}/checkpoints/step_00000012",
        f"{job.out}: step 12, all 12 steps are done",
    ]:
        assert line in result.stdout.splitlines()
    assert "Warning" not in result.stderr
    assert "litlogger" not in result.stdout + result.stderr
    assert {path.name for path in job.tmp.iterdir()} == {"shards", "index", "run"}  # nothing else is left behind
    again = pretrain(*overrides, cwd=job.tmp)
    assert again.returncode == 0
    assert f"{job.out} is finished: all 12 steps are done" in again.stdout


def test_a_refusal_of_the_run_has_no_traceback(job: Job) -> None:
    result = pretrain(*job.overrides("global_batch_size=100"), cwd=job.tmp)
    assert result.returncode == 1
    assert "there are only 41 images" in result.stderr
    assert "Traceback" not in result.stderr
    assert not job.out.exists()


def test_a_damaged_shard_is_said_in_one_sentence_and_nothing_is_touched(job: Job) -> None:
    shard = sorted((job.tmp / "shards").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:-3000])
    result = pretrain(*job.overrides(), cwd=job.tmp)
    assert result.returncode == 1
    assert quiet(result.stderr).startswith(f"`{shard}` is no whole tar")
    assert quiet(result.stderr).count("\n") == 1
    assert not job.out.exists()


def test_a_sweep_gets_a_folder_a_job(job: Job) -> None:
    result = pretrain("--multirun", *job.overrides("base_lr=1e-3,1e-4", "max_steps=2"), cwd=job.tmp)
    assert result.returncode == 0, result.stderr
    rates = [OmegaConf.load(job.out / str(number) / "config.yaml").base_lr for number in range(2)]
    assert rates == [1e-3, 1e-4]
    shutil.rmtree(job.out)
    wrong = pretrain("--multirun", *job.overrides("encoder.num_heads=3,5", "max_setps=2"), cwd=job.tmp)
    assert wrong.stderr.splitlines() == [
        "max_setps=2: there is no such key; did you mean max_steps?",
        "encoder.num_heads=5: must divide `embed_dim` (=24)",
    ]
    assert not job.out.exists()  # the good job has not run


def test_without_words_it_says_what_it_wants(tmp_path: Path) -> None:
    nothing, asked = anew(cwd=tmp_path), pretrain("--help", cwd=tmp_path)
    assert (nothing.returncode, asked.returncode) == (2, 0)
    assert "python -m pretrain +experiment=mae_vitl" in nothing.stdout
    assert "mae_cifar10" in nothing.stdout


def test_too_few_images_stand_among_the_other_mistakes(job: Job) -> None:
    open_shards(str(job.shards), str(job.tmp / "index"))  # which builds the index
    result = pretrain(*job.overrides("global_batch_size=100", "encoder.depth=0"), cwd=job.tmp)
    assert "encoder.depth=0: must be at least 1" in result.stderr
    assert "global_batch_size=100: there are only 41 images" in result.stderr


@pytest.mark.parametrize("experiment", ["mae_cifar10", pytest.param("mae_digits", marks=pytest.mark.full)])
def test_small_recipes_train_on_real_images(experiment: str, data_dir: Path, tmp_path: Path) -> None:
    shards = f"data.train={data_dir}/cifar10-mini/train-{{000000..000015}}.tar"
    words = [f"+experiment={experiment}", "trainer=cpu", "max_steps=2", shards, f"output_dir={tmp_path / 'run'}"]
    result = pretrain(*words, f"data.index_dir={tmp_path / 'i'}", "callbacks.log.wandb=disabled", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "8,000 samples an epoch" in result.stdout


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(["encoder.depth=1", "objective.decoder.depth=1"], id="of one block"),
        pytest.param([], id="as it is", marks=pytest.mark.full),
    ],
)
def test_a_published_recipe_shrinks_to_a_cpu_by_overrides_alone(
    data_dir: Path, tmp_path: Path, sizes: list[str]
) -> None:
    """ViT-L, two steps of four photographs."""
    words = ["+experiment=mae_vitl", "trainer=cpu", "max_steps=2", "global_batch_size=4", *sizes]
    words += [f"data.train={data_dir}/photos/photos-*.tar", f"output_dir={tmp_path / 'run'}"]
    result = pretrain(*words, f"data.index_dir={tmp_path / 'i'}", "callbacks.log.wandb=disabled", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "global batch 4 = 1 device × 4 samples × 1 accumulated" in result.stdout
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").encoder.embed_dim == 1024
    assert (tmp_path / "run" / "pictures" / "reconstruction_00000002.png").is_file()

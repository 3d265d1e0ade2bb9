"""`python -m pretrain`, as it is typed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.job import Job


def pretrain(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pretrain", *arguments]
    variables = {name: value for name, value in os.environ.items() if name != "PRETRAIN_TRAIN_SHARDS"} | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=variables, check=False, timeout=300)


def test_cfg_job_shows_everything_without_shards_or_gpu(tmp_path: Path) -> None:
    result = pretrain("+experiment=mae_vitl", "--cfg", "job", cwd=tmp_path)
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


def test_a_run_says_what_it_does(job: Job) -> None:
    shards = f"{job.shards}/s-{{000000..000003}}.tar"
    overrides = [word for word in job.overrides("batch_size_per_device=4") if not word.startswith("data.train")]
    result = pretrain(*overrides, cwd=job.tmp, PRETRAIN_TRAIN_SHARDS=shards)
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
    again = pretrain(*overrides, cwd=job.tmp, PRETRAIN_TRAIN_SHARDS=shards)
    assert again.returncode == 0
    assert f"{job.out} is finished: all 12 steps are done" in again.stdout


def test_a_refusal_of_the_run_has_no_traceback(job: Job) -> None:
    result = pretrain(*job.overrides("global_batch_size=100"), cwd=job.tmp)
    assert result.returncode == 1
    assert "there are only 41 images" in result.stderr
    assert "Traceback" not in result.stderr
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
    nothing, asked = pretrain(cwd=tmp_path), pretrain("--help", cwd=tmp_path)
    assert (nothing.returncode, asked.returncode) == (2, 0)
    assert "python -m pretrain +experiment=mae_vitl" in nothing.stdout
    assert "mae_cifar10" in nothing.stdout


def test_too_few_images_stand_among_the_other_mistakes(job: Job) -> None:
    job.run("max_steps=1")  # which builds the index
    result = pretrain(*job.overrides("global_batch_size=100", "encoder.depth=0"), cwd=job.tmp)
    assert "encoder.depth=0: must be at least 1" in result.stderr
    assert "global_batch_size=100: there are only 41 images" in result.stderr


@pytest.mark.parametrize("experiment", ["mae_cifar10", "mae_digits"])
def test_small_recipes_train_on_real_images(experiment: str, data_dir: Path, tmp_path: Path) -> None:
    shards = f"data.train={data_dir}/cifar10-mini/train-{{000000..000015}}.tar"
    words = [f"+experiment={experiment}", "trainer=cpu", "max_steps=2", shards, f"output_dir={tmp_path / 'run'}"]
    result = pretrain(*words, f"data.index_dir={tmp_path / 'i'}", "callback.log.wandb=disabled", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "8,000 samples an epoch" in result.stdout


def test_a_published_recipe_shrinks_to_a_cpu_by_overrides_alone(data_dir: Path, tmp_path: Path) -> None:
    """ViT-L, as it is, two steps of four photographs."""
    words = ["+experiment=mae_vitl", "trainer=cpu", "max_steps=2", "global_batch_size=4"]
    words += [f"data.train={data_dir}/photos/photos-*.tar", f"output_dir={tmp_path / 'run'}"]
    result = pretrain(*words, f"data.index_dir={tmp_path / 'i'}", "callback.log.wandb=disabled", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "global batch 4 = 1 device × 4 samples × 1 accumulated" in result.stdout
    assert (tmp_path / "run" / "pictures" / "reconstruction_00000002.png").is_file()

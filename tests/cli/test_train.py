"""`pretrain train` is `python -m pretrain`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.job import Job
from tests.program import pretrain
from tests.scripts import run_command


def train(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pretrain.cli.main", "train", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=900)


def test_flags_and_words_mean_the_same(tmp_path: Path) -> None:
    words = ["+experiment=mae_digits", "encoder.depth=3", "--cfg", "job"]
    ours, theirs = train(*words, cwd=tmp_path), pretrain(*words, cwd=tmp_path)
    assert (ours.returncode, theirs.returncode) == (0, 0)
    assert ours.stdout == theirs.stdout
    assert "--multirun" in run_command("train", "--help").stdout


def test_it_trains_as_several_ranks(job: Job) -> None:
    words = job.overrides("trainer=ddp", "accelerator=cpu", "devices=2", "max_steps=2")
    wrong = train(*words, "encoder.depht=2", cwd=job.tmp)
    assert wrong.returncode == 1
    assert "encoder.depht=2: there is no such key; did you mean encoder.depth?" in wrong.stderr
    result = train(*words, cwd=job.tmp)
    assert result.returncode == 0, result.stderr
    assert "all 2 steps are done" in result.stdout

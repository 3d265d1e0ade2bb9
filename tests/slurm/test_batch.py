"""The batch scripts, without a Slurm: what they have srun run, as how many processes, and what they do after it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.slurm.dry import ROOT, run_batch

WORDS = ["+experiment=mae_vitl", "data.train=/data/a b/train-{000000..000009}.tar", "name=it's"]


def environment(folder: Path) -> dict[str, str]:
    """What the training would find."""
    return dict(line.split("=", 1) for line in (folder / "srun.environment").read_text().splitlines() if "=" in line)


def venv(folder: Path) -> Path:
    """What looks like a virtual environment."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    return folder


def test_words_are_passed_on_as_they_are(tmp_path: Path) -> None:
    process, words = run_batch("pretrain.sbatch", WORDS, tmp_path)
    assert process.returncode == 0, process.stderr
    assert words[words.index("python") :] == ["python", "-m", "pretrain", *WORDS]
    assert "--kill-on-bad-exit=1" in words


@pytest.mark.parametrize(
    ("given", "spread"),
    [
        ({}, ["--ntasks-per-node=1"]),
        ({"SLURM_GPUS_ON_NODE": "8"}, ["--ntasks-per-node=8"]),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "8"}, ["--ntasks-per-node=8"]),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "2"}, []),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS": "4"}, []),
    ],
)
def test_there_is_a_process_for_each_gpu_unless_the_user_says_how_many(
    tmp_path: Path, given: dict[str, str], spread: list[str]
) -> None:
    _, words = run_batch("pretrain.sbatch", WORDS, tmp_path, **given)
    assert [word for word in words if word.startswith("--ntasks")] == spread


@pytest.mark.parametrize(
    ("given", "each"),
    [
        ({"SLURM_GPUS_ON_NODE": "8"}, "12"),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "3"}, "3"),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_CPUS_PER_NODE": "96,64(x3)"}, "8"),
        ({"SLURM_NTASKS_PER_NODE": "2"}, "48"),
        ({"SLURM_NTASKS": "6", "SLURM_TASKS_PER_NODE": "3(x2)"}, "32"),
        ({"SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_JOB_CPUS_PER_NODE": "1(x2)"}, "1"),
        ({}, "96"),
    ],
)
def test_processes_share_all_processors_of_a_node(tmp_path: Path, given: dict[str, str], each: str) -> None:
    """srun would give each of them one, and confine it to that."""
    process, words = run_batch("pretrain.sbatch", WORDS, tmp_path, **{"SLURM_JOB_CPUS_PER_NODE": "96(x2)"} | given)
    assert process.returncode == 0, process.stderr
    assert [word for word in words if word.startswith("--cpus")] == [f"--cpus-per-task={each}"]


def test_gpus_that_slurm_does_not_count_are_counted(tmp_path: Path) -> None:
    run_batch("pretrain.sbatch", WORDS, tmp_path)
    (tmp_path / "slurm-programs" / "nvidia-smi").write_text("#!/bin/sh\nfor i in 0 1 2 3; do echo GPU $i: H100; done\n")
    _, words = run_batch("pretrain.sbatch", WORDS, tmp_path)
    assert "--ntasks-per-node=4" in words


def test_gpus_without_processors_are_refused(tmp_path: Path) -> None:
    process, words = run_batch("pretrain.sbatch", WORDS, tmp_path, SLURM_GPUS_ON_NODE="8", SLURM_CPUS_ON_NODE="2")
    assert process.returncode == 2
    assert words == []
    assert "8 GPUs want as many processes, but the job has 2 CPUs on a node: give sbatch --exclusive" in process.stderr


def test_where_the_processes_meet(tmp_path: Path) -> None:
    run_batch("pretrain.sbatch", WORDS, tmp_path)
    first = environment(tmp_path)
    run_batch("pretrain.sbatch", WORDS, tmp_path, SLURM_RESTART_COUNT="1")
    again = environment(tmp_path)
    run_batch("pretrain.sbatch", WORDS, tmp_path, MASTER_ADDR="10.0.0.7", MASTER_PORT="777")
    given = environment(tmp_path)
    assert first["MASTER_ADDR"] == again["MASTER_ADDR"] == "n7"
    assert 10_000 <= int(first["MASTER_PORT"]) < 30_000
    assert first["MASTER_PORT"] != again["MASTER_PORT"]
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("10.0.0.7", "777")


def test_what_the_training_reads_is_passed_on(tmp_path: Path) -> None:
    run_batch("pretrain.sbatch", WORDS, tmp_path, PRETRAIN_TRAIN_SHARDS="/data/a b", WANDB_MODE="offline")
    found = environment(tmp_path)
    assert (found["PRETRAIN_TRAIN_SHARDS"], found["WANDB_MODE"]) == ("/data/a b", "offline")
    assert (found["SLURM_EXPORT_ENV"], found["PWD"]) == ("ALL", str(tmp_path))
    run_batch("pretrain.sbatch", WORDS, tmp_path)
    assert "PRETRAIN_TRAIN_SHARDS" not in environment(tmp_path)


def test_which_python(tmp_path: Path) -> None:
    def first_on_path(**variables: str) -> str:
        run_batch("pretrain.sbatch", WORDS, tmp_path, **variables)
        return environment(tmp_path)["PATH"].split(":")[0]

    assert first_on_path() == str(tmp_path / "slurm-programs")  # as it was on PATH
    beside = venv(tmp_path / ".venv")
    assert first_on_path() == str(beside / "bin")
    other = venv(tmp_path / "other")
    assert first_on_path(PRETRAIN_VENV="other") == str(other / "bin")
    process, words = run_batch("pretrain.sbatch", WORDS, tmp_path, PRETRAIN_VENV="/nowhere")
    assert (process.returncode, words) == (2, [])
    assert "/nowhere is no virtual environment; PRETRAIN_VENV may name another" in process.stderr


@pytest.mark.parametrize("file", ["pretrain", "probe", "export"])
def test_a_container_takes_the_place_of_the_environment(tmp_path: Path, file: str) -> None:
    given = {"pretrain": WORDS, "probe": ["knn", "checkpoint=c", "train=t"], "export": ["checkpoint=c", "format=hf"]}
    image = tmp_path / "pretrain.sif"
    process, words = run_batch(f"{file}.sbatch", given[file], tmp_path, PRETRAIN_CONTAINER=str(image))
    assert (process.returncode, words) == (2, [])
    image.touch()
    _, words = run_batch(f"{file}.sbatch", given[file], tmp_path, PRETRAIN_CONTAINER=str(image))
    start = words.index("apptainer")
    assert words[start + 1] == "exec"
    assert words[start + 2 :][:4] == ["--bind", str(tmp_path), "--pwd", str(tmp_path)]
    assert words[words.index(str(image)) + 1] == ("python" if file == "pretrain" else "pretrain")


RUNS, PREEMPTED, ENDS = (
    "JobState=RUNNING PreemptTime=None",
    "JobState=RUNNING PreemptTime=2026-01-01T00:00:00",
    "JobState=COMPLETING PreemptTime=None",
)


@pytest.mark.parametrize(
    ("code", "job", "requeued"),
    [
        *((code, PREEMPTED, False) for code in (0, 1, 3, 137)),
        *((138, job, job != ENDS) for job in (RUNS, PREEMPTED, ENDS)),
        *((143, job, job == PREEMPTED) for job in (RUNS, PREEMPTED, ENDS)),
    ],
)
def test_a_stop_that_the_training_did_not_hear_is_heard_here(
    tmp_path: Path, code: int, job: str, requeued: bool
) -> None:
    process, _ = run_batch("pretrain.sbatch", WORDS, tmp_path, SRUN_EXITS=str(code), JOB_IS=job)
    asked = tmp_path / "scontrol.words"
    assert process.returncode == code
    assert (asked.read_text() if asked.exists() else "") == ("requeue 41\n" if requeued else "")


@pytest.mark.parametrize("signal", ["SIGUSR1", "SIGTERM"])
def test_what_a_container_asks_for_is_done_unless_the_job_is_cancelled(tmp_path: Path, signal: str) -> None:
    run_batch("pretrain.sbatch", WORDS, tmp_path)
    (tmp_path / "slurm-programs" / "srun").write_text(f'#!/bin/sh\necho {signal} > "$PRETRAIN_REQUEUE"; exit 137\n')
    for job in (ENDS, PREEMPTED):
        assert not (tmp_path / "scontrol.words").exists()
        run_batch("pretrain.sbatch", WORDS, tmp_path, JOB_IS=job)
    assert (tmp_path / "scontrol.words").read_text() == "requeue 41\n"
    assert not list(tmp_path.glob(".requeue*"))


def test_probes_and_exports_go_into_the_runs_folder(tmp_path: Path) -> None:
    _, words = run_batch("probe.sbatch", ["linear", "checkpoint=runs/x", "val=v"], tmp_path, PRETRAIN_TRAIN_SHARDS="/t")
    found = words[words.index("pretrain") :]
    assert found == [
        "pretrain",
        "probe",
        "linear",
        "checkpoint=runs/x",
        "val=v",
        "train=/t",
        "out=runs/x/probe/linear.json",
    ]
    _, words = run_batch("probe.sbatch", ["knn", "checkpoint=runs/x", "train=t", "val=v", "out=o"], tmp_path)
    assert words[-7:] == ["pretrain", "probe", "knn", "checkpoint=runs/x", "train=t", "val=v", "out=o"]
    _, words = run_batch("export.sbatch", ["checkpoint=runs/x", "format=timm"], tmp_path)
    assert words[-5:] == ["pretrain", "export", "checkpoint=runs/x", "format=timm", "out=runs/x/export/timm"]


@pytest.mark.parametrize(
    ("file", "words", "sentence"),
    [
        ("probe", ["checkpoint=x"], "the first word must be knn or linear, not 'checkpoint=x'"),
        ("probe", ["knn", "train=t"], "checkpoint=… is missing"),
        ("probe", ["knn", "checkpoint=x"], "train=… is missing"),
        ("export", ["format=hf"], "checkpoint=… is missing"),
        ("export", ["checkpoint=x"], "format=… is missing"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(
    tmp_path: Path, file: str, words: list[str], sentence: str
) -> None:
    process, ran = run_batch(f"{file}.sbatch", words, tmp_path)
    assert (process.returncode, ran) == (2, [])
    assert sentence in process.stderr


@pytest.mark.parametrize("file", ["probe", "export"])
def test_without_the_command_the_job_says_so(tmp_path: Path, file: str) -> None:
    process, ran = run_batch(f"{file}.sbatch", ["knn", "checkpoint=x", "train=t", "format=hf"], tmp_path, PATH="/bin")
    assert (process.returncode, ran) == (2, [])
    assert "pretrain is not on PATH" in process.stderr


def test_the_cluster_of_the_tests_says_how_it_is_used() -> None:
    command = [sys.executable, str(ROOT / "tests" / "slurm" / "cluster.py"), "help"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "cluster.py up FOLDER" in process.stderr


def test_both_containers_are_made_of_the_same_files_and_all_are_there() -> None:
    """Without the programs that build them, this is what can be told."""
    docker = (ROOT / "container" / "Dockerfile").read_text()
    copied = [line.split()[1:-1] for line in docker.splitlines() if line.startswith("COPY")]
    definition = (ROOT / "container" / "pretrain.def").read_text()
    listed = definition.partition("%files\n")[2].partition("\n%post")[0].split("\n")
    files = {name for names in copied for name in names}
    assert files == {line.split()[0] for line in listed if line.strip()}
    assert all((ROOT / name).exists() for name in files)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {project["project"]["readme"], *project["project"]["license-files"]}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert needed | {*wheel["packages"], *wheel["force-include"]} <= files
    for package in ("python3-venv", "libjpeg-turbo8-dev"):
        assert package in docker
        assert package in definition

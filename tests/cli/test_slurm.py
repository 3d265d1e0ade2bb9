"""`pretrain slurm`: the files of a batch job and of a container, written for whoever has no checkout."""

from __future__ import annotations

from pathlib import Path

from tests.scripts import FOLDER, run_command

NAMES = ["container/Dockerfile", "container/pretrain.def", "export.sbatch", "pretrain.sbatch", "probe.sbatch"]


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_files_are_those_of_the_project(tmp_path: Path) -> None:
    result = run_command("slurm", f"out={tmp_path / 'a' / 'b'}")
    assert result.returncode == 0, result.stderr
    assert written(tmp_path / "a" / "b") == NAMES
    assert sorted(result.stdout.split()) == [str(tmp_path / "a" / "b" / name) for name in NAMES]
    for name in NAMES:
        home = FOLDER.parent if name.startswith("container") else FOLDER.parent / "slurm"
        assert (tmp_path / "a" / "b" / name).read_bytes() == (home / name).read_bytes()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    assert run_command("slurm", f"out={tmp_path}").returncode == 0
    (tmp_path / "export.sbatch").write_text("mine")
    (tmp_path / "probe.sbatch").unlink()
    result = run_command("slurm", f"out={tmp_path}")
    assert result.returncode == 1
    assert f"`{tmp_path / 'export.sbatch'}`: there already, and different" in result.stderr
    assert (tmp_path / "export.sbatch").read_text() == "mine"
    assert not (tmp_path / "probe.sbatch").exists()
    (tmp_path / "export.sbatch").unlink()
    assert run_command("slurm", f"out={tmp_path}").returncode == 0  # what is the same stays
    assert written(tmp_path) == NAMES


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run_command("slurm", f"out={tmp_path / 'file'}")
    assert result.returncode == 1
    assert "cannot be written" in result.stderr
    assert "Traceback" not in result.stderr

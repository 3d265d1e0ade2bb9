"""What the shard doctor is asked to write: nothing that exists is written over, and that is said before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.shards import write_shards
from tests.scripts import run_script

BUSY = ["notes.json", "notes.png", "stats/stats.png", "new/reshard.json", "file", "s.tar"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards in d, and files of somebody else."""
    write_shards(tmp_path / "d", [3])
    for name in BUSY:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("precious")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["verify", "out=d/s-000000.tar"], "out=d/s-000000.tar: must be a file called NAME.json"),
        (["verify", "skip=d/s-000000.tar"], "skip=d/s-000000.tar: must be a file called NAME.json"),
        (["verify", "out=notes.json"], "out=notes.json: `notes.json` exists"),
        (["verify", "skip=notes.json"], "skip=notes.json: `notes.json` exists"),
        (["verify", "out=a.json", "skip=./a.json"], "are the same file"),
        (["verify", "out=gone/a.json"], "in a folder that is there"),
        (["dedupe", "out=new.png"], "out=new.png: must be a file called NAME.json"),
        (["dedupe", "out=notes.json"], "`notes.png` exists"),
        (["stats", "out=stats"], "`stats/stats.png` exists"),
        (["stats", "out=file"], "file` is a file; choose another folder"),
        (["stats", "out=file/below"], "file` is a file; choose another folder"),
        (["reshard", "out=new"], "`new/reshard.json` exists"),
        (["reshard", "out=file"], "file` is a file; choose another folder"),
    ],
)
def test_nothing_is_written_over(folder: Path, words: list[str], sentence: str) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    action, *rest = words
    result = run_script("shards", f"action={action}", "data=d/*.tar", *rest)
    assert (result.returncode, result.stdout) == (1, "")
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_all_that_is_wrong_is_said_at_once(folder: Path) -> None:
    words = ["data=nothing/*.tar", "out=notes.json", "skip=gone.json", "distance=2"]
    lines = run_script("shards", "action=dedupe", *words).stderr
    for words_of_one in ("no shard matches", "`notes.json` exists", "`gone.json` cannot be read", "distance=2"):
        assert words_of_one in lines

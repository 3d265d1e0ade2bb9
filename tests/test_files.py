"""Files and folders that are whole or absent, and what is left of them when their writer is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.data.shard.index import open_index
from pretrain.doctor.index import build_index
from pretrain.doctor.stats import stats
from pretrain.files import remove_leftovers, replace_file, replace_folder
from pretrain.trainer.run_folder import RunFolder
from tests.data.shards import write_shards

# A process that is killed when all of a file or folder is written, under its other name.
DIES = """
    import os, signal, sys
    from pathlib import Path
    from pretrain import files
    os.replace = os.rename = files._exchange = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    for path in map(Path, sys.argv[1:]):
        if os.fork() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix:
                files.replace_file(path, b"half")
            else:
                files.replace_folder(path, lambda partial: (partial / "large").write_bytes(b"half"))
        os.wait()
"""


def killed_at(*paths: Path) -> None:
    """Leaves of each file, or folder where the name has no suffix, what a process that is killed does."""
    subprocess.run([sys.executable, "-c", textwrap.dedent(DIES), *map(str, paths)], check=True)
    for path in paths:
        assert [one for one in path.parent.iterdir() if one.suffix == ".tmp" and path.name in one.name]


def leftovers(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*.tmp")]


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    killed_at(tmp_path / "a.json", tmp_path / "folder")
    assert len(leftovers(tmp_path)) == 2
    remove_leftovers(tmp_path, "b.json")
    assert len(leftovers(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
    remove_leftovers(tmp_path / "nowhere")


def test_what_others_write_and_what_is_not_ours_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = ["notes.tmp", "a.json.tmp", "a.json.0123456789ab.tmp", f"a.json.01234567-{2**22 + 1}-01234567.tmp"]
    for name in foreign:
        (tmp_path / name).write_text("somebody's")
    with monkeypatch.context() as patch:  # of another machine whose process has a number that none has here
        patch.setattr(os, "getpid", lambda: 2**22 + 1)
        patch.setattr("pretrain.files.machine", lambda: "elsewhere")
        patch.setattr(os, "replace", lambda *_: 0)
        replace_file(tmp_path / "there.json", b"")

    def look(partial: Path) -> None:
        code = "import sys, pathlib, pretrain.files as files; files.remove_leftovers(pathlib.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
        assert partial.is_dir()

    before = set(tmp_path.iterdir())
    assert len(before) == len(foreign) + 1
    replace_folder(tmp_path / "living", look)
    assert set(tmp_path.iterdir()) == before | {tmp_path / "living"}


def test_a_folder_that_is_written_again_leaves_none_of_those_that_were_killed(tmp_path: Path) -> None:
    killed_at(*[tmp_path / "export"] * 3, tmp_path / "export-2")
    replace_folder(tmp_path / "export", lambda partial: (partial / "a").touch())
    assert sorted(path.name.partition("2.")[0] for path in tmp_path.iterdir()) == [".export-", "export"]


def test_the_old_folder_stays_until_the_new_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system cannot swap two names, a kill between them leaves the old one alone, under another name."""
    monkeypatch.setattr("pretrain.files._exchange", lambda *_: False)
    target = tmp_path / "export"
    replace_folder(target, lambda partial: (partial / "first").touch())
    code = """
        import os, signal, sys
        from pathlib import Path
        from pretrain import files
        files._exchange, rename = lambda *_: False, os.rename
        os.rename = lambda one, other: (rename(one, other), os.kill(os.getpid(), signal.SIGKILL))
        files.replace_folder(Path(sys.argv[1]), lambda partial: None)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(target)])
    assert result.returncode == -signal.SIGKILL
    assert not target.exists()

    def look(partial: Path) -> None:
        assert [path.name for path in tmp_path.glob(".export.*/first")] == ["first"]
        (partial / "second").touch()

    replace_folder(target, look)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["export", "export/second"]


def an_index_beside(folder: Path) -> None:
    build_index([str(path) for path in sorted(folder.glob("*.tar"))], None, beside=True, workers=1)


def an_index_in_the_cache(folder: Path) -> None:
    open_index([str(path) for path in sorted(folder.glob("*.tar"))], str(folder / "cache"))


def statistics(folder: Path) -> None:
    stats(open_index([str(path) for path in sorted(folder.glob("*.tar"))], str(folder / "cache")), 1).write(folder)


@pytest.mark.parametrize(
    ("tool", "names"),
    [
        (an_index_beside, ["s-000000.tar.idx", "index.json"]),
        (an_index_in_the_cache, ["cache/0-s-000000.tar.idx", "cache/lists/0.json"]),
        (statistics, ["stats.json", "stats.png"]),
    ],
)
def test_what_is_started_again_takes_away_what_it_left(
    tmp_path: Path, tool: Callable[[Path], None], names: list[str]
) -> None:
    write_shards(tmp_path / "d", [2])
    killed_at(*(tmp_path / "d" / name for name in names))
    assert len(leftovers(tmp_path)) == len(names)
    tool(tmp_path / "d")
    assert leftovers(tmp_path) == []


def test_a_run_that_goes_on_takes_away_what_it_left(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def begin() -> None:
        opened = RunFolder(run, {}, {}, "auto")
        opened.record("")
        opened.close()

    begin()
    killed_at(*(run / name for name in ("config.yaml", "goodput.json", "ledger/rank_00000.jsonl", "incidents/step")))
    begin()
    assert leftovers(run) == []

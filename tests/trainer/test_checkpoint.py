"""Checkpoints are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.launch.world import World
from pretrain.records import UserError
from pretrain.trainer import checkpoint
from pretrain.trainer.checkpoint import is_complete, load, newest, save
from pretrain.trainer.team import Team
from tests.program import FORKS

STATE = {"weights": {"a": torch.arange(1000.0)}, "step": 3, "name": "x"}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, 3, STATE, keep_last=2)
    assert path.name == "step_00000003"
    state = load(path)
    assert torch.equal(state["weights"]["a"], STATE["weights"]["a"])  # type: ignore[index]
    assert (state["step"], state["name"]) == (3, "x")


def test_the_newest_complete_one_is_found(tmp_path: Path) -> None:
    assert newest(tmp_path / "nothing") is None
    for step in (1, 2, 30):
        save(tmp_path, step, STATE, keep_last=9)
    assert newest(tmp_path) == tmp_path / "step_00000030"
    os.truncate(tmp_path / "step_00000030" / "state.pt", 100)
    assert newest(tmp_path) == tmp_path / "step_00000002"
    (tmp_path / "step_00000002" / "COMPLETE").unlink()
    assert newest(tmp_path) == tmp_path / "step_00000001"
    with pytest.raises(ValueError, match="no complete checkpoint"):
        load(tmp_path / "step_00000002")
    save(tmp_path, 2, STATE, keep_last=9)  # in the place of the broken one
    assert newest(tmp_path) == tmp_path / "step_00000002"


def test_old_ones_and_leftovers_go_after_the_new_one_is_there(tmp_path: Path) -> None:
    (tmp_path / "step_00000000.tmp").mkdir()
    for step in range(1, 6):
        save(tmp_path, step, STATE, keep_last=2)
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_00000004", "step_00000005"]


def test_some_are_kept_for_good(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step, STATE, keep_last=1, keep_every=3)
    assert sorted(path.name[-1] for path in tmp_path.glob("step_*")) == ["3", "6", "7"]


def test_what_goes_on_changing_is_copied(tmp_path: Path) -> None:
    """And the copies' memory is used again by the next save."""
    copies: dict[str, torch.Tensor] = {}
    for step in (1, 2):
        state = {"a": torch.full((4,), float(step)), "step": step}
        write = checkpoint.writer(tmp_path, step, state, 9, None, Team(World()), copies)
        state["a"].fill_(-1.0)
        assert torch.equal(load(write())["a"], torch.full((4,), float(step)))
        memory = copies["/a"].data_ptr()
    assert copies["/a"].data_ptr() == memory


def test_too_little_room_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(OSError, match="4,000,000 bytes are needed, 1,000,000 are free"):
        save(tmp_path, 1, {"a": torch.zeros(1_000_000)}, keep_last=1)
    assert not list(tmp_path.iterdir())


def test_a_delete_that_is_killed_leaves_nothing_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half of a checkpoint would look like a damaged one."""
    save(tmp_path, 1, {"step": 1}, keep_last=1)

    def killed(path: Path, **_: object) -> None:
        (path / "COMPLETE").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2, {"step": 2}, keep_last=1)
    assert checkpoint.damaged(tmp_path) == []
    save(tmp_path, 3, {"step": 3}, keep_last=1)
    assert {path.name for path in tmp_path.iterdir()} == {"latest", "step_00000003"}


def test_a_failed_delete_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, STATE, keep_last=1)

    def refuse(path: Path, **_: object) -> None:
        raise OSError("busy")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with caplog.at_level(logging.WARNING):
        save(tmp_path, 2, STATE, keep_last=1)
    assert newest(tmp_path) == tmp_path / "step_00000002"
    assert "cannot delete" in caplog.text


@pytest.mark.parametrize("fails", ["torch.save", "os.fsync", "os.rename"])
def test_a_save_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    save(tmp_path, 1, STATE, keep_last=1)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fails, fail)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, STATE, keep_last=1)
    assert newest(tmp_path) == tmp_path / "step_00000001"
    assert not list(tmp_path.glob("*.tmp"))


def save_forever(folder: Path, first: int, steps: Connection) -> None:
    for step in range(first, 10_000):
        save(folder, step, {"a": torch.arange(3_000_000)}, keep_last=2)
        steps.send(step)


def test_killed_while_saving_there_is_always_one_to_go_on_from(tmp_path: Path) -> None:
    last = 0
    for kill in range(5):
        here, there = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=save_forever, args=(tmp_path, last + 1, there))
        process.start()
        there.close()  # so that its end is noticed
        for _ in range(3):
            last = here.recv()
        time.sleep(0.013 * kill)
        process.kill()
        process.join()
        found = newest(tmp_path)
        assert found is not None
        last = int(found.name.removeprefix("step_"))
        assert torch.equal(load(found)["a"], torch.arange(3_000_000))


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    path, marker = save(tmp_path / "c", 1, STATE, keep_last=1), tmp_path / "marker"
    torch.save({"objective": Evil(marker)}, path / "state.pt")
    size = (path / "state.pt").stat().st_size
    (path / "COMPLETE").write_text(f'{{"step": 1, "files": {{"state.pt": {size}}}}}')
    assert is_complete(path)
    with pytest.raises(UserError, match="holds more than tensors and plain data"):
        load(path)
    assert not marker.exists()


def test_training_goes_on_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.job import Job

    job, real = Job(tmp_path), checkpoint.writer
    calls = []

    def sometimes(*arguments: Any, **named: Any) -> Callable[[], Path]:
        calls.append(arguments[1])
        write = real(*arguments, **named)

        def full() -> Path:
            raise OSError(28, "No space left on device")

        return full if len(calls) == 1 else write

    monkeypatch.setattr(checkpoint, "writer", sometimes)
    job.run("checkpoint.every_steps=5")
    assert calls == [5, 10, 12]
    assert job.rows()[-1]["failed_saves"] == 1
    assert "no checkpoint of step 5: [Errno 28] No space left on device. Training goes on" in caplog.text


def test_a_file_system_without_room_is_an_oserror(tmp_path: Path) -> None:
    """What torch raises when a write fails in the middle is no OSError by itself."""
    save(tmp_path, 1, STATE, keep_last=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match="cannot write"):
            save(tmp_path, 2, {"a": torch.zeros(10_000)}, keep_last=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert newest(tmp_path) == tmp_path / "step_00000001"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_file_system_without_links_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refused)
    saved = checkpoint.save(tmp_path, 5, {"step": 5}, keep_last=1)
    assert checkpoint.newest(tmp_path) == saved
    assert "latest" in caplog.text

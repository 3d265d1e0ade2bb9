"""Checkpoints that are whole or absent.

`checkpoints/step_00000100/` holds `state.pt` and `COMPLETE`, a manifest of its files. It is written under another
name beside its place, flushed to disk, the manifest last, and then renamed; nothing is ever overwritten. What is
found when a run starts is the newest folder whose manifest is there and true.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from pretrain.trainer.trust import read_state

log = logging.getLogger(__name__)

_MANIFEST = "COMPLETE"


def save(folder: Path, step: int, state: dict[str, Any], keep_last: int) -> Path:
    """Writes the checkpoint of a step and deletes all but the newest ones.

    Args:
        folder: of the run's checkpoints.
        step: optimizer steps done.
        state: tensors, numbers, strings, and lists and dictionaries of them.
        keep_last: how many of the newest to keep.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    target = folder / f"step_{step:08d}"
    if is_complete(target):
        return target
    partial = folder / f"step_{step:08d}.tmp"
    for leftover in (partial, target):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir(parents=True)
    try:
        write(partial / "state.pt", state)
        files = {path.name: path.stat().st_size for path in partial.iterdir()}
        with open(partial / _MANIFEST, "w", encoding="utf-8") as file:
            json.dump({"step": step, "files": files}, file)
            file.flush()
            _flush(file.fileno())
        _flush_folder(partial)
        os.rename(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush_folder(folder)
    _point_latest(folder, target)
    _prune(folder, keep_last)
    return target


def write(path: Path, state: dict[str, Any]) -> None:
    """Writes a file of tensors, numbers, strings, and lists and dictionaries of them, and flushes it to disk.

    Raises:
        OSError: it cannot be written.
    """
    with open(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as failure:  # what torch makes of a full disk
            raise OSError(f"cannot write `{path}`: {failure}") from failure
        _flush(file.fileno())


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU. Nothing in it is executed.

    Raises:
        ValueError: the checkpoint is not complete, or holds what could run (a `UserError`).
    """
    if not is_complete(path):
        raise ValueError(f"`{path}` is no complete checkpoint")
    return read_state(path / "state.pt")


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, None if there is none."""
    complete = [path for path in _by_step(folder) if is_complete(path)]
    return complete[-1] if complete else None


def damaged(folder: Path) -> list[Path]:
    """The checkpoints of a run that were whole once and are no longer."""
    return [path for path in _by_step(folder) if not is_complete(path)]


def is_complete(path: Path) -> bool:
    """Whether a checkpoint has a manifest and all the files that it lists, with their sizes."""
    try:
        files = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((path / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _by_step(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(path for path in found if re.fullmatch(r"step_\d{8,}", path.name))


def _point_latest(folder: Path, target: Path) -> None:
    """`latest` → the newest checkpoint, for people; swapped by a rename."""
    link = folder / "latest.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    os.replace(link, folder / "latest")


def _prune(folder: Path, keep_last: int) -> None:
    """Deletes the oldest checkpoints and what killed saves left. A failure to delete is no reason to stop training."""
    complete = [path for path in _by_step(folder) if is_complete(path)]
    for path in [*complete[:-keep_last], *folder.glob("step_*.tmp")]:
        try:
            shutil.rmtree(path)
        except OSError as failure:
            log.warning("cannot delete the old checkpoint `%s`: %s", path, failure)


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as failure:
        if failure.errno != errno.EINVAL:  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)

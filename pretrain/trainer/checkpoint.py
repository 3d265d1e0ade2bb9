"""Checkpoints that are whole or absent.

`checkpoints/step_00000100/` holds `state.pt`, the ranks' files where something is sharded (`pieces.py`), and
`COMPLETE`, a manifest of them. It is written under another name beside its place, flushed to disk, the manifest last,
and then renamed; nothing is ever overwritten. What is found when a run starts is the newest folder whose manifest is
there and true.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.records import UserError
from pretrain.trainer import pieces
from pretrain.trainer.pieces import write as write
from pretrain.trainer.team import ALONE, Team

log = logging.getLogger(__name__)

_MANIFEST = "COMPLETE"
_ROOM = 1 << 20  # bytes that files need beside their tensors


def save(
    folder: Path,
    step: int,
    state: dict[str, Any],
    keep_last: int,
    keep_every: int | None = None,
    team: Team = ALONE,
) -> Path:
    """Writes the checkpoint of a step and deletes all but the newest ones. All ranks call it.

    Args:
        folder: of the run's checkpoints.
        step: optimizer steps done.
        state: tensors, numbers, strings, and lists and dictionaries of them.
        keep_last: how many of the newest to keep.
        keep_every: those of multiples of so many steps are kept for good.
        team: the ranks.

    Raises:
        OSError: it cannot be written, by one of the ranks; what was there before is still there.
    """
    return writer(folder, step, state, keep_last, keep_every, team)()


def writer(
    folder: Path,
    step: int,
    state: dict[str, Any],
    keep_last: int,
    keep_every: int | None,
    team: Team,
    copies: dict[str, Tensor] | None = None,
) -> Callable[[], Path]:
    """The same in two parts: what is saved is taken now, and what is returned writes it, in another thread perhaps.

    Args:
        copies: given if the state goes on changing meanwhile, see `pieces.taken`.
    """
    whole, mine = pieces.taken(state, team.leads, copies)

    def write_all() -> Path:
        target = folder / f"step_{step:08d}"
        if team.first(lambda: is_complete(target)):
            return target
        partial = folder / f"step_{step:08d}.tmp"
        try:
            _all_or_none(team, lambda: _begin(partial, target) if team.leads else None)
            sizes = _all_or_none(team, lambda: _write_mine(partial, whole, mine, team))
            _all_or_none(team, lambda: _finish(partial, target, step, sizes) if team.leads else None)
        except BaseException:
            if team.leads:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        if team.leads:
            _point_latest(folder, target)
            _prune(folder, keep_last, keep_every)
        return target

    return write_all


def _all_or_none(team: Team, do: Callable[[], Any]) -> list[Any]:
    """What each rank did, by rank; all fail if one does.

    Raises:
        OSError: one of them failed.
    """
    made, failure = None, ""
    try:
        made = do()
    except OSError as error:
        failure = str(error)
    answers = team.gather((made, failure))
    for rank, (_, said) in enumerate(answers):
        if said:
            raise OSError(f"rank {rank}: {said}" if team.size > 1 else said)
    return [one for one, _ in answers]


def _begin(partial: Path, target: Path) -> None:
    for leftover in (partial, target):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir(parents=True)


def _write_mine(partial: Path, whole: Any, mine: dict[str, Any], team: Team) -> dict[str, int]:
    """Writes this rank's files; returns their sizes by name."""
    files = {"state.pt": whole} if team.leads else {}
    if mine:
        files[f"shard_{team.rank:05d}_of_{team.size:05d}.pt"] = mine
    _refuse_full_disk(partial, sum(map(pieces.size_of, files.values())))
    for name, content in files.items():
        pieces.write(partial / name, content)
    return {name: (partial / name).stat().st_size for name in files}


def _refuse_full_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + _ROOM > free:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed, {free:,} are free", str(folder))


def _finish(partial: Path, target: Path, step: int, sizes: list[dict[str, int]]) -> None:
    """The manifest, and the name."""
    files = {name: size for one in sizes for name, size in one.items()}
    with open(partial / _MANIFEST, "w", encoding="utf-8") as file:
        json.dump({"step": step, "files": files}, file)
        file.flush()
        os.fsync(file.fileno())
    _flush_folder(partial)
    os.rename(partial, target)
    _flush_folder(target.parent)


def load(path: Path, only: Sequence[str] = ()) -> dict[str, Any]:
    """The state in a checkpoint, whole, on the CPU. Nothing in it is executed.

    Args:
        path: of the checkpoint.
        only: the keys that are wanted, if not all are.

    Raises:
        UserError: the checkpoint is not complete, or holds what could run.
    """
    stored = read(path)
    state: dict[str, Any] = pieces.assembled({key: stored[key] for key in only or stored})
    return state


def read(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, sharded tensors as `Pieces`, of which nothing is read yet.

    Raises:
        UserError: the checkpoint is not complete.
    """
    files = _files(path)
    if not is_complete(path):
        raise UserError(f"`{path}` is no complete checkpoint")
    state: dict[str, Any] = pieces.read(path, list(files))
    return state


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, None if there is none."""
    complete = [path for path in _by_step(folder) if is_complete(path)]
    return complete[-1] if complete else None


def damaged(folder: Path) -> list[Path]:
    """The checkpoints of a run that were whole once and are no longer."""
    return [path for path in _by_step(folder) if not is_complete(path)]


def is_complete(path: Path) -> bool:
    """Whether a checkpoint has a manifest and all the files that it lists, with their sizes."""
    files = _files(path)
    try:
        return bool(files) and all((path / name).stat().st_size == size for name, size in files.items())
    except OSError:
        return False


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.removeprefix("step_"))


def _files(path: Path) -> dict[str, int]:
    """The files that a manifest lists, and their sizes; none where there is no manifest."""
    try:
        files: dict[str, int] = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))["files"]
        return {str(name): int(size) for name, size in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _by_step(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else []
    return sorted((path for path in found if re.fullmatch(r"step_\d{8,}", path.name)), key=step_of)


def _point_latest(folder: Path, target: Path) -> None:
    """`latest` → the newest checkpoint, for people; swapped by a rename. To resume nobody needs it."""
    link = folder / "latest.tmp"
    try:
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        os.replace(link, folder / "latest")
    except OSError as failure:  # a file system without links
        log.warning("cannot point `%s` to %s: %s", folder / "latest", target.name, failure)


def _prune(folder: Path, keep_last: int, keep_every: int | None) -> None:
    """Deletes the oldest checkpoints and what killed saves left. A failure to delete is no reason to stop training."""
    complete = [path for path in _by_step(folder) if is_complete(path)]
    old = [path for path in complete[:-keep_last] if keep_every is None or step_of(path) % keep_every]
    for path in [*old, *folder.glob("step_*.tmp")]:
        try:
            going = path.with_suffix(".tmp")  # or, killed in between, it would look like a damaged one
            os.rename(path, going)
            shutil.rmtree(going)
        except OSError as failure:
            log.warning("cannot delete the old checkpoint `%s`: %s", path, failure)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as failure:
        if failure.errno != errno.EINVAL:  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)

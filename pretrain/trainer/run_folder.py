"""A run's folder: whose it is, whether this run may go on in it, and that nobody else is writing there."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pretrain.config import renamed
from pretrain.config.signature import completed
from pretrain.files import remove_leftovers, replace_file
from pretrain.records import UserError
from pretrain.trainer import checkpoint
from pretrain.trainer.team import ALONE, Team
from pretrain.trainer.trust import refuse_untrusted

log = logging.getLogger(__name__)

_OURS = ("config.yaml", "metrics.csv", "metrics.jsonl", "data_report.json", "checkpoints", "pictures", "incidents")


_OPENED: ContextVar[list[RunFolder] | None] = ContextVar("opened", default=None)


@contextmanager
def closed_on_failure() -> Iterator[None]:
    """Closes the folders that are opened inside if what is inside fails. A command that fails ends, and its locks with
    it, but a notebook lives on and tries again."""
    opened: list[RunFolder] = []
    token = _OPENED.set(opened)
    try:
        yield
    except BaseException:
        for one in opened:
            one.close()
        raise
    finally:
        _OPENED.reset(token)


class RunFolder:
    """Opens a folder for a run, new or to go on, and locks it until `close`. Nothing is written before `record`.

    Of several ranks the first one looks, locks and writes; the others are told what it found.

    Args:
        path: of the folder; made if it is not there.
        identity: what makes this run this run: seed, data, objective, encoder. Nested plain data.
        settings: what may change when a run goes on, with a warning.
        resume: `auto` goes on if there is something to go on from, `must` refuses to start afresh, `never` to go on.
        trusted: whether to go on from a checkpoint that another user could have written (see `trust.py`).
        team: the ranks of the run.

    Attributes:
        path: of the folder.
        run_id: the run's, over restarts.
        checkpoint: to go on from, None to start afresh.

    Raises:
        UserError: the folder holds another run, or something else; nothing in it was touched.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        settings: dict[str, Any],
        resume: str,
        trusted: bool = False,
        team: Team = ALONE,
    ) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._team = team
        self._lock: int | None = None
        self._identity, self._settings, self._trusted = identity, settings, trusted
        self.checkpoint, self.run_id = self._team.first(lambda: self._opened(resume))
        if (opened := _OPENED.get()) is not None:
            opened.append(self)

    def _opened(self, resume: str) -> tuple[Path | None, str]:
        path, identity = self.path, self._identity
        record = _read(path / "run.json")
        if record is None and (found := [name for name in _OURS if (path / name).exists()]):
            raise UserError(
                f"output_dir={path}: it holds {', '.join(found)} but no run of ours; choose another output_dir"
            )
        if record is not None:
            _refuse_another(path, record["identity"], identity)
        if resume == "must" and checkpoint.newest(self.checkpoints) is None:
            raise UserError(f"resume=must: there is no complete checkpoint in {self.checkpoints}")
        if resume == "never" and record is not None:
            raise UserError(f"resume=never: output_dir={path} already holds this run; choose another or delete it")
        self._lock = _lock(path)
        try:
            newest = self._newest()  # under the lock: another process may just have written its last
        except UserError:
            self.close()
            raise
        self._before = None if record is None else record["settings"]
        return newest, record["run_id"] if record is not None else uuid.uuid4().hex[:12]

    def _newest(self) -> Path | None:
        newest, broken = checkpoint.newest(self.checkpoints), checkpoint.damaged(self.checkpoints)
        if broken and newest is None:
            raise UserError(
                f"output_dir={self.path}: {broken[-1].name} in its checkpoints is damaged, and no other is there; "
                "bring it back from a copy, or delete it to begin again from step 0"
            )
        if broken:
            log.warning("%s is damaged and passed over", ", ".join(str(path) for path in broken))
        if newest is not None:
            refuse_untrusted(newest, self._trusted, above=(self.path, self.checkpoints))
        return newest

    def record(self, config: str) -> None:
        """Writes down whose folder this is, and the configuration that is about to run."""
        if not self._team.leads:
            return
        if self._before is not None:
            _warn_of_changes(self._before, self._settings)
        for folder in (self.path, self.path / "ledger", self.path / "incidents"):
            remove_leftovers(folder)
        content = {"run_id": self.run_id, "identity": self._identity, "settings": self._settings}
        replace_file(self.path / "run.json", json.dumps(content, indent=1).encode())
        replace_file(self.path / "config.yaml", config.encode())

    def close(self) -> None:
        """Lets others write to the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        named = {name: renamed.current(record[name]) for name in ("identity", "settings")}
        return {"run_id": record["run_id"]} | named
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise UserError(f"output_dir={path.parent}: {failure.strerror}; choose another output_dir") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} cannot be read: it is not what a run wrote; choose another output_dir") from None


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Where nested plain data differ, a line each: `encoder.depth: 12 there, 24 here`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            line for name in keys for line in differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        ]
    if isinstance(old, list) and isinstance(new, list) and key.endswith("shards"):
        gone, come = [item for item in old if item not in new], [item for item in new if item not in old]
        lines = [
            f"{key}: {len(items)} {word}, first `{items[0]}`"
            for items, word in ((gone, "gone"), (come, "new"))
            if items
        ]
        return lines or ([f"{key}: in another order"] if old != new else [])
    return [] if old == new else [f"{key}: {_short(old)} there, {_short(new)} here"]


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Where records of two versions differ: a key that only one of them has counts as its default."""
    whole_old, whole_new = json.loads(json.dumps([completed(old), completed(new)]))  # tuples of defaults become lists
    return differences(whole_old, whole_new)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _refuse_another(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    lines = _changes(old, new)
    if lines:
        shown = "\n".join(f"  {line}" for line in lines[:20])
        raise UserError(f"output_dir={path} holds another run:\n{shown}\nStart this one elsewhere: output_dir=…")


def _warn_of_changes(old: dict[str, Any], new: dict[str, Any]) -> None:
    for line in _changes(old, new):
        log.warning("this run goes on with a change: %s", line)


def _lock(path: Path) -> int:
    """A lock that the system takes back when this process ends, however it ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as failure:
        raise UserError(f"output_dir={path}: cannot be written ({failure.strerror}); choose another") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
        os.close(descriptor)
        raise UserError(f"output_dir={path}: {holder} is training there at this moment") from None
    except OSError as failure:  # a file system without locks
        log.warning("cannot lock %s (%s): take care that no other process trains there", path, failure)
        return descriptor
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return descriptor

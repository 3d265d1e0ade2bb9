"""Reading what a run saved, without running anything in it, and only where the user alone could have written it.

A checkpoint is read by torch's restricted unpickler (`weights_only=True`), which admits tensors and plain data. It has
had holes (CVE-2025-32434 ran code in spite of it), so the folder matters too: it must be its reader's, or root's, and
not writable by everybody. That a group may write there is usual on clusters (umask 002), and said.
"""

from __future__ import annotations

import logging
import os
import pickle
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from pretrain.records import UserError

log = logging.getLogger(__name__)


def read_state(path: Path) -> dict[str, Any]:
    """Tensors and plain data that a run saved, on the CPU. Nothing in the file is run.

    Raises:
        UserError: it is damaged, or holds anything else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as failure:
        raise UserError(f"`{path}` cannot be read: {failure.strerror or failure}") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, IndexError, ValueError, TypeError):
        raise UserError(
            f"`{path}` cannot be read: it is damaged, or holds more than tensors and plain data, which could run when "
            "it is read. No run of ours wrote it so"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"`{path}` holds a {type(state).__name__}, which no run of ours writes")
    return state


def refuse_untrusted(folder: Path, trusted: bool, above: Iterable[Path] = ()) -> None:
    """Raises UserError if somebody else could have written a checkpoint, unless it is trusted all the same.

    Args:
        folder: of the checkpoint, with the files that are about to be read.
        trusted: `trust_checkpoint=true` was given.
        above: folders that it lies in, where it could have been put by another.
    """
    places = [*above, folder, *sorted(folder.rglob("*"))]
    if found := "; ".join(_foreign(places)):
        if not trusted:
            raise UserError(
                f"`{folder}` is not loaded, since another user could have written it: {found}. Give "
                "trust_checkpoint=true if you trust it; to see that it stays yours: chmod -R o-w and chown"
            )
        log.warning("`%s` is loaded since trust_checkpoint=true, although %s", folder, found)
    elif shared := [place for place in places if _mode(place) & stat.S_IWGRP]:
        log.warning("`%s` is writable by its group, whose members could change what is loaded of it", shared[0])


def _foreign(places: Iterable[Path]) -> Iterator[str]:
    """What is wrong with files and folders, each said once; of a link what it leads to."""
    owners: set[int] = set()
    open_to_all = False
    for place in places:
        try:
            status = os.stat(place)
        except OSError:  # a link that leads nowhere: there is nothing to be loaded
            continue
        if status.st_uid not in (os.geteuid(), 0) and status.st_uid not in owners:
            owners.add(status.st_uid)
            yield f"{place} belongs to user {status.st_uid}"
        if status.st_mode & stat.S_IWOTH and not open_to_all:
            open_to_all = True
            yield f"everybody may write to {place}"


def _mode(place: Path) -> int:
    try:
        return os.stat(place).st_mode
    except OSError:
        return 0

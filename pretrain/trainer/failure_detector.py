"""A rank that is gone is noticed by all others, whatever they wait for.

On a GPU a process that waits for a sum does not see that another one has died: it would stand there until the
collective's time-out. So a thread of every rank waits for a word of the rank before it, over a connection of its own
that breaks when that process ends, however it does; what it learns it passes on to the rank after it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pretrain.trainer.team import Team

_FOR_EVER = timedelta(days=365)
_GOODBYE = -1
_LAST_WORD = 10.0  # seconds


class FailureDetector:
    """From its making on, until `end`. All ranks make it together.

    Args:
        team: the ranks; one alone has nobody to wait for.
        grace: seconds that this process has to end by itself once another is gone, before it is ended.
    """

    def __init__(self, team: Team, grace: float = 15.0) -> None:
        self.team, self.grace = team, grace
        self._thread: threading.Thread | None = None
        if team.size > 1:
            self._group: Any = dist.new_group(backend="gloo", timeout=timedelta(minutes=team.minutes))
            self._thread = threading.Thread(target=self._watch, name="detector", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Takes leave, when all others do."""
        if self._thread is not None:
            self._tell(_GOODBYE)
            self.team.gather(None)  # so all have, and the last word is on its way
            self._thread.join(_LAST_WORD)

    def _watch(self) -> None:
        before = (self.team.rank - 1) % self.team.size
        word = torch.empty((), dtype=torch.int64)
        try:
            self._group.recv([word], before, 0).wait(_FOR_EVER)
        except RuntimeError:
            word.fill_(before)
        if (gone := int(word)) == _GOODBYE:
            return
        self._tell(gone)
        time.sleep(self.grace)
        os.write(
            2, f"\nrank {self.team.rank}: rank {gone} is gone, and the run ends; it says why if it could\n".encode()
        )
        os._exit(1)

    def _tell(self, word: int) -> None:
        with contextlib.suppress(RuntimeError):  # that rank may be gone, too
            self._group.send([torch.tensor(word)], (self.team.rank + 1) % self.team.size, 0).wait()

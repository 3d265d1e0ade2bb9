"""The training batches as Lightning's loop wants them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

from pretrain.records import Batch
from pretrain.trainer.state import RunState


class Feed:
    """An endless stream with a length, and a count of the time spent waiting for it.

    Lightning fetches one batch ahead of an iterable without a length, to learn whether it was the last; this one never
    ends, and says so by being as long as can be said.
    """

    def __init__(self, batches: Iterable[Batch], state: RunState) -> None:
        self.batches = batches
        self.state = state

    def __len__(self) -> int:
        return sys.maxsize

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.batches)
        while True:
            start = time.perf_counter()
            batch = next(batches)
            self.state.wait(time.perf_counter() - start)
            yield batch

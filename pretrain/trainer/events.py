"""What happens while a run trains, each as an abstract class with one method: who wants to be told of it inherits it.

None of this needs Lightning, which takes seconds to import, so that a configuration that names such classes is checked
without it. `adapter.py` tells them, in the order in which they stand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from pretrain.records import Batch


class AtStart(ABC):
    @abstractmethod
    def on_train_start(self) -> None:
        """Training begins; no batch is there yet."""


class AtFirstBatch(ABC):
    @abstractmethod
    def on_first_batch(self) -> None:
        """The first batch is on the device: the set-up is over."""


class AtBatch(ABC):
    @abstractmethod
    def on_batch(self, batch: Batch) -> None:
        """A micro-batch, prepared, is about to go through the objective."""


class AfterStep(ABC):
    @abstractmethod
    def after_step(self) -> None:
        """An optimizer step is done, not only a micro-batch of it; its metrics are in the run's state."""


class AtEnd(ABC):
    @abstractmethod
    def on_train_end(self) -> None:
        """Training has come to its end, or was asked to stop; a run that fails does not get here."""


class AtClose(ABC):
    @abstractmethod
    def close(self, failed: bool) -> None:
        """The last that is told; twice where closing itself fails.

        Args:
            failed: whether the run ends by an exception.
        """

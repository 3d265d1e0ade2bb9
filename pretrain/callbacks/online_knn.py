"""How well the features that the run would export tell classes apart, while it trains.

k-NN as in `probe/knn.py`, among a few samples of `data.val`, each classified by all others. So it needs no training
features, and its value is below that of a probe with the whole training set: it is there to be compared with itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from pretrain.callbacks.step import Context, StepCallback
from pretrain.probe import knn
from pretrain.probe.features import extract
from pretrain.records import Batch, Problem, refuse
from pretrain.trainer.events import AtStart

log = logging.getLogger(__name__)

_KEPT = 2**28  # bytes of pixels that are kept between two evaluations: 1,783 images of 224×224


class OnlineKNN(StepCallback, AtStart):
    """Adds `knn`, a share of samples that are classified rightly, to the metrics of every n-th step and, of longer
    runs, of the last.

    It is off where `data.val` is missing, or has no labels or those of one class alone. Samples are decoded once and
    kept, unless they are more than 256 MiB: then they are read each time.

    Args:
        context: of the run.
        every_steps: how often.
        samples: how many of `data.val`, at most: a random subset, the same one every time, which the seed decides.
        k: neighbours.
        temperature: of their votes.
    """

    def __init__(
        self,
        context: Context,
        every_steps: int = 1000,
        samples: int = 1000,
        k: int = 20,
        temperature: float = 0.07,
    ) -> None:
        refuse(self, self.problems(every_steps, samples, k, temperature))
        self.context = context
        self.every_steps = every_steps
        self.samples = samples
        self.k = k
        self.temperature = temperature
        self._off = False
        self._kept: list[Batch] = []

    @staticmethod
    def problems(every_steps: int, samples: int, k: int, temperature: float, **_: object) -> Iterator[Problem]:
        for name, value, least in (("every_steps", every_steps, 1), ("samples", samples, 2), ("k", k, 1)):
            if value < least:
                yield name, f"must be at least {least}"
        if temperature <= 0:
            yield "temperature", "must be positive"

    def on_train_start(self) -> None:
        if self.context.val_subset is None:
            self._turn_off("there is no data.val")

    def after_step(self) -> None:
        state = self.context.state
        if self._off or not self.is_due(state, self.every_steps):
            return
        with state.set_aside():
            features, labels = extract(self._batches(), self.context.features, labelled_only=True)
            if len(labels.unique()) < 2:
                where = self.context.config["data"].get("labels") or "none"
                self._turn_off(
                    f"all {len(labels)} samples of data.val with a label are of one class"
                    if len(labels)
                    else f"data.val has no labels (data.labels={where}), or no image that can be decoded"
                )
                return
            predictions = knn.leave_one_out(features, labels, self.k, self.temperature)
            state.report("val", knn=knn.accuracy(predictions, labels))

    def _turn_off(self, reason: str) -> None:
        self._off, self._kept = True, []
        if self.context.leads:
            log.info("no k-NN accuracy while training: %s", reason)

    def _batches(self) -> Iterable[Batch]:
        if self._kept:
            yield from self._kept
            return
        assert self.context.val_subset is not None
        read, size = [], 0
        for batch in self.context.val_subset(self.samples):
            size += batch.views[0].nbytes
            if size <= _KEPT:
                read.append(batch)
            yield batch
        self._kept = read if size <= _KEPT else []

"""A run that is ready to start, and its training."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lightning.pytorch import Trainer

from pretrain.data.module import ShardData
from pretrain.data.stream.report import write_report
from pretrain.trainer.clock import Clock
from pretrain.trainer.failure_detector import FailureDetector
from pretrain.trainer.feed import Feed
from pretrain.trainer.lifecycle import Stop
from pretrain.trainer.module import PretrainModule
from pretrain.trainer.run_folder import RunFolder
from pretrain.trainer.state import RunState
from pretrain.trainer.team import Team

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A run that is ready to start."""

    folder: RunFolder
    state: RunState
    clock: Clock
    stop: Stop
    module: PretrainModule
    trainer: Trainer
    feed: Feed
    data: ShardData
    team: Team
    detector: FailureDetector

    def fit(self) -> None:
        """Trains until the run's end or a signal; what is worth keeping is in the run's folder."""
        try:
            if self.clock.end:
                log.info("%s is finished: %s", self.folder.path, self.clock.end)
            else:
                self._train()
                log.info("%s: step %d, %s", self.folder.path, self.state.step, self.state.stopping)
            self.detector.end()
            self.team.leave()
        finally:
            self.stop.restore()
            self.folder.close()

    def _train(self) -> None:
        bad = self.data.bad
        try:
            self.trainer.fit(self.module, self.feed)
        finally:
            if self.team.size == 1 or not self.state.stopping:  # else it was written with the last checkpoint
                write_report(self.folder.path, self.team.rank, training=bad, evaluation=self.data.bad_in_evaluation)
            if bad:
                log.warning("%s; data_report.json names %d", bad, len(bad.examples))

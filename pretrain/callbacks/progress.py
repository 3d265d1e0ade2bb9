"""The line that a person watches: where the run stands, how fast it is, when it ends."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pretrain.callbacks.step import Context, StepCallback
from pretrain.trainer.events import AtClose, AtFirstBatch, AtStart

log = logging.getLogger(__name__)


class ProgressBar(StepCallback, AtStart, AtFirstBatch, AtClose):
    """A bar with loss, images/s and time left on a terminal; elsewhere, a line in the log now and then.

    Args:
        context: of the run.
        every_seconds: between two lines where there is no terminal.
    """

    def __init__(self, context: Context, every_seconds: float = 30.0) -> None:
        self.context = context
        self.every_seconds = every_seconds
        self._bar: Any = None
        self._redirect: AbstractContextManager[None] | None = None

    def on_train_start(self) -> None:
        if sys.stderr.isatty() and self.context.leads:
            self._redirect = logging_redirect_tqdm()
            self._redirect.__enter__()
            self._bar = tqdm(total=100, bar_format="{percentage:3.0f}%|{bar:24}| {desc}", leave=True)

    def on_first_batch(self) -> None:
        self._start = self._said = time.perf_counter()
        self._first_done, self._first_samples = self._done(), self.context.state.samples_seen
        self._first_aside = self.context.state.aside

    def after_step(self) -> None:
        state, now = self.context.state, time.perf_counter()
        interval = self.every_seconds if self._bar is None else 0.5
        if not self.context.leads or (now - self._said < interval and not state.stopping):
            return
        self._said = now
        if self._bar is None:
            log.info("%s", self._line(now))
        else:
            self._bar.n = 100 * min(1.0, self._done())
            self._bar.set_description_str(self._line(now))

    def close(self, failed: bool) -> None:
        if self._bar is not None and self._redirect is not None:
            self._bar.close()
            self._redirect.__exit__(None, None, None)
            self._bar = self._redirect = None

    def _done(self) -> float:
        """The share of the run that is done."""
        context = self.context
        if context.max_seconds is not None:
            return context.state.seconds / context.max_seconds
        return context.state.step / context.last_step

    def _line(self, now: float) -> str:
        state, done, elapsed = self.context.state, self._done(), now - self._start
        speed = (state.samples_seen - self._first_samples) / max(1e-9, elapsed - state.aside + self._first_aside)
        left = elapsed * (1 - done) / (done - self._first_done) if done > self._first_done else 0.0
        loss = state.metrics["loss"]
        steps = f"step {state.step}" if self.context.max_seconds else f"step {state.step}/{self.context.last_step}"
        return (
            f"{steps} · loss {loss.item() if isinstance(loss, Tensor) else loss:.4f} · {speed:,.0f} images/s · "
            f"ETA {timedelta(seconds=max(0, round(left)))}"
        )

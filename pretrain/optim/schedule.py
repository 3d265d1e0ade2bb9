"""Schedules as pure functions of `Progress`: nothing to save, nothing to restore, the same at any step in any order."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pretrain.records import Progress


@dataclass(frozen=True)
class WarmupCosine:
    """A linear warm-up from 0, then half a cosine, per optimizer step, as the official MAE's `lr_sched.py` has it.

    Args:
        peak: the value at the end of the warm-up.
        warmup: share of the run that the warm-up takes, 0 ≤ warmup < 1.
        final: the value that the cosine ends at.
    """

    peak: float
    warmup: float
    final: float = 0.0

    def __call__(self, progress: Progress) -> float:
        position = progress.fraction
        if position < self.warmup:
            return self.peak * position / self.warmup
        cosine = math.cos(math.pi * (position - self.warmup) / (1 - self.warmup))
        return self.final + (self.peak - self.final) * 0.5 * (1 + cosine)

"""Schedules as pure functions of `Progress`: nothing to save, nothing to restore, the same at any step in any order."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pretrain.records import Progress


@dataclass(frozen=True)
class WarmupCosine:
    """A linear warm-up from 0, then half a cosine, per optimizer step.

    Args:
        peak: the value at the end of the warm-up.
        warmup: share of the run that the warm-up takes, 0 ≤ warmup < 1.
        final: the value that the cosine ends at.
        peak_twice: the warm-up's last step has the peak already, and the cosine's first step again, as DINO's
            `cosine_scheduler` has it; else the warm-up only leads up to it, as in the official MAE's `lr_sched.py`.
    """

    peak: float
    warmup: float
    final: float = 0.0
    peak_twice: bool = False

    def __call__(self, progress: Progress) -> float:
        if self.peak_twice:
            return self._peak_twice(progress)
        position = progress.fraction
        if position < self.warmup:
            return self.peak * position / self.warmup
        cosine = math.cos(math.pi * (position - self.warmup) / (1 - self.warmup))
        return self.final + (self.peak - self.final) * 0.5 * (1 + cosine)

    def _peak_twice(self, progress: Progress) -> float:
        warmup = round(self.warmup * progress.total_steps)
        if progress.step < warmup:
            return self.peak * progress.step / max(1, warmup - 1)
        cosine = math.cos(math.pi * (progress.step - warmup) / (progress.total_steps - warmup))
        return self.final + (self.peak - self.final) * 0.5 * (1 + cosine)

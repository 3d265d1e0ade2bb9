"""What a checkpoint holds of a run, and how a run goes on from one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pretrain.data.module import ShardData
from pretrain.data.stream.report import BadSamples, write_report
from pretrain.objective.objective import Objective
from pretrain.trainer import checkpoint, weights
from pretrain.trainer.module import PretrainModule
from pretrain.trainer.run_folder import RunFolder
from pretrain.trainer.state import RunState
from pretrain.trainer.team import Team

log = logging.getLogger(__name__)


def restore(path: Path | None, objective: Objective, state: RunState) -> dict[str, Any]:
    """Puts a checkpoint's weights and counters in place and returns the rest of it."""
    if path is None:
        return {}
    saved = checkpoint.read(path)
    weights.put(objective, saved.pop("objective"))
    state.step, state.samples_seen, state.seconds = (saved[name] for name in ("step", "samples_seen", "seconds"))
    state.spent |= saved.get("spent", {})
    log.info("goes on from %s (step %d)", path, state.step)
    return saved


def snapshot(module: PretrainModule, data: ShardData, folder: RunFolder, team: Team) -> dict[str, Any]:
    """All that a checkpoint holds; the run's report on its data is written with it."""
    counted = BadSamples()
    counted.restore(BadSamples.joined(team.gather(data.bad.state())))
    if team.leads:
        write_report(folder.path, training=counted, evaluation=data.bad_in_evaluation)
    return module.snapshot() | {"bad_samples": counted.state()}

"""How long training stands still for a checkpoint, written at once and written by a thread from a copy.

    python scripts/bench_save.py +experiment=mae_vitb folder=DIR rounds=5 out=save.json

The state is a run's: weights and two moments of AdamW, in float32. Each round saves it both ways, in turn; what counts
is the time until training could go on. `folder` should be on the file system that runs are on.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretrain.assemble import materialise, objective_of
from pretrain.config.arguments import script
from pretrain.config.check import composed_without_data
from pretrain.files import replace_file
from pretrain.launch.world import World
from pretrain.trainer import checkpoint, pieces
from pretrain.trainer.team import Team


@dataclass(frozen=True)
class Arguments:
    folder: str = "."
    rounds: int = 5
    out: str | None = None


def main(a: Arguments, overrides: list[str]) -> None:
    cfg = composed_without_data(overrides)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = state_of(materialise(objective_of(cfg), cfg.seed, device).state_dict())
    copies: dict[str, torch.Tensor] = {}  # the memory of the first round's is used again, as a run does
    rows = []
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        for number in range(a.rounds):
            rows.append(one_round(Path(folder), number, state, copies))
            print({name: round(seconds, 3) for name, seconds in rows[-1].items()}, flush=True)
    median = {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}
    ratios = sorted(row["at_once"] / row["copy"] for row in rows)
    result = {"experiment": cfg.name, "bytes": pieces.size_of(state), "device": device.type, "seconds": median}
    result |= {"times_shorter": {"median": statistics.median(ratios), "least": ratios[0], "greatest": ratios[-1]}}
    result |= {"rounds": rows}
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}))
    if a.out is not None:
        replace_file(Path(a.out), json.dumps(result, indent=1).encode())


def state_of(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What a checkpoint of a run with such weights holds."""
    moments = {
        number: {"exp_avg": torch.zeros_like(one), "exp_avg_sq": torch.zeros_like(one)}
        for number, one in enumerate(weights.values())
    }
    return {"objective": weights, "optimizer": {"state": moments, "param_groups": []}, "step": 0}


def one_round(folder: Path, number: int, state: dict[str, Any], copies: dict[str, torch.Tensor]) -> dict[str, float]:
    """Seconds until a checkpoint is written; until it is copied; and until the copy is written."""
    team, times = Team(World()), [time.perf_counter()]
    checkpoint.writer(folder, 2 * number + 1, state, 1, None, team)()
    times.append(time.perf_counter())
    write = checkpoint.writer(folder, 2 * number + 2, state, 1, None, team, copies)
    times.append(time.perf_counter())
    write()
    times.append(time.perf_counter())
    return dict(zip(("at_once", "copy", "written"), (b - a for a, b in itertools.pairwise(times)), strict=True))


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

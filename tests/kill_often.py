"""Kills runs two hundred times and writes down what it cost: `python -m tests.kill_often FILE`.

The schedules of `make test-full`, with other random moments. Processes are forked from one that has imported all: what
they take from a start to the first new step leaves that out.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.job import Job
from tests.test_proof import LONG, killed

_ROUNDS = 4  # of 50 kills


def main(out: Path) -> None:
    rows = []
    for number in range(_ROUNDS):
        for kind, strategy, ranks, threads, kills, seed in LONG:
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                killing, different = killed(
                    Job(Path(folder)), kind, strategy, ranks, threads, kills, seed=100 * (number + 1) + seed
                )
            row = {"objective": kind, "trainer": strategy, "ranks": ranks, "threads": list(threads), "kills": kills}
            row |= {
                "lost_steps": killing.lost_steps,
                "seconds_to_new_steps": [round(one, 2) for one in killing.recovery],
            }
            rows.append(row | {"different": different})
            print(f"{time.monotonic() - began:.0f} s", rows[-1], flush=True)
            out.write_text(json.dumps(summary(rows), indent=1))


def summary(rows: list[dict[str, object]]) -> dict[str, object]:
    lost = [one for row in rows for one in row["lost_steps"]]  # type: ignore[attr-defined]
    seconds = [one for row in rows for one in row["seconds_to_new_steps"]]  # type: ignore[attr-defined]
    return {
        "kills": sum(row["kills"] for row in rows),  # type: ignore[misc]
        "runs": len(rows),
        "runs_that_differ": sum(bool(row["different"]) for row in rows),
        "checkpoint_every_steps": 3,
        "lost_steps": {"median": statistics.median(lost), "greatest": max(lost)},
        "seconds_to_new_steps": {"median": statistics.median(seconds), "greatest": max(seconds)},
        "schedules": rows,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Proves on your own configuration that a killed run goes on to the same bits.

    pretrain verify-resume +experiment=mae_cifar10 trainer=cpu 'data.train=SHARDS/train-*.tar'

Runs it twice in one go, then once more with SIGKILL at random moments, started again each time
by the same command, and compares losses, samples and checkpoints. All other words are overrides
of the configuration. It works in a temporary folder of its own; the last line is `identical`,
or names the first thing that differs (and the exit code is 1).
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pretrain.config.arguments import word
from pretrain.config.problem import UserError

_OURS = (
    "output_dir",
    "stop_after_steps",
    "callbacks.ledger.enabled",
    "callbacks.log.every_steps",
    "callbacks.log.wandb",
)


@dataclass(frozen=True)
class Arguments:
    steps: int = word("The steps of each run.", 24, example="100")
    kills: int = word("How often the third run is killed.", 3, example="10")
    kill_seed: int = word("Of the moments at which it is killed.", 0, example="1")
    keep: str | None = word("A new folder for the runs, which then stay.", None, example="proof")


def main(a: Arguments, overrides: list[str]) -> None:
    refuse(a, overrides)
    if not any(word.startswith("checkpoint.every_") for word in overrides):
        overrides = [*overrides, f"checkpoint.every_steps={max(1, a.steps // 5)}"]
    if a.keep is not None:
        Path(a.keep).mkdir(parents=True)
        prove(a, overrides, Path(a.keep).resolve())
        return
    with tempfile.TemporaryDirectory(prefix="verify_resume_") as folder:
        prove(a, overrides, Path(folder))


def refuse(a: Arguments, overrides: list[str]) -> None:
    """Raises a UserError for what cannot be proven."""
    from pretrain.config.check import mistakes

    lines = []
    if a.steps < 2 or not 1 <= a.kills < a.steps:
        lines.append(f"steps={a.steps} kills={a.kills}: there must be 2 steps at least, and fewer kills than steps")
    if a.keep is not None and Path(a.keep).exists():
        lines.append(f"keep={a.keep}: is there already; name a new folder")
    keys = {word.lstrip("+").partition("=")[0]: word for word in overrides}
    if "max_minutes" in keys and not keys["max_minutes"].endswith("=null"):
        lines.append(f"{keys['max_minutes']}: the clock decides such a run, no two are alike; give max_steps instead")
    lines += [f"{keys[key]}: this command sets it itself; leave it out" for key in _OURS if key in keys]
    if lines := [*lines, *mistakes(overrides)]:
        raise UserError("\n".join(lines))


def prove(a: Arguments, overrides: list[str], folder: Path) -> None:
    from pretrain import proof

    trial = proof.Trial(overrides, a.steps, folder)
    whole = trial.run("whole")
    print(f"a run of {a.steps} steps in one go: done", flush=True)
    if different := proof.first_difference(whole, trial.run("again")):
        print("the same once more: different. Nothing can be said of a run that is killed", flush=True)
        sys.exit(
            f"two uninterrupted runs already differ: {different}. On a GPU trainer.deterministic=true makes them equal"
        )
    print("the same once more: identical", flush=True)
    killing = trial.run_killed("killed", a.kills, a.kill_seed)
    print(
        f"killed {a.kills} times: steps made again {killing.lost_steps}, "
        f"seconds from start to new steps {[round(one, 1) for one in killing.recovery]}",
        flush=True,
    )
    if different := proof.first_difference(whole, folder / "killed"):
        sys.exit(f"the killed run differs: {different}")
    print("identical", flush=True)

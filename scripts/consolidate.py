"""Writes a run whose checkpoint is sharded over several ranks as one whose newest checkpoint is a single file.

    python scripts/consolidate.py checkpoint=runs/mae_vith out=mae_vith_whole

The new folder is a run's folder: it can be probed, exported, and trained on, on any number of devices. Training, probes
and exports read sharded checkpoints, too: this is for other programs, and for keeping.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from pretrain.config.arguments import script
from pretrain.files import replace_folder
from pretrain.records import UserError
from pretrain.trainer import checkpoint
from pretrain.trainer.trust import refuse_untrusted


@dataclass(frozen=True)
class Arguments:
    checkpoint: str
    out: str
    trust_checkpoint: bool = False  # although another user could have written it


def main(a: Arguments) -> None:
    run, out = Path(a.checkpoint), Path(a.out)
    newest = checkpoint.newest(run / "checkpoints")
    if not (run / "run.json").is_file() or newest is None:
        raise UserError(f"checkpoint={run}: it must be a run's folder with a complete checkpoint")
    refuse_untrusted(newest, a.trust_checkpoint, above=(run, newest.parent))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out}: holds something already; name a new folder")

    def fill(folder: Path) -> None:
        for name in ("run.json", "config.yaml"):
            shutil.copy(run / name, folder / name)
        step = checkpoint.step_of(newest)
        checkpoint.save(folder / "checkpoints", step, checkpoint.load(newest), keep_last=1)

    try:
        replace_folder(out, fill)
    except OSError as failure:
        raise UserError(f"out={out}: cannot be written: {failure}") from None
    print(out / "checkpoints" / newest.name / "state.pt")


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)

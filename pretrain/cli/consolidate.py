"""Writes the newest checkpoint of a sharded run as a single file.

    pretrain consolidate checkpoint=runs/mae_vith out=mae_vith_whole

The new folder is a run's folder: it can be probed, exported, and trained on, on any number of
devices. Training, probes and exports read sharded checkpoints, too: this is for other programs,
and for keeping.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from pretrain.config.arguments import word
from pretrain.config.problem import UserError
from pretrain.files import replace_folder


@dataclass(frozen=True)
class Arguments:
    checkpoint: str = word("The folder of a run.", example="runs/mae_vith")
    out: str = word("A new folder for the copy.", example="mae_vith_whole")
    trust_checkpoint: bool = word(
        "Loads a checkpoint although another user owns it, or everybody may write to it.", False, example="true"
    )


def main(a: Arguments) -> None:
    from pretrain.trainer import checkpoint
    from pretrain.trainer.trust import refuse_untrusted

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

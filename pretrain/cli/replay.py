"""Makes a step again that a run skipped, and says where it stops being finite.

    pretrain replay incident=RUN/incidents/step_00000007

It exits with 0 if the step is not finite again, and with 1 if it is finite now.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretrain.config.arguments import word
from pretrain.data.patterns import NamedPatterns, Patterns


@dataclass(frozen=True)
class Arguments:
    incident: str = word("The folder of the incident.", example="runs/mae_vitb/incidents/step_00000007")
    train: Patterns | NamedPatterns | None = word(
        "Where the run's shards are now; by default where the run found them.", None, example="shards/train-*.tar"
    )
    index_dir: str | None = word("A folder for their index; by default the run's.", None, example="index")
    skip: Patterns | None = word(
        "Where the run's skip lists are now; by default where the run found them.", None, example="skip.json"
    )
    allow_pipe: bool = word("Whether `pipe:` patterns may start programs.", False, example="true")
    precision: Literal["32-true", "bf16-mixed"] | None = word(
        "The precision of the step; by default the run's.", None, example="32-true"
    )
    device: Literal["cpu", "cuda"] | None = word(
        "Where it is computed; by default on the GPU if there is one.", None, example="cpu"
    )
    trust_checkpoint: bool = word(
        "Loads weights although another user owns them, or everybody may write to them.", False, example="true"
    )
    allow_targets: tuple[str, ...] = word(
        "Packages other than pretrain whose encoders and objectives may be built.", (), example="[mypackage]"
    )


def main(a: Arguments) -> None:
    from pretrain.replay import Replay, report

    replay = Replay(
        Path(a.incident),
        a.train,
        a.index_dir,
        a.skip,
        a.allow_pipe,
        a.precision,
        a.device,
        a.trust_checkpoint,
        a.allow_targets,
    )
    sys.exit(0 if report(replay) else 1)

"""Makes a step again that a run skipped, since its loss or gradients were not finite, and says where that begins.

python scripts/replay.py incident=RUN/incidents/step_00000007

It exits with 0 if the step is not finite again, and with 1 if it is finite now.
"""

from __future__ import annotations

import sys

from pretrain.config.arguments import script
from pretrain.replay import Replay, ReplayArguments, report


def main(a: ReplayArguments) -> None:
    sys.exit(0 if report(Replay(a)) else 1)


if __name__ == "__main__":
    script(ReplayArguments, __doc__ or "", main)

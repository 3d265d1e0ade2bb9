"""Self-supervised pretraining of a vision encoder: compose, check, build, fit.

    python -m pretrain +experiment=mae_vitl 'data.train=SHARDS/train-{000000..001281}.tar'
    python -m pretrain +experiment=mae_vitl --cfg job      shows the whole configuration and runs nothing
    python -m pretrain --multirun +experiment=mae_vitl base_lr=1e-4,2e-4       a run for each

All words are key=value overrides of the configuration; --hydra-help lists Hydra's own options.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from pretrain.cli import words
from pretrain.config.arguments import quote
from pretrain.launch import collector, leave, slurm

if TYPE_CHECKING:
    from omegaconf import DictConfig


@collector.resting()  # until a run wakes it, when all is imported
def main() -> None:
    """Refuses a wrong command with all its mistakes at once; else lets Hydra compose it and runs it."""
    signal.signal(signal.SIGINT, leave.interrupted)  # until training, which has its own way to stop
    slurm.hold()
    if words.asks_for_help(sys.argv[1:]):
        print(words.usage(__doc__ or ""))
        sys.exit(0 if sys.argv[1:] else 2)
    sys.argv[1:] = quote(sys.argv[1:])
    if mistakes := words.mistakes(sys.argv[1:]):
        leave.refuse("\n".join(mistakes))
    import hydra

    from pretrain.config.overrides import folder

    try:
        hydra.main(version_base="1.3", config_path=str(folder()), config_name="pretrain")(run)()
    except SystemExit as end:
        leave.end(end)
    except KeyboardInterrupt:
        leave.interrupted(signal.SIGINT, None)


def run(cfg: DictConfig) -> None:
    """One run of a composed configuration: on this process, or on several that it starts and waits for."""
    from pretrain.assemble import ranks_to_start
    from pretrain.config import secret
    from pretrain.launch import local

    secret.guard_log()
    words.place_in_sweep(cfg)
    count = ranks_to_start(cfg)
    if count == 1:
        from pretrain.cli import outcome  # and with it Lightning, which who only starts ranks does without

        local.die_with_parent()
        outcome.carry_out(cfg)
    elif code := local.start(count, words.words_of_rank(cfg)):
        sys.exit(code)


if __name__ == "__main__":
    main()

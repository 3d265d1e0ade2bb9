"""python -m pretrain: compose, check, build, fit.

python -m pretrain +experiment=mae_vitl                  train by a recipe (conf/experiment/)
python -m pretrain +experiment=mae_vitl --cfg job        show its whole configuration
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pretrain.arguments import quote

if TYPE_CHECKING:
    from omegaconf import DictConfig

_ONLY_SHOW = (
    "--cfg",
    "-c",
    "--help",
    "-h",
    "--hydra-help",
    "--version",
    "--info",
    "-i",
    "--resolve",
    "--package",
    "-p",
)


def main() -> None:
    """Refuses a wrong command with all its mistakes at once; else lets Hydra compose it and runs it."""
    import hydra

    from pretrain import config

    sys.argv[1:] = quote(sys.argv[1:])
    flags = [word.partition("=")[0] for word in sys.argv[1:] if word.startswith("-")]
    sweep = "--multirun" in flags or "-m" in flags
    if not sweep and not any(flag in _ONLY_SHOW for flag in flags):
        _leave_if(config.mistakes([word for word in sys.argv[1:] if not word.startswith("-")]))
    hydra.main(version_base="1.3", config_path=str(config.folder()), config_name="pretrain")(run)()


def run(cfg: DictConfig) -> None:
    """One run, of a composed configuration."""
    import logging
    import warnings

    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from pretrain import build, config
    from pretrain.records import UserError

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # what it says of itself; what we say stands in our own lines
    warnings.filterwarnings("ignore", module=r"lightning\.")
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        _leave_if(config.check(cfg))
        cfg.output_dir = os.path.join(cfg.output_dir, str(HydraConfig.get().job.num))
    try:
        one = build.run_of(cfg)
        one.fit()
    except UserError as mistake:
        sys.exit(str(mistake))
    if one.stop.signal is not None:
        sys.exit(128 + one.stop.signal)


def _leave_if(mistakes: list[str]) -> None:
    if mistakes:
        sys.exit("\n".join(mistakes))


if __name__ == "__main__":
    main()

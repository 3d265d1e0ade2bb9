"""The words of a training command: how they are used, what is wrong with them, and what each rank is started with."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pretrain.config.arguments import quote
from pretrain.files import shipped
from pretrain.launch import leave

if TYPE_CHECKING:
    from omegaconf import DictConfig

_SHOW_CONFIGURATION = ("--cfg", "-c", "--info", "-i")
_ONLY_SHOW = ("--cfg", "-c", "--hydra-help", "--version", "--info", "-i")


def asks_for_help(words: Sequence[str]) -> bool:
    return not words or not {"--help", "-h"}.isdisjoint(words)


def usage(text: str) -> str:
    """What `--help` shows, and the recipes that there are."""
    recipes = sorted(path.stem for path in (shipped("conf") / "experiment").glob("*.yaml"))
    experiments = textwrap.fill(f"Experiments: {', '.join(recipes)}", 96, break_on_hyphens=False)
    return f"{text.strip()}\n\n{experiments}"


def mistakes(words: Sequence[str]) -> list[str]:
    """All that is wrong with a command, a line each, without secrets; nothing with one that only shows something.

    Args:
        words: as they were typed, but quoted (`config.arguments.quote`).
    """
    from pretrain.config import hydra_settings, overrides, secret

    flags = {word.partition("=")[0] for word in words if word.startswith("-")}
    lines = hydra_settings.flag_mistakes(words)
    if not lines and flags.isdisjoint(_ONLY_SHOW):
        plain = [word for word in words if not word.startswith("-")]
        sweep = not flags.isdisjoint(("--multirun", "-m"))
        lines = _too_many_ranks() if sweep else []
        jobs = [] if lines else overrides.jobs(plain) if sweep else [plain]
        lines += [line for job in jobs for line in _mistakes_of_job(job)]
    elif not lines and not flags.isdisjoint(_SHOW_CONFIGURATION):
        typed = [word for word in words if not word.startswith("-") and ("=" in word or word.startswith("~"))]
        lines = overrides.understood(typed)[1]
    return list(dict.fromkeys(map(secret.typed, lines)))


def _too_many_ranks() -> list[str]:
    """Ranks that torchrun or Slurm started can meet but once, and a sweep has many runs."""
    world = leave.here()
    if world.size == 1:
        return []
    return [
        f"--multirun: {world.started_by} started {world.size} processes, which are for one run: give each run of "
        "the sweep a command of its own, or sweep on one machine, where devices=N starts them anew for each"
    ]


def _mistakes_of_job(words: Sequence[str]) -> list[str]:
    """All that is wrong with one job's words, too few images included where an index says how many there are."""
    from omegaconf import OmegaConf

    from pretrain.config.check import judged
    from pretrain.data.opening import known_size
    from pretrain.plan import too_few

    cfg, lines = judged(words)
    if not lines:
        return []  # the run itself counts its images
    shards, index_dir, skip, batch = (
        OmegaConf.select(cfg, key) for key in ("data.train", "data.index_dir", "data.skip", "global_batch_size")
    )
    size = known_size(shards, index_dir, skip)
    return lines if size is None or not isinstance(batch, int) else lines + too_few(batch, size)


def place_in_sweep(cfg: DictConfig) -> None:
    """Gives a run of a sweep a folder of its own, and takes secrets out of what Hydra wrote for the sweep."""
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from pretrain.config import hydra_settings

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        hydra_settings.clean_sweep(Path(HydraConfig.get().sweep.dir))
        cfg.output_dir = os.path.join(cfg.output_dir, str(HydraConfig.get().job.num))


def words_of_rank(cfg: DictConfig) -> list[str]:
    """The words by which each of several ranks is started; of a sweep, those of its one job."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    composed = HydraConfig.get()
    if composed.mode == RunMode.RUN:
        return sys.argv[1:]
    own = [word for word in composed.overrides.hydra if not word.startswith(("hydra.mode=", "hydra.sweep"))]
    job = [word for word in composed.overrides.task if not word.startswith("output_dir=")]
    return quote([*own, *job, f"output_dir={cfg.output_dir}"])

"""Self-supervised pretraining of a vision encoder: compose, check, build, fit.

    python -m pretrain +experiment=mae_vitl 'data.train=SHARDS/train-{000000..001281}.tar'
    python -m pretrain +experiment=mae_vitl --cfg job      shows the whole configuration and runs nothing
    python -m pretrain --multirun +experiment=mae_vitl base_lr=1e-4,2e-4       a run for each

All words are key=value overrides of the configuration; --hydra-help lists Hydra's own options.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import textwrap
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from pretrain.files import shipped
from pretrain.launch import slurm

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pretrain.launch.world import World

_ALARM = 3  # the exit code where a collapse ended the run
_RANK_0_FIRST = 3.0  # seconds
_ONLY_SHOW = ("--cfg", "-c", "--hydra-help", "--version", "--info", "-i")


def main() -> None:
    """Refuses a wrong command with all its mistakes at once; else lets Hydra compose it and runs it."""
    signal.signal(signal.SIGINT, _interrupted)  # until training, which has its own way to stop
    slurm.hold()
    flags = [word.partition("=")[0] for word in sys.argv[1:] if word.startswith("-")]
    if len(sys.argv) == 1 or "--help" in flags or "-h" in flags:
        _leave_with_usage(2 if len(sys.argv) == 1 else 0)
    import hydra

    from pretrain.config import hydra_settings, overrides
    from pretrain.config.arguments import quote

    _leave_if(hydra_settings.flag_mistakes(sys.argv[1:]))
    sys.argv[1:] = quote(sys.argv[1:])
    if not any(flag in _ONLY_SHOW for flag in flags):
        words = [word for word in sys.argv[1:] if not word.startswith("-")]
        sweep = "--multirun" in flags or "-m" in flags
        if sweep:
            _refuse_ranks()
        _leave_if([line for job in (overrides.jobs(words) if sweep else [words]) for line in _mistakes(job)])
    try:
        hydra.main(version_base="1.3", config_path=str(overrides.folder()), config_name="pretrain")(run)()
    except SystemExit as end:
        _end(end)
    except KeyboardInterrupt:
        _interrupted(signal.SIGINT, None)


def _end(end: SystemExit) -> NoReturn:
    """Leaves at once if this is one rank of several: its failure detector may still wait for a word of another, and
    Python's own end would abort a thread that does."""
    if _world().size == 1:
        raise end
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


def run(cfg: DictConfig) -> None:
    """One run, of a composed configuration."""
    import logging
    import warnings

    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from pretrain import build
    from pretrain.config import hydra_settings, secret
    from pretrain.data.stream.loader import death_of_reader
    from pretrain.launch import local as launch
    from pretrain.launch.world import World
    from pretrain.records import UserError
    from pretrain.trainer.lifecycle import UnsavedError
    from pretrain.trainer.team import ToldError, lost_peers

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # what it says of itself; what we say stands in our own lines
    secret.guard_log()
    warnings.filterwarnings("ignore", module=r"lightning\.")
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        hydra_settings.clean_sweep(Path(HydraConfig.get().sweep.dir))
        cfg.output_dir = os.path.join(cfg.output_dir, str(HydraConfig.get().job.num))
    count = build.ranks_to_start(cfg)
    if count > 1:
        if code := launch.start(count, _words(cfg)):
            sys.exit(code)
        return  # to the next run of a sweep
    launch.die_with_parent()
    rank = World.of(os.environ).rank
    if rank:
        _speak_as(rank)
    job = slurm.Job(os.environ, rank, Path(cfg.output_dir))
    job.listen()
    one: build.Run | None = None
    try:
        one = build.run_of(cfg)
        one.fit()
    except ToldError:
        _let_rank_0_speak()
        sys.exit(1)
    except UnsavedError as failure:
        if not rank:
            print(failure, file=sys.stderr, flush=True)
        asked = one.stop.signal if one and job.id else None
        sys.exit(1 if asked is None else job.leave(asked))  # a Slurm job goes on from the one before
    except UserError as mistake:
        _refuse(str(mistake))
    except RuntimeError as failure:
        dead = death_of_reader(failure)
        sentence = dead or lost_peers(failure)
        if sentence is None:
            _say_whose(rank)
            raise
        if one and one.stop.asked == signal.SIGINT and not dead:  # Ctrl-C was said twice, and that rank heard it sooner
            sys.exit(128 + signal.SIGINT)
        sys.exit(f"rank {rank}: {sentence}" if rank else sentence)
    except Exception:
        _say_whose(rank)
        raise
    if one.stop.signal is not None and not one.clock.end:
        sys.exit(job.leave(one.stop.signal))
    if one.state.alarm:
        sys.exit(_ALARM)


def _words(cfg: DictConfig) -> list[str]:
    """The words by which each of several ranks is started; of a sweep, those of its one job."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from pretrain.config.arguments import quote

    composed = HydraConfig.get()
    if composed.mode == RunMode.RUN:
        return sys.argv[1:]
    own = [word for word in composed.overrides.hydra if not word.startswith(("hydra.mode=", "hydra.sweep"))]
    job = [word for word in composed.overrides.task if not word.startswith("output_dir=")]
    return quote([*own, *job, f"output_dir={cfg.output_dir}"])


def _speak_as(rank: int) -> None:
    """Another rank than the first says nothing but warnings, and who it is."""
    import logging

    logging.getLogger().setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(f"rank {rank}: %(message)s"))


def _say_whose(rank: int) -> None:
    """Whose the traceback is that follows."""
    if rank:
        print(f"rank {rank}:", file=sys.stderr, flush=True)


def _world() -> World:
    """This process's place; where that cannot be told, which is refused in its turn, it speaks for itself."""
    from pretrain.config.problem import UserError
    from pretrain.launch.world import World

    try:
        return World.of(os.environ)
    except UserError:
        return World()


def _refuse_ranks() -> None:
    """Ranks that torchrun or Slurm started can meet but once."""
    world = _world()
    if world.size > 1:
        sys.exit(
            f"--multirun: {world.started_by} started {world.size} processes, which are for one run: give each run of "
            "the sweep a command of its own, or sweep on one machine, where devices=N starts them anew for each"
        )


def _mistakes(words: list[str]) -> list[str]:
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


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Ctrl-C before or after training: nothing is under way that could be lost, and libraries that are just being
    imported may swallow an exception."""
    os.write(2, b"\ninterrupted\n")
    os._exit(128 + number)


def _leave_if(mistakes: list[str]) -> None:
    if mistakes:
        from pretrain.config import secret

        _refuse("\n".join(dict.fromkeys(map(secret.typed, mistakes))))


def _refuse(sentences: str) -> NoReturn:
    """Leaves with what is wrong. Rank 0 says it first: mostly it is wrong for all, and who started them ends the others
    when one has left."""
    if rank := _world().rank:
        _let_rank_0_speak()
        sentences = f"rank {rank}: {sentences}"
    sys.exit(sentences)


def _let_rank_0_speak() -> None:
    """Waits a little, in which who started the ranks may end this one."""
    for number in slurm.ASKS:
        signal.signal(number, lambda *_: os._exit(1))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, slurm.ASKS)
    time.sleep(_RANK_0_FIRST)


def _leave_with_usage(code: int) -> None:
    recipes = sorted(path.stem for path in (shipped("conf") / "experiment").glob("*.yaml"))
    experiments = textwrap.fill(f"Experiments: {', '.join(recipes)}", 96, break_on_hyphens=False)
    print(f"{(__doc__ or '').strip()}\n\n{experiments}")
    sys.exit(code)


if __name__ == "__main__":
    main()

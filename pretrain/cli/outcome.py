"""A run from its configuration to its end, and what each end means: a sentence, and an exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from pathlib import Path

from omegaconf import DictConfig

from pretrain import build
from pretrain.data.stream.loader import death_of_reader
from pretrain.launch import collector, leave, slurm
from pretrain.launch.world import World
from pretrain.records import UserError
from pretrain.trainer.lifecycle import UnsavedError
from pretrain.trainer.team import ToldError, lost_peers

ALARM = 3  # the exit code where a collapse ended the run


def carry_out(cfg: DictConfig) -> None:
    """One run on this rank. It returns where the run has come to its end, and raises SystemExit otherwise."""
    collector.wake()
    _quieten()
    rank = World.of(os.environ).rank
    leave.speak_as(rank)
    job = slurm.Job(os.environ, rank, Path(cfg.output_dir))
    job.listen()
    run: build.Run | None = None
    try:
        run = build.run_of(cfg)
        run.fit()
    except ToldError:
        leave.let_rank_0_speak()
        sys.exit(1)
    except UnsavedError as failure:
        if not rank:
            print(failure, file=sys.stderr, flush=True)
        asked = run.stop.signal if run and job.id else None
        sys.exit(1 if asked is None else job.leave(asked))  # a Slurm job goes on from the one before
    except UserError as mistake:
        leave.refuse(str(mistake))
    except RuntimeError as failure:
        dead = death_of_reader(failure)
        sentence = dead or lost_peers(failure)
        if sentence is None:
            leave.say_whose(rank)
            raise
        if run and run.stop.asked == signal.SIGINT and not dead:  # Ctrl-C was said twice, and that rank heard it sooner
            sys.exit(128 + signal.SIGINT)
        sys.exit(f"rank {rank}: {sentence}" if rank else sentence)
    except Exception:
        leave.say_whose(rank)
        raise
    if run.stop.signal is not None and not run.clock.end:
        sys.exit(job.leave(run.stop.signal))
    if run.state.alarm:
        sys.exit(ALARM)


def _quieten() -> None:
    """Keeps Lightning from speaking of itself: what we say stands in our own lines."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.")

"""Training from Python, in a notebook or a script: `result = pretrain.train("mae_vits", overrides=[…])`.

It is the command `python -m pretrain` in a process that lives on: a mistake is an exception, Ctrl-C saves and returns,
and what belongs to the process (signals, logging, warnings, Hydra) is left as it was found.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.version import VersionBase
from omegaconf import DictConfig
from tqdm import tqdm

from pretrain import build
from pretrain.assemble import ranks_to_start
from pretrain.callbacks.journal import read_rows
from pretrain.cli.outcome import ALARM
from pretrain.config import secret
from pretrain.config.arguments import quote
from pretrain.config.check import mistakes
from pretrain.config.overrides import composed, forget
from pretrain.data.stream.loader import death_of_reader
from pretrain.launch import local
from pretrain.launch.world import World
from pretrain.records import UserError
from pretrain.trainer import checkpoint
from pretrain.trainer.run_folder import closed_on_failure

_LIBRARIES = ("lightning.pytorch", "lightning.fabric")


@dataclass(frozen=True)
class Trained:
    """What `pretrain.train` leaves. `pretrain.load(result.folder)` gives the encoder.

    Args:
        folder: of the run.
        step: optimizer steps done, and saved.
        finished: whether the run is at its end; if not, the same call goes on.
        reason: why it ended.
        metrics: the last row of the run's `metrics.jsonl`: loss, lr, images_per_second, …
    """

    folder: Path
    step: int
    finished: bool
    reason: str
    metrics: dict[str, float] = field(repr=False)


def train(experiment: str | None, overrides: Sequence[str] = ()) -> Trained:
    """Pretrains an encoder, as `python -m pretrain +experiment=EXPERIMENT OVERRIDES…` does, and shows its log lines.

    On one device it trains in this process; for several (`devices=8`) it starts a process for each. Called again it
    goes on from the newest checkpoint in `output_dir`, or says that the run is finished.

    Ctrl-C (a notebook's stop button) and SIGTERM end the step, save and return; a second Ctrl-C ends it at once with a
    KeyboardInterrupt. In another thread than the main one Python hears no signals: there it trains to its end.

    Args:
        experiment: the name of a recipe, such as `mae_vits`; None starts from the defaults.
        overrides: words of the command, `key=value`: `["trainer=cpu", "data.train=SHARDS/train-*.tar"]`.

    Raises:
        UserError (a ValueError): with all mistakes of the configuration at once; the data or the folder are not what
            the run needs; the last checkpoint could not be written.
        RuntimeError: one of several processes failed; it said why in its own output.
    """
    if isinstance(overrides, str):
        raise UserError(f"overrides={overrides}: must be a list of words, [{overrides!r}]")
    words = quote([*([] if experiment is None else [f"+experiment={experiment}"]), *overrides])
    with ExitStack() as process:
        for kept in (_hydra, _signals, _warnings, _lines):
            process.enter_context(kept())
        cfg = _configuration(words)
        count = ranks_to_start(cfg)
        finished, reason = _in_ranks(count, words) if count > 1 else _here(cfg)
    folder = Path(cfg.output_dir).absolute()
    newest, rows = checkpoint.newest(folder / "checkpoints"), read_rows(folder / "metrics.jsonl")
    step = 0 if newest is None else checkpoint.step_of(newest)
    return Trained(folder, step, finished, reason, rows[-1] if rows else {})


def _configuration(words: list[str]) -> DictConfig:
    world = World.of(os.environ)
    if world.size > 1:
        raise UserError(
            f"{world.started_by} started {world.size} processes: start each by `python -m pretrain` with these words, "
            "or call pretrain.train in one process, which starts one for each device"
        )
    if wrong := mistakes(words):
        raise UserError("\n".join(dict.fromkeys(map(secret.typed, wrong))))
    return composed(words)


def _here(cfg: DictConfig) -> tuple[bool, str]:
    """Trains in this process: (whether the run is at its end, why it ended)."""
    try:
        with closed_on_failure():
            one = build.run_of(cfg)
        one.fit()
    except SystemExit:  # so Lightning answers to a second Ctrl-C
        raise KeyboardInterrupt from None
    except RuntimeError as failure:
        sentence = death_of_reader(failure)
        if sentence is None:
            raise
        raise UserError(sentence) from None
    return bool(one.clock.end), one.clock.end or one.state.stopping


def _in_ranks(count: int, words: list[str]) -> tuple[bool, str]:
    """The same in so many processes."""
    code = local.start(count, words)
    asked = [number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) if code == 128 + number]
    if code and not asked and code != ALARM:
        raise RuntimeError(f"training ended with exit code {code}: what went wrong stands in the lines above")
    return not code, f"received {asked[0].name}" if asked else "all steps are done" if not code else "an alarm"


@contextmanager
def _hydra() -> Iterator[None]:
    """Composes as if Hydra had not been used in this process, and leaves what it found: another composition that is
    under way, and the version that it asked for."""
    kinds = (GlobalHydra, VersionBase)
    before = {kind: Singleton._instances.pop(kind, None) for kind in kinds}
    forget()  # files may have changed since the last call
    try:
        yield
    finally:
        for kind, one in before.items():
            Singleton._instances.pop(kind, None)
            if one is not None:
                Singleton._instances[kind] = one


@contextmanager
def _signals() -> Iterator[None]:
    """What training listens to does afterwards what it did before. Only the main thread may set that."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # one of C, which Python cannot set again
                    signal.signal(number, handler)


@contextmanager
def _warnings() -> Iterator[None]:
    """Without what Lightning says of itself; what matters stands in our own lines."""
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


@contextmanager
def _lines() -> Iterator[None]:
    """Shows our own log lines: by the handlers that the user has set up, or where there are none by printing them."""
    logger = logging.getLogger("pretrain")
    level, propagate = logger.level, logger.propagate
    mine = None if logger.hasHandlers() else _Printed()
    if level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if mine is not None:
        logger.addHandler(mine)
        logger.propagate = False  # beside a progress bar, tqdm gives the root logger a handler for a while
    try:
        yield
    finally:
        logger.setLevel(level)
        if mine is not None:
            logger.removeHandler(mine)
            logger.propagate = propagate


class _Printed(logging.Handler):
    """Prints to what is standard output at that moment, a notebook's cell for one, and above a progress bar."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(secret.Filter())

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))

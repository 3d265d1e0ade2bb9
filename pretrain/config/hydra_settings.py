"""Hydra's own part of a configuration: what it would build, import or set before a run is ours to check.

Hydra instantiates `hydra.callbacks`, its launcher and its sweeper, and hands `hydra.job_logging` to Python's
`dictConfig`, which calls what `()` and `class` name. An experiment file may set all of them, so they are held to the
same rule as every other `_target_`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pretrain.config import secret
from pretrain.config.overrides import hydra_of
from pretrain.config.signature import locate
from pretrain.files import replace_file

_PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")  # Hydra takes its launcher and sweeper from there alone
_LOGGING = ("hydra.job_logging", "hydra.hydra_logging")
_LOGGERS = ["logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter"]
_LOGGERS += ["logging.handlers.RotatingFileHandler", "colorlog.ColoredFormatter"]
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
_FLAGS = {"--multirun", "-m", "--run", "-r", "--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i"}
_FLAGS |= {"--hydra-help", "--version", "--help", "-h"}


def flag_mistakes(words: Sequence[str]) -> list[str]:
    """The flags of a command that lead past its check: to another primary configuration, or to a pickle of one."""
    flags = [word.partition("=")[0] for word in words if word.startswith("-")]
    advice = "experiments of yours are found by 'hydra.searchpath=[file:///FOLDER]' +experiment=NAME"
    return [
        f"{flag}: is not taken, since what it loads cannot be checked; {advice}" for flag in flags if flag not in _FLAGS
    ]


def mistakes(overrides: Sequence[str], allowed: Sequence[str] = ()) -> list[str]:
    """What Hydra may not be told, a line each.

    Args:
        overrides: that can be composed.
        allowed: packages whose classes a `_target_` may name.
    """
    return list(_walk("hydra", hydra_of(overrides), list(allowed)))


def clean_sweep(folder: Path) -> None:
    """Takes secrets out of the `multirun.yaml` that Hydra writes for a sweep, with every word of the command."""
    path = folder / "multirun.yaml"
    if path.is_file():
        plain: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        text = OmegaConf.to_yaml(OmegaConf.create(secret.recorded(plain)))
        replace_file(path, secret.typed(text).encode())


def _walk(path: str, node: Any, allowed: Sequence[str]) -> Iterator[str]:
    if path in ("hydra.job.env_set", "hydra.sweeper.params") and node:
        what = "variables" if path.endswith("env_set") else "the values of a sweep"
        yield f"{path}: cannot be checked: give {what} on the command line"
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _walk(f"{path}.{key}", value, allowed)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _walk(f"{path}[{number}]", value, allowed)
    elif reason := _reason(path, node, allowed):
        yield f"{path}={node}: {reason}"


def _reason(path: str, value: Any, allowed: Sequence[str]) -> str:
    """Why a value may not stand there, "" if it may."""
    name = path.rpartition(".")[2]
    if path in ("hydra.launcher._target_", "hydra.sweeper._target_"):
        return "" if str(value).startswith(_PLUGINS) else "is no plugin of Hydra"
    if name == "_target_":
        if not str(value).startswith(tuple(f"{package}." for package in allowed)):
            return "is built by Hydra; add its package to allow_targets if you trust it"
        return locate(value, allowed)[1]
    if path.startswith(_LOGGING):
        if name in ("()", "class", "factory", "queue", "listener") and value not in _LOGGERS:
            return f"is none of {', '.join(_LOGGERS)}"
        if isinstance(value, str) and "://" in value and value not in _STREAMS:
            return f"is none of {', '.join(_STREAMS)}"
    return ""

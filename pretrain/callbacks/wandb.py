"""Weights & Biases, in a process of its own, so that training neither stops nor waits for it.

The run's own files are the record; this is a copy for looking at. Without a key, or when the service cannot be
reached, it is written offline beside the run.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import socket
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pretrain.config import secret
from pretrain.launch.process import spawning

log = logging.getLogger(__name__)

_PROBE = 5.0  # seconds to find out whether the service can be reached
_PATIENCE = 20.0  # seconds that the end of a run waits for the last rows


class WandbProcess:
    """Sends rows to wandb from another process.

    Args:
        folder: of the run; offline files go to its `wandb/`.
        project, name, run_id: under which the run is found; a resumed run keeps its id.
        config: plain data to show with the run.
        mode: `auto`, `online` or `offline`. `auto` is offline without a key.
    """

    def __init__(self, folder: Path, project: str, name: str, run_id: str, config: dict[str, Any], mode: str) -> None:
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        self.folder = folder
        context = multiprocessing.get_context("spawn")
        self._queue: Any = context.Queue()
        arguments = secret.recorded({"project": project, "name": name, "id": run_id, "config": config})
        arguments["dir"] = str(folder)
        self._process = context.Process(target=_send, args=(self._queue, arguments, mode), daemon=True)
        with spawning():
            self._process.start()
        if mode == "offline":
            log.info("%s", _offline(str(folder), "no key: log in by `wandb login`"))

    def write(self, step: int, row: Mapping[str, float | int | None]) -> None:
        """Hands a row over and returns at once."""
        if self._process.is_alive():
            self._queue.put((step, dict(row)))

    def close(self) -> None:
        """Waits a little for the last rows, then lets go."""
        self._queue.put(None)
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            log.warning("wandb did not finish within %.0f s: what is missing there is in metrics.jsonl", _PATIENCE)
            self._process.kill()
        self._queue.cancel_join_thread()


def _has_key() -> bool:
    """Whether wandb has a key: in the environment or in the netrc that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace")


def _offline(folder: str, reason: str) -> str:
    return f"wandb: offline, in {folder}/wandb ({reason}); `wandb sync` uploads it"


def _unreachable(address: str) -> str:
    """Why a service cannot be reached, "" if it can, or if a proxy stands before it and will say."""
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    if parts.scheme in urllib.request.getproxies():
        return ""
    try:
        socket.create_connection((host, port), timeout=_PROBE).close()
    except OSError as failure:
        return f"cannot reach {host}: {failure}"
    return ""


def _send(rows: Any, arguments: dict[str, Any], mode: str) -> None:
    """The process: starts wandb, offline if online fails, and passes rows on until None comes or the trainer ends."""
    os.environ.setdefault("WANDB_SILENT", "true")
    del sys.argv[
        1:
    ]  # wandb keeps the command, whose words may hold secrets; the configuration that it is given does not
    import wandb

    if mode == "online" and (reason := _unreachable(wandb.setup().settings.base_url)):
        print(_offline(arguments["dir"], reason), flush=True)
        mode = "offline"
    try:
        run = wandb.init(mode=mode, resume="allow", settings=wandb.Settings(init_timeout=30), **arguments)
    except wandb.errors.Error as failure:
        print(_offline(arguments["dir"], str(failure).splitlines()[0]), flush=True)
        run = wandb.init(mode="offline", resume="allow", **arguments)
    trainer = multiprocessing.parent_process()
    while trainer is not None and trainer.is_alive():
        try:
            row = rows.get(timeout=5)
        except queue.Empty:
            continue
        if row is None:
            break
        step, values = row
        run.log(values, step=step)
    run.finish()

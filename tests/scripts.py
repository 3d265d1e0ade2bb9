"""Runs commands and scripts as a person would, but in this process: starting Python and importing torch takes 10 s."""

from __future__ import annotations

import contextlib
import io
import runpy
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.cli.main import main

FOLDER = Path(__file__).parent.parent / "scripts"


def loaded(name: str, as_name: str = "script") -> dict[str, Any]:
    """What a script defines; as Python does, with its folder among those that modules are looked for in."""
    sys.path.insert(0, str(FOLDER))
    try:
        return runpy.run_path(str(FOLDER / f"{name}.py"), run_name=as_name)
    finally:
        sys.path.remove(str(FOLDER))


def run_script(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`python scripts/NAME.py WORDS…`: its exit code and what it prints."""
    return _ran([f"scripts/{name}.py", *words], lambda: loaded(name, "__main__"))


def run_command(*words: str) -> subprocess.CompletedProcess[str]:
    """`pretrain WORDS…`: likewise. Training has signals of its own: `tests.program` runs it."""
    assert words[:1] != ("train",) or {"-h", "--help"} & set(words)
    return _ran(["pretrain", *words], main)


def _ran(typed: list[str], run: Callable[[], object]) -> subprocess.CompletedProcess[str]:
    out, err, code = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, typed
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                run()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
            except Exception:
                code = 1
                traceback.print_exc()
    finally:
        sys.argv = before
    return subprocess.CompletedProcess(typed, code, out.getvalue(), err.getvalue())

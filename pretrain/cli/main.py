"""Self-supervised pretraining of vision encoders.

    pretrain COMMAND KEY=VALUE …
    pretrain COMMAND --help
    pretrain --version

Training is `pretrain train …`, or `python -m pretrain …`, which is the same.
"""

from __future__ import annotations

import sys

from pretrain import __version__
from pretrain.cli.command import asks_for_help, start, summary
from pretrain.config.suggest import suggest
from pretrain.config.usage import table

# Each command with its module in this folder.
COMMANDS = {
    "train": "train",
    "shards": "shards",
    "probe": "probe",
    "export": "export",
    "import": "import_weights",
    "plan": "plan",
    "explain": "explain",
    "verify-resume": "verify_resume",
    "consolidate": "consolidate",
    "replay": "replay",
    "scaling": "scaling",
    "slurm": "slurm",
}


def main() -> None:
    """The console command `pretrain`."""
    name, *words = sys.argv[1:] or [""]
    if not name or asks_for_help(name):
        print(usage())
        sys.exit(0 if name else 2)
    if name == "--version":
        print(f"pretrain {__version__}")
    elif name in COMMANDS:
        start(COMMANDS[name], words)
    else:
        sys.exit(_unknown(name))


def usage() -> str:
    rows = table([(name, [summary(module)]) for name, module in COMMANDS.items()])
    return f"{(__doc__ or '').strip()}\n\nCommands:\n{rows}"


def _unknown(name: str) -> str:
    if name.startswith("+") or "=" in name:
        return f"`{name}`: the first word is a command; did you mean pretrain train {name}?"
    return f"`{name}`: there is no such command{suggest(name, list(COMMANDS))}\n`pretrain --help` lists them"


if __name__ == "__main__":
    main()

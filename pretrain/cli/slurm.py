"""Writes the batch files for Slurm, and the container files, into a folder.

    pretrain slurm out=slurm
    sbatch -N2 --gpus-per-node=8 --exclusive slurm/pretrain.sbatch +experiment=mae_vitl

The folder is then yours: edit the files as your cluster needs it. Nothing is written over: if a
file is there already and differs, none is written. An image is built from a checkout, not from
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pretrain.config.arguments import word
from pretrain.config.problem import UserError
from pretrain.files import replace_file, shipped

_FOLDERS = {"slurm": "", "container": "container"}  # that come with the package, each with its place in `out`


@dataclass(frozen=True)
class Arguments:
    out: str = word("The folder for the files.", example="slurm")


def main(a: Arguments) -> None:
    out = Path(a.out)
    files = {
        out / place / path.name: path.read_bytes()
        for name, place in _FOLDERS.items()
        for path in sorted(shipped(name).iterdir())
        if path.is_file()
    }
    try:
        present = {path: path.read_bytes() for path in files if path.exists()}
        if differing := [path for path, content in present.items() if content != files[path]]:
            names = ", ".join(f"`{path}`" for path in differing)
            raise UserError(f"out={a.out}: {names}: there already, and different; name another folder, or move it away")
        for path, content in files.items():
            if path not in present:
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, content)
    except OSError as failure:
        raise UserError(f"out={a.out}: cannot be written: {failure}") from None
    print("\n".join(map(str, files)))

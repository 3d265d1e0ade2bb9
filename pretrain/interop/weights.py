"""The files of an export: safetensors, which hold numbers and nothing that could run, and json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain.records import UserError

NAME = "model.safetensors"


def save(folder: Path, tensors: dict[str, Tensor], descriptions: dict[str, dict[str, Any]]) -> None:
    """Writes weights in float32 and the json files that describe them, file name → content."""
    whole = {key: tensor.detach().float().contiguous() for key, tensor in tensors.items()}
    save_file(whole, folder / NAME, metadata={"format": "pt"})
    (folder / NAME).chmod(0o644)  # safetensors leaves it to its owner alone
    for name, content in descriptions.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


def load(folder: Path) -> dict[str, Tensor]:
    """The weights in a folder.

    Raises:
        UserError: they are not there, or damaged.
    """
    try:
        return load_file(folder / NAME)
    except (FileNotFoundError, SafetensorError) as failure:
        raise UserError(f"`{folder}` is no whole export: {NAME}: {failure}") from None


def load_file_of(path: Path) -> dict[str, Tensor]:
    """The weights in a safetensors file.

    Raises:
        UserError: it is not there, damaged, or of another kind.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as failure:
        raise UserError(f"`{path}` cannot be read as safetensors: {failure}") from None


def description(folder: Path) -> dict[str, Any]:
    """The `config.json` beside the weights.

    Raises:
        UserError: it is not there, or damaged.
    """
    try:
        content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return content
    except (FileNotFoundError, ValueError) as failure:
        raise UserError(f"`{folder}` is no whole export: config.json: {failure}") from None

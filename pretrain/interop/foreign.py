"""Weights that others published, in: of timm, Hugging Face or the original repositories, for one of our encoders."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pretrain.encoder.encoder import Encoder
from pretrain.interop import huggingface, official, timm, weights
from pretrain.interop.card import Card
from pretrain.interop.export import TOLERANCE, relative
from pretrain.records import UserError

Source = Literal["timm", "hf", "official"]


def load_into(encoder: Encoder, source: Source, path: Path) -> list[str]:
    """Gives an encoder published weights, every key accounted for.

    Args:
        encoder: of the same sizes.
        source: whose names they have.
        path: of the file, or of the folder with `model.safetensors` and `config.json`.

    Returns:
        The keys that were left out, since no encoder has them: classifiers, decoders.

    Raises:
        UserError: the file cannot be read, holds another model, or other sizes.
    """
    family = type(encoder).__name__
    try:
        state, left = _read(source, family, path)
    except UserError:
        raise
    except ValueError as failure:
        raise UserError(f"weights={path}: these are no {source} weights of a {family}: {failure}") from None
    wanted = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    there = {key: tuple(value.shape) for key, value in state.items()}
    if wanted != there:
        raise UserError(f"weights={path}: they do not fit this encoder:\n" + "\n".join(_differences(wanted, there)))
    encoder.load_state_dict(state)
    return left


def difference(encoder: Encoder, card: Card, source: Source, path: Path) -> float | None:
    """How far the encoder's features are from those that the source's own library computes from the source's files.

    Shapes do not show everything: heads, the ε of norms, and what attends where stand in `config.json`.

    Returns:
        The greatest difference over the greatest feature; None if the source has no `config.json` to build from.
    """
    folder = path if path.is_dir() else path.parent
    if source == "official" or not (folder / "config.json").is_file():
        return None
    shape = (2, encoder.in_chans, *encoder.img_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if source == "timm":
            theirs = timm.theirs(folder, card, images)
        else:
            theirs = huggingface.theirs(folder, card, images, alone=False)
        return relative(encoder.eval()(images).joined(), theirs)


def refuse_other_features(found: float | None, path: Path) -> None:
    """Raises UserError if features differ from the source's."""
    if found is not None and not found <= TOLERANCE:
        raise UserError(
            f"weights={path}: features differ from those of the source by {found:.1e} of the greatest, more than "
            f"{TOLERANCE}: its config.json says other heads, norms or sizes than `encoder`; compare them"
        )


def identity(source: Source, path: Path) -> str:
    """What stands for the run that made published weights: two files never have the same."""
    with _file(path).open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return f"{source}:{path.name}:{digest[:12]}"


def _file(path: Path) -> Path:
    """The file of the weights: of a folder `model.safetensors`, or what came before it."""
    if not path.is_dir():
        return path
    older = path / "pytorch_model.bin"
    return older if older.is_file() and not (path / weights.NAME).is_file() else path / weights.NAME


def _read(source: Source, family: str, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    file = _file(path)
    if source == "official":
        return official.from_official(family, official.load(file))
    state = weights.load_file_of(file) if file.suffix == ".safetensors" else official.load(file)
    if source == "timm":
        return timm.from_timm(state)
    config: dict[str, Any] = weights.description(file.parent)
    return huggingface.from_hf(family, state, config)


def _differences(wanted: dict[str, tuple[int, ...]], there: dict[str, tuple[int, ...]]) -> list[str]:
    """The first few keys that are missing, too many, or of another shape."""
    lines = [
        f"  {key}: {there.get(key, 'missing')} in the file, {wanted.get(key, 'nothing')} in the encoder"
        for key in sorted(wanted.keys() | there.keys())
        if wanted.get(key) != there.get(key)
    ]
    return lines if len(lines) <= 8 else [*lines[:8], f"  … and {len(lines) - 8} more"]

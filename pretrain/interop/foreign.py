"""Weights that others published, in: of timm, Hugging Face or the original repositories, for one of our encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pretrain.encoder.encoder import Encoder
from pretrain.interop import huggingface, official, timm, weights
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
    except ValueError as failure:
        raise UserError(f"weights={path}: these are no {source} weights of a {family}: {failure}") from None
    wanted = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    there = {key: tuple(value.shape) for key, value in state.items()}
    if wanted != there:
        raise UserError(f"weights={path}: they do not fit this encoder:\n" + "\n".join(_differences(wanted, there)))
    encoder.load_state_dict(state)
    return left


def _read(source: Source, family: str, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    if source == "official":
        return official.from_official(family, official.load(path))
    state = weights.load(path) if path.is_dir() else weights.load_file_of(path)
    if source == "timm":
        return timm.from_timm(state)
    config: dict[str, Any] = weights.description(path if path.is_dir() else path.parent)
    return huggingface.from_hf(family, state, config)


def _differences(wanted: dict[str, tuple[int, ...]], there: dict[str, tuple[int, ...]]) -> list[str]:
    """The first few keys that are missing, too many, or of another shape."""
    lines = [
        f"  {key}: {there.get(key, 'missing')} in the file, {wanted.get(key, 'nothing')} in the encoder"
        for key in sorted(wanted.keys() | there.keys())
        if wanted.get(key) != there.get(key)
    ]
    return lines if len(lines) <= 8 else [*lines[:8], f"  … and {len(lines) - 8} more"]

"""Distributed self-supervised pretraining of vision encoders.

    encoder = pretrain.load("RUN")
    features = encoder.features(["a.jpg", "b.png"])  # [2, D]
    pretrain.train("mae_vits", overrides=["trainer=cpu", "data.train=SHARDS/train-*.tar"])

`import pretrain` imports nothing else: torch comes with the first use of `load`, Hydra and Lightning with `train`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.pretrained import load as load
    from pretrain.training import train as train

__version__ = "0.1.0"

__all__ = ["__version__", "load", "train"]

_HOMES = {"load": "pretrain.pretrained", "train": "pretrain.training"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

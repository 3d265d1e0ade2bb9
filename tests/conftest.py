"""Where the tests find what the project does not ship: real images and the originals' outputs."""

from __future__ import annotations

import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: many threads on few cores only wait

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from pretrain.objective.decoder import Decoder
from tests.job import Job


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names the folder with {what}")
    return Path(value)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real image shards."""
    return _folder("PRETRAIN_TEST_DATA", "real image shards")


class Golden:
    """A file of inputs and outputs of an original implementation."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self.config = json.loads(file.metadata()["config"])
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def state(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """The golden file that the test's `golden` parameter names."""
    folder = _folder("PRETRAIN_GOLDEN_DIR", "outputs of the original implementations")
    return Golden(folder / f"{request.param}.safetensors")


def decoder_from(config: dict[str, Any], **arguments: Any) -> Callable[..., Decoder]:
    """Makes the decoder that a golden file's config describes."""
    sizes = {name: config[f"decoder_{name}"] for name in ("embed_dim", "depth", "num_heads")}
    return partial(Decoder, mlp_ratio=config["mlp_ratio"], norm_eps=config["norm_eps"], **sizes, **arguments)


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """The tolerance of the golden files: max |a − b| ≤ 1e-5 · max |b|. Both sides are float32 sums in other orders."""
    assert ours.shape == theirs.shape
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())


@pytest.fixture
def skip_seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock that speed is measured by: far more than a busy machine may."""
    skipped, real = [0.0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: real() + skipped[0])

    def skip(seconds: float) -> None:
        skipped[0] += seconds

    return skip


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A run small enough for a test."""
    return Job(tmp_path)

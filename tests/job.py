"""A run small enough for a test, on shards made by the test."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pretrain import build
from pretrain.callbacks.journal import read_rows
from pretrain.config.check import check
from pretrain.config.overrides import composed
from tests.data.shards import write_shards
from tests.program import Program

SMALL = [
    "+experiment=mae_digits",
    "trainer=cpu",
    "trainer.precision=32-true",
    "encoder.img_size=8",
    "encoder.embed_dim=24",
    "encoder.depth=2",
    "objective.decoder.embed_dim=16",
    "objective.decoder.depth=1",
    "global_batch_size=8",
    "base_lr=1.5e-3",
    "epochs=100",
    "warmup_epochs=10",
    "data.num_workers=0",
    "data.shuffle.streams=3",
    "data.shuffle.window=4",
    "callbacks.log.every_steps=1",
    "callbacks.log.wandb=disabled",
    "callbacks.pictures=null",
    "max_steps=12",
]

HIERA = [
    "+experiment=mae_hiera_cifar10",
    "encoder.img_size=16",
    "encoder.embed_dim=8",
    "encoder.stages=[1,1,1]",
    "encoder.q_pool=1",
    "encoder.mask_unit_attn=[true,false,false]",
    "encoder.mask_unit_size=4",
    "encoder.patch_stride=2",
    "objective.decoder.num_heads=2",
    "objective.decoder.position=learned",
    "data.num_samples=null",
]

DINO = [
    "+experiment=dino_cifar10_vits",
    "encoder=vit_tiny",
    "encoder.img_size=16",
    "encoder.patch_size=4",
    "encoder.embed_dim=24",
    "encoder.depth=2",
    "encoder.num_heads=3",
    "encoder.position=learned",
    "encoder.drop_path=0.2",
    "objective.head.prototypes=16",
    "objective.head.hidden_dim=24",
    "objective.head.bottleneck_dim=8",
    "objective.local_view.size=8",
    "objective.local_view.count=2",
    "data.num_samples=null",
]


_CHECKED: set[tuple[str, ...]] = set()

_composed = functools.cache(composed)


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0]


class Job:
    """Shards, an output folder, and runs of the small configuration in it."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp = tmp_path
        self.shards = tmp_path / "shards"
        self.out = tmp_path / "run"
        write_shards(self.shards, [10, 7, 1, 23])

    def overrides(self, *extra: str) -> list[str]:
        """The small configuration with some keys replaced; of another experiment the model's sizes are its own."""
        replaced = {_key(word) for word in extra}
        there = {f"{key.rpartition('.')[0]}=null" for key in replaced}  # again, where a part of it is set
        mine = [f"{key}={path}" for key, path in self._paths().items()]
        kept = [word for word in (*SMALL, *mine) if _key(word) not in replaced and word not in there]
        if "experiment" in replaced:
            mine = ("encoder.", "objective.") if "+experiment=dino_cifar10_vits" in extra else ("encoder.",)
            kept = [word for word in kept if not word.startswith(mine)]
        return [*kept, *extra]

    def run(self, *extra: str) -> build.Run:
        """Trains in this process."""
        run = build.run_of(self.configuration(*extra))
        run.fit()
        return run

    def configuration(self, *extra: str) -> DictConfig:
        """What `overrides` give. Hydra takes longer than a few steps do: it composes the same words but once."""
        paths = {key: path for key, path in self._paths().items() if key not in map(_key, extra)}
        words = tuple(word for word in self.overrides(*extra) if _key(word) not in paths)
        cfg = copy.deepcopy(_composed(words))
        for key, path in paths.items():
            OmegaConf.update(cfg, key, str(path))
        if words not in _CHECKED:
            assert check(cfg) == []
            _CHECKED.add(words)
        return cfg

    def _paths(self) -> dict[str, Path]:
        return {"data.train": self.shards, "data.index_dir": self.tmp / "index", "output_dir": self.out}

    def start(self, *extra: str, session: bool = False) -> Program:
        """Trains in a process of its own."""
        return Program(self.overrides(*extra), self.tmp, session=session)

    def rows(self) -> list[dict[str, Any]]:
        """The journal."""
        return read_rows(self.out / "metrics.jsonl")

    def losses(self) -> dict[int, str]:
        """The loss of each step to the last bit; a step that stands there twice is an error."""
        losses: dict[int, str] = {}
        for row in self.rows():
            assert row["step"] not in losses
            losses[row["step"]] = float(row["loss"]).hex()
        return losses

"""What the callbacks of a run may look at: its samples, its losses, and the features that it would export."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from pretrain.assemble import as_exported, instantiate
from pretrain.callbacks.step import Context
from pretrain.data.module import ShardData
from pretrain.plan import Plan
from pretrain.probe.features import pooled
from pretrain.records import Batch
from pretrain.trainer import weights
from pretrain.trainer.module import PretrainModule
from pretrain.trainer.run_folder import RunFolder
from pretrain.trainer.state import RunState
from pretrain.trainer.team import Team
from pretrain.view.color import Prepare
from pretrain.view.spec import ViewSpec


def context_of(
    shown: dict[str, Any],
    sizes: Plan,
    folder: RunFolder,
    state: RunState,
    data: ShardData,
    module: PretrainModule,
    team: Team,
) -> Context:
    """The context of a run.

    Args:
        shown: the whole configuration as plain data, without secrets.
        sizes: what it amounts to.
    """
    seed, views, batch = shown["seed"], module.objective.views, sizes.micro_batch
    plainly = replace(views[0], count=1, colors=None)  # how probes look at an image

    def prepared(batches: Iterable[Batch]) -> Iterator[Batch]:
        for one in batches:
            state.moved = time.monotonic()
            yield module.prepared(one.to(module.device))

    return Context(
        folder=folder.path,
        rank=team.rank,
        ranks=team.size,
        patience=60 * team.minutes,
        name=shown["name"],
        run_id=folder.run_id,
        state=state,
        last_step=min(sizes.total_steps, sizes.stop_after_steps or sizes.total_steps),
        max_seconds=sizes.max_seconds,
        samples_per_step=sizes.global_batch_size,
        config=shown,
        examples=lambda count: next(prepared(data.examples(seed, count, views))),
        val_batches=None if data.val is None else lambda: prepared(data.val_batches(seed, batch, views)),
        val_subset=None if data.val is None else lambda count: data.val_subset(seed, count, batch, (plainly,)),
        features=_features(module, state, plainly, shown["encoder"]),
        loss=module.loss,
        illustrate=module.illustrate,
        health=lambda batch: module.health(batch.to(module.device)),
        alarms=module.objective.alarms,
    )


def _features(
    module: PretrainModule, state: RunState, view: ViewSpec, encoder: dict[str, Any]
) -> Callable[[Batch], Tensor]:
    """What the exported encoder, of that configuration, makes of a batch of such views."""
    prepare = Prepare([view], augment=False)
    exporter = cache(lambda: _exporter(module, encoder))

    def features(batch: Batch) -> Tensor:
        state.moved = time.monotonic()
        images = prepare.to(module.device)(batch.to(module.device)).views[0][0].to(module.image_dtype)
        with module.evaluation():
            return pooled(exporter()(), images, module.objective.pool)

    return features


def _exporter(module: PretrainModule, node: dict[str, Any]) -> Callable[[], Any]:
    """Makes the encoder that the run would export, with the weights of the moment."""
    encoder = module.objective.encoder_for_export
    arguments = node | encoder.after_pretraining
    if isinstance(encoder, FSDPModule) and arguments != node:
        return weights.follower(encoder, lambda: instantiate(arguments), module.device)
    exported = as_exported(encoder, node)[0].to(module.device)
    return lambda: exported

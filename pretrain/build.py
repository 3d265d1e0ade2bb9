"""The one place that turns configuration into objects; below it nobody sees a configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from pretrain import secret
from pretrain.assemble import as_exported, instantiate, materialise, objective_of
from pretrain.callback.step import Context
from pretrain.data.module import ShardData
from pretrain.data.report import write_report
from pretrain.encoder.encoder import Encoder
from pretrain.nn.attention import kernel_for
from pretrain.objective.objective import Objective
from pretrain.plan import Plan, plan
from pretrain.probe.features import pooled
from pretrain.records import Batch, RunState, UserError
from pretrain.trainer import checkpoint
from pretrain.trainer.clock import Clock
from pretrain.trainer.feed import Feed
from pretrain.trainer.incident import Incidents, Origin
from pretrain.trainer.lifecycle import Stop
from pretrain.trainer.module import PretrainModule
from pretrain.trainer.parallel import OneDevice
from pretrain.trainer.run_folder import RunFolder
from pretrain.view.color import Prepare

log = logging.getLogger(__name__)

_IDENTITY = ("seed", "global_batch_size", "encoder", "objective")
_LENGTH = ("epochs", "warmup_epochs", "max_steps", "max_minutes")
_SETTINGS = ("base_lr", *_LENGTH, "clip_grad_norm", "clip_grad_by", "optim", "schedule")


@dataclass
class Run:
    """A run that is ready to start."""

    folder: RunFolder
    state: RunState
    clock: Clock
    stop: Stop
    module: PretrainModule
    trainer: Trainer
    feed: Feed
    data: ShardData

    def fit(self) -> None:
        """Trains until the run's end or a signal; what is worth keeping is in the run's folder."""
        try:
            if self.clock.end:
                log.info("%s is finished: %s", self.folder.path, self.clock.end)
            else:
                self._train()
                log.info("%s: step %d, %s", self.folder.path, self.state.step, self.state.stopping)
        finally:
            self.folder.close()

    def _train(self) -> None:
        bad = self.data.bad
        try:
            self.trainer.fit(self.module, self.feed)
        finally:
            write_report(self.folder.path, training=bad, evaluation=self.data.bad_in_evaluation)
            if bad:
                log.warning("%s; data_report.json names %d", bad, len(bad.examples))


def run_of(cfg: DictConfig) -> Run:
    """Everything that a run needs, from a configuration that `config.check` found nothing wrong with.

    Raises:
        UserError: the data, or the folder, are not what such a run needs.
    """
    hardware: OneDevice = instantiate(cfg.trainer)
    objective = objective_of(cfg)  # before an index of the shards is made, which may take long
    data: ShardData = instantiate(cfg.data)
    sizes = plan(cfg, data.num_samples, hardware.world_size, data.training.shares)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    identity = secret.recorded({key: plain[key] for key in _IDENTITY} | {"data": data.identity()})
    settings = secret.recorded({key: plain[key] for key in _SETTINGS} | {"precision": hardware.precision})
    _refuse_optimizer(cfg)
    folder = RunFolder(Path(cfg.output_dir), identity, settings, cfg.resume, cfg.trust_checkpoint)

    state = RunState()
    materialise(objective, cfg.seed)
    saved = _restore(folder.checkpoint, objective, state)
    if "bad_samples" in saved:
        data.bad.restore(saved["bad_samples"])
    clock = Clock(
        state,
        total_steps=sizes.total_steps,
        epochs=sizes.epochs,
        samples_per_step=sizes.global_batch_size,
        max_seconds=None if sizes.max_minutes is None else 60 * sizes.max_minutes,
        stop_after_steps=sizes.stop_after_steps,
    )
    if not clock.end:
        folder.record(OmegaConf.to_yaml(OmegaConf.create(_shown(cfg))))
    made = {name: instantiate(node) for name, node in cfg.schedule.items()}
    whole = {"peak": sizes.lr, "warmup": sizes.warmup}  # what those are given that leave it open
    schedules = {name: one(**whole) if isinstance(one, partial) else one for name, one in made.items()}
    origin = Origin(folder.run_id, cfg.seed, hardware.precision, hardware.device.type, sizes.micro_batch)
    module = PretrainModule(
        objective=objective,
        prepare=Prepare(objective.views),
        clock=clock,
        optimizer=instantiate(cfg.optim),
        schedules=schedules,
        accumulation=sizes.accumulation,
        incidents=Incidents(folder.path / "incidents", origin, objective.state_dict, cfg.max_skipped_steps),
        clip_grad_norm=cfg.clip_grad_norm,
        clip_grad_by=cfg.clip_grad_by,
        optimizer_state=saved.get("optimizer"),
    )
    if hardware.compile:
        # blocks of all sizes share one limit, and so do training and evaluation
        torch._dynamo.config.recompile_limit = 64
        for unit in objective.fsdp_units():
            unit.compile()
    stop = Stop(clock, count_first_step=not hardware.compile)
    context = _context(cfg, sizes, folder, state, data, module)
    save = instantiate(cfg.checkpoint)(
        folder=folder.checkpoints, state=state, snapshot=partial(_snapshot, module, data, folder)
    )
    trainer = Trainer(
        **hardware.trainer_arguments(),
        callbacks=[stop, *(instantiate(node)(context) for node in cfg.callback.values() if node), save],
        max_epochs=-1,
        accumulate_grad_batches=sizes.accumulation,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder.path,
    )
    log.info(
        "%s\nattention %s, precision %s", sizes, kernel_for(hardware.device.type, hardware.dtype), hardware.precision
    )
    steps = None if sizes.max_minutes is not None else sizes.total_steps
    advice = objective.advice(sizes.num_samples, sizes.global_batch_size, steps, cfg.epochs)
    for note in (*objective.trained_encoder.notes, *advice):
        log.warning("%s", note)
    batches = data.batches(cfg.seed, state.samples_seen, sizes.micro_batch, objective.views)
    return Run(folder, state, clock, stop, module, trainer, Feed(batches, state), data)


def _refuse_optimizer(cfg: DictConfig) -> None:
    """Lets the optimizer's own constructor judge its arguments, before anything is written."""
    try:
        instantiate(cfg.optim)([torch.nn.Parameter(torch.zeros(1, 1))])
    except (ValueError, TypeError, IndexError, RuntimeError) as failure:
        raise UserError(f"optim: {failure}") from None


def _restore(path: Path | None, objective: Objective, state: RunState) -> dict[str, Any]:
    """Puts a checkpoint's weights and counters in place and returns the rest of it."""
    if path is None:
        return {}
    saved = checkpoint.load(path)
    objective.load_state_dict(saved["objective"])
    state.step, state.samples_seen, state.seconds = (saved[name] for name in ("step", "samples_seen", "seconds"))
    log.info("goes on from %s (step %d)", path, state.step)
    return saved


def _snapshot(module: PretrainModule, data: ShardData, folder: RunFolder) -> dict[str, Any]:
    """All that a checkpoint holds; the run's report on its data is written with it."""
    content = module.snapshot() | {"bad_samples": data.bad.state()}
    write_report(folder.path, training=data.bad, evaluation=data.bad_in_evaluation)
    return content


def _shown(cfg: DictConfig) -> dict[str, Any]:
    """The configuration, resolved, as it may be written down: without secrets."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return secret.recorded(plain)


def _context(
    cfg: DictConfig, sizes: Plan, folder: RunFolder, state: RunState, data: ShardData, module: PretrainModule
) -> Context:
    views, batch = module.objective.views, sizes.micro_batch

    def prepared(batches: Iterable[Batch]) -> Iterator[Batch]:
        return (module.prepare(one.to(module.device)) for one in batches)

    def examples(count: int) -> Batch:
        return next(prepared(data.examples(cfg.seed, count, views)))

    plain = _shown(cfg)
    plainly = replace(views[0], count=1, colors=None)  # how probes look at an image
    prepare = Prepare([plainly], augment=False)

    @cache
    def exported() -> Encoder:
        return as_exported(module.objective.encoder_for_export, plain["encoder"])[0].to(module.device)

    def features(batch: Batch) -> torch.Tensor:
        images = prepare.to(module.device)(batch.to(module.device)).views[0][0]
        with module.evaluation():
            return pooled(exported(), images, module.objective.pool)

    return Context(
        folder=folder.path,
        name=cfg.name,
        run_id=folder.run_id,
        state=state,
        last_step=min(sizes.total_steps, sizes.stop_after_steps or sizes.total_steps),
        max_seconds=None if sizes.max_minutes is None else 60 * sizes.max_minutes,
        samples_per_step=sizes.global_batch_size,
        config=plain,
        examples=examples,
        val_batches=None if data.val is None else lambda: prepared(data.val_batches(cfg.seed, batch, views)),
        val_subset=None if data.val is None else lambda count: data.val_subset(cfg.seed, count, batch, (plainly,)),
        features=features,
        loss=module.loss,
        illustrate=module.illustrate,
        health=lambda batch: module.health(batch.to(module.device)),
        alarms=module.objective.alarms,
    )

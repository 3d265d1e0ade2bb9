"""The one place that turns configuration into objects; below it nobody sees a configuration."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from torch.distributed.fsdp import FSDPModule

from pretrain.assemble import as_exported, instantiate, objective_of
from pretrain.callbacks.step import Context
from pretrain.config import secret
from pretrain.data.module import ShardData
from pretrain.data.stream.report import BadSamples, write_report
from pretrain.nn.attention import kernel_for
from pretrain.objective.objective import Objective
from pretrain.plan import Plan, plan
from pretrain.probe.features import pooled
from pretrain.records import Batch, UserError
from pretrain.trainer import checkpoint, weights
from pretrain.trainer.clock import Clock
from pretrain.trainer.failure_detector import FailureDetector
from pretrain.trainer.feed import Feed
from pretrain.trainer.incident import Incidents, Origin
from pretrain.trainer.lifecycle import Save, Stop
from pretrain.trainer.module import PretrainModule
from pretrain.trainer.parallel import Hardware, quieten
from pretrain.trainer.run_folder import RunFolder
from pretrain.trainer.state import RunState
from pretrain.trainer.team import Team, code_version
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
    team: Team
    detector: FailureDetector

    def fit(self) -> None:
        """Trains until the run's end or a signal; what is worth keeping is in the run's folder."""
        try:
            if self.clock.end:
                log.info("%s is finished: %s", self.folder.path, self.clock.end)
            else:
                self._train()
                log.info("%s: step %d, %s", self.folder.path, self.state.step, self.state.stopping)
            self.detector.end()
            self.team.leave()
        finally:
            self.stop.restore()
            self.folder.close()

    def _train(self) -> None:
        bad = self.data.bad
        try:
            self.trainer.fit(self.module, self.feed)
        finally:
            if self.team.size == 1 or not self.state.stopping:  # else it was written with the last checkpoint
                write_report(self.folder.path, self.team.rank, training=bad, evaluation=self.data.bad_in_evaluation)
            if bad:
                log.warning("%s; data_report.json names %d", bad, len(bad.examples))


def ranks_to_start(cfg: DictConfig) -> int:
    """How many processes this one has to start in its place: 1 is itself."""
    hardware: Hardware = instantiate(cfg.trainer)
    return hardware.to_start


def run_of(cfg: DictConfig) -> Run:
    """Everything that a run needs, from a configuration that `config.check` found nothing wrong with.

    Raises:
        UserError: the data, or the folder, are not what such a run needs.
    """
    hardware: Hardware = instantiate(cfg.trainer)
    objective = objective_of(cfg)  # before an index of the shards is made, which may take long
    data: ShardData = instantiate(cfg.data)  # all ranks index together, before any of them waits for the others
    sizes = plan(cfg, data.num_samples, hardware.world_size, data.training.shares)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    team = hardware.join()
    detector = FailureDetector(team)
    facts = {"the code": code_version(), "the configuration": plain, "the precision": hardware.precision}
    team.agree(secret.recorded(facts | {"the shards": data.identity()}))
    identity = secret.recorded({key: plain[key] for key in _IDENTITY} | {"data": data.identity()})
    settings = secret.recorded({key: plain[key] for key in _SETTINGS} | {"precision": hardware.precision})
    _refuse_optimizer(cfg)
    folder = RunFolder(Path(cfg.output_dir), identity, settings, cfg.resume, cfg.trust_checkpoint, team)

    state = RunState()
    hardware.materialise(objective, cfg.seed)
    saved = team.together(lambda: _restore(folder.checkpoint, objective, state))
    if "bad_samples" in saved and team.leads:
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
    incidents = Incidents(
        folder.path / "incidents",
        origin,
        lambda: weights.gathered(objective, team.leads),
        cfg.max_skipped_steps,
        team=team,
    )
    module = PretrainModule(
        objective=objective,
        prepare=Prepare(objective.views),
        clock=clock,
        optimizer=instantiate(cfg.optim),
        schedules=schedules,
        accumulation=sizes.accumulation,
        incidents=incidents,
        clip_grad_norm=cfg.clip_grad_norm,
        clip_grad_by=cfg.clip_grad_by,
        optimizer_state=saved.get("optimizer"),
        ranks=team.size,
        dtype=torch.float64 if hardware.precision == "64-true" else torch.float32,
    )
    if hardware.compile:
        # blocks of all sizes share one limit, and so do training and evaluation
        torch._dynamo.config.recompile_limit = 64
        for unit in objective.fsdp_units():
            unit.compile()
    context = _context(cfg, sizes, folder, state, data, module, team)
    save: Save = instantiate(cfg.checkpoint)(
        folder=folder.checkpoints, state=state, team=team, snapshot=partial(_snapshot, module, data, folder, team)
    )
    stop = Stop(clock, count_first_step=not hardware.compile, team=team, is_due=save.is_due)
    trainer = Trainer(
        **hardware.trainer_arguments(objective),
        callbacks=[stop, *(instantiate(node)(context) for node in cfg.callbacks.values() if node), save],
        max_epochs=-1,
        accumulate_grad_batches=sizes.accumulation,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder.path,
    )
    quieten(trainer)
    log.info(
        "%s\nattention %s, precision %s", sizes, kernel_for(hardware.device.type, hardware.dtype), hardware.precision
    )
    steps = None if sizes.max_minutes is not None else sizes.total_steps
    advice = objective.advice(sizes.num_samples, sizes.global_batch_size, steps, cfg.epochs)
    for note in (*objective.trained_encoder.notes, *advice):
        log.warning("%s", note)
    batches = data.batches(cfg.seed, state.samples_seen, sizes.micro_batch, objective.views, team.rank, team.size)
    return Run(folder, state, clock, stop, module, trainer, Feed(batches, state), data, team, detector)


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
    saved = checkpoint.read(path)
    weights.put(objective, saved.pop("objective"))
    state.step, state.samples_seen, state.seconds = (saved[name] for name in ("step", "samples_seen", "seconds"))
    state.spent |= saved.get("spent", {})
    log.info("goes on from %s (step %d)", path, state.step)
    return saved


def _snapshot(module: PretrainModule, data: ShardData, folder: RunFolder, team: Team) -> dict[str, Any]:
    """All that a checkpoint holds; the run's report on its data is written with it."""
    counted = BadSamples()
    counted.restore(BadSamples.joined(team.gather(data.bad.state())))
    if team.leads:
        write_report(folder.path, training=counted, evaluation=data.bad_in_evaluation)
    return module.snapshot() | {"bad_samples": counted.state()}


def _shown(cfg: DictConfig) -> dict[str, Any]:
    """The configuration, resolved, as it may be written down: without secrets."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return secret.recorded(plain)


def _context(
    cfg: DictConfig,
    sizes: Plan,
    folder: RunFolder,
    state: RunState,
    data: ShardData,
    module: PretrainModule,
    team: Team,
) -> Context:
    views, batch = module.objective.views, sizes.micro_batch

    def prepared(batches: Iterable[Batch]) -> Iterator[Batch]:
        for one in batches:
            state.moved = time.monotonic()
            yield module.prepared(one.to(module.device))

    def examples(count: int) -> Batch:
        return next(prepared(data.examples(cfg.seed, count, views)))

    plain = _shown(cfg)
    plainly = replace(views[0], count=1, colors=None)  # how probes look at an image
    prepare = Prepare([plainly], augment=False)

    exporter = cache(lambda: _exporter(module, plain["encoder"]))

    def features(batch: Batch) -> torch.Tensor:
        state.moved = time.monotonic()
        images = prepare.to(module.device)(batch.to(module.device)).views[0][0].to(module.image_dtype)
        with module.evaluation():
            return pooled(exporter()(), images, module.objective.pool)

    return Context(
        folder=folder.path,
        rank=team.rank,
        ranks=team.size,
        patience=60 * team.minutes,
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


def _exporter(module: PretrainModule, node: dict[str, Any]) -> Callable[[], Any]:
    """Makes the encoder that the run would export, with the weights of the moment."""
    encoder = module.objective.encoder_for_export
    arguments = node | encoder.after_pretraining
    if isinstance(encoder, FSDPModule) and arguments != node:
        return weights.follower(encoder, lambda: instantiate(arguments), module.device)
    exported = as_exported(encoder, node)[0].to(module.device)
    return lambda: exported

"""The one place that turns configuration into objects; below it nobody sees a configuration."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from pretrain.assemble import instantiate, objective_of
from pretrain.callbacks.context import context_of
from pretrain.callbacks.step import Context
from pretrain.config import secret
from pretrain.data.module import ShardData
from pretrain.nn.attention import kernel_for
from pretrain.objective.objective import Objective
from pretrain.plan import Plan, plan
from pretrain.records import UserError
from pretrain.trainer import resume, weights
from pretrain.trainer.adapter import adapted
from pretrain.trainer.clock import Clock
from pretrain.trainer.failure_detector import FailureDetector
from pretrain.trainer.feed import Feed
from pretrain.trainer.incident import Incidents, Origin
from pretrain.trainer.lifecycle import Save, Stop
from pretrain.trainer.module import PretrainModule
from pretrain.trainer.parallel import Hardware
from pretrain.trainer.run import Run as Run
from pretrain.trainer.run_folder import RunFolder
from pretrain.trainer.state import RunState
from pretrain.trainer.strategy import quieten, trainer_arguments
from pretrain.trainer.team import Team, code_version
from pretrain.view.color import Prepare

log = logging.getLogger(__name__)

_IDENTITY = ("seed", "global_batch_size", "encoder", "objective")
_LENGTH = ("epochs", "warmup_epochs", "max_steps", "max_minutes")
_SETTINGS = ("base_lr", *_LENGTH, "clip_grad_norm", "clip_grad_by", "optim", "schedule")


def run_of(cfg: DictConfig) -> Run:
    """Everything that a run needs, from a configuration that `config.check` found nothing wrong with.

    Raises:
        UserError: the data, or the folder, are not what such a run needs.
    """
    hardware: Hardware = instantiate(cfg.trainer)
    objective = objective_of(cfg)  # before an index of the shards is made, which may take long
    data: ShardData = instantiate(cfg.data)  # all ranks index together, before any of them waits for the others
    sizes = plan(cfg, data.num_samples, hardware.world_size, data.training.shares)
    team = hardware.join()
    detector = FailureDetector(team)
    folder = _agreed_folder(cfg, hardware, data, team)

    state = RunState()
    hardware.materialise(objective, cfg.seed)
    saved = team.together(lambda: resume.restore(folder.checkpoint, objective, state))
    if "bad_samples" in saved and team.leads:
        data.bad.restore(saved["bad_samples"])
    clock = _clock(state, sizes)
    if not clock.end:
        folder.record(OmegaConf.to_yaml(OmegaConf.create(_shown(cfg))))
    module = PretrainModule(
        objective=objective,
        prepare=Prepare(objective.views),
        clock=clock,
        optimizer=instantiate(cfg.optim),
        schedules=_schedules(cfg, sizes),
        accumulation=sizes.accumulation,
        incidents=_incidents(cfg, hardware, sizes, folder, objective, team),
        clip_grad_norm=cfg.clip_grad_norm,
        clip_grad_by=cfg.clip_grad_by,
        optimizer_state=saved.get("optimizer"),
        ranks=team.size,
        dtype=torch.float64 if hardware.precision == "64-true" else torch.float32,
    )
    if hardware.compile:
        _compile(objective)
    snapshot = partial(resume.snapshot, module, data, folder, team)
    save: Save = instantiate(cfg.checkpoint)(folder=folder.checkpoints, state=state, team=team, snapshot=snapshot)
    stop = Stop(clock, count_first_step=not hardware.compile, team=team, is_due=save.is_due)
    context = context_of(_shown(cfg), sizes, folder, state, data, module, team)
    trainer = _trainer(cfg, hardware, sizes, objective, context, stop, save)
    _introduce(cfg, hardware, sizes, objective)
    batches = data.batches(cfg.seed, state.samples_seen, sizes.micro_batch, objective.views, team.rank, team.size)
    return Run(folder, state, clock, stop, module, trainer, Feed(batches, state), data, team, detector)


def _agreed_folder(cfg: DictConfig, hardware: Hardware, data: ShardData, team: Team) -> RunFolder:
    """The run's folder, once it is clear that all ranks are of one run, and that its optimizer can be made."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    facts = {"the code": code_version(), "the configuration": plain, "the precision": hardware.precision}
    team.agree(secret.recorded(facts | {"the shards": data.identity()}))
    identity = secret.recorded({key: plain[key] for key in _IDENTITY} | {"data": data.identity()})
    settings = secret.recorded({key: plain[key] for key in _SETTINGS} | {"precision": hardware.precision})
    _refuse_optimizer(cfg)
    return RunFolder(Path(cfg.output_dir), identity, settings, cfg.resume, cfg.trust_checkpoint, team)


def _refuse_optimizer(cfg: DictConfig) -> None:
    """Lets the optimizer's own constructor judge its arguments, before anything is written."""
    try:
        instantiate(cfg.optim)([torch.nn.Parameter(torch.zeros(1, 1))])
    except (ValueError, TypeError, IndexError, RuntimeError) as failure:
        raise UserError(f"optim: {failure}") from None


def _clock(state: RunState, sizes: Plan) -> Clock:
    return Clock(
        state,
        total_steps=sizes.total_steps,
        epochs=sizes.epochs,
        samples_per_step=sizes.global_batch_size,
        max_seconds=sizes.max_seconds,
        stop_after_steps=sizes.stop_after_steps,
    )


def _schedules(cfg: DictConfig, sizes: Plan) -> dict[str, Any]:
    """By the name of the value; those that leave open their peak and their warm-up are given the learning rate's."""
    made = {name: instantiate(node) for name, node in cfg.schedule.items()}
    whole = {"peak": sizes.lr, "warmup": sizes.warmup}
    return {name: one(**whole) if isinstance(one, partial) else one for name, one in made.items()}


def _incidents(
    cfg: DictConfig, hardware: Hardware, sizes: Plan, folder: RunFolder, objective: Objective, team: Team
) -> Incidents:
    """What keeps a step that is not finite, so that it can be made again."""
    origin = Origin(folder.run_id, cfg.seed, hardware.precision, hardware.device.type, sizes.micro_batch)
    whole = partial(weights.gathered, objective, team.leads)
    return Incidents(folder.path / "incidents", origin, whole, cfg.max_skipped_steps, team=team)


def _compile(objective: Objective) -> None:
    # blocks of all sizes share one limit, and so do training and evaluation
    torch._dynamo.config.recompile_limit = 64
    for unit in objective.fsdp_units():
        unit.compile()


def _trainer(
    cfg: DictConfig,
    hardware: Hardware,
    sizes: Plan,
    objective: Objective,
    context: Context,
    stop: Stop,
    save: Save,
) -> Trainer:
    """Lightning's, with all that it would do by itself turned off."""
    made = [instantiate(node) for node in cfg.callbacks.values() if node]
    callbacks = [one(context) if isinstance(one, partial) else one for one in made]  # Lightning's own know no context
    trainer = Trainer(
        **trainer_arguments(hardware, objective),
        callbacks=adapted([stop, *callbacks, save], context.state),
        max_epochs=-1,
        accumulate_grad_batches=sizes.accumulation,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=context.folder,
    )
    quieten(trainer)
    return trainer


def _introduce(cfg: DictConfig, hardware: Hardware, sizes: Plan, objective: Objective) -> None:
    """Says in the log what will run, and what is doubtful about it."""
    log.info(
        "%s\nattention %s, precision %s", sizes, kernel_for(hardware.device.type, hardware.dtype), hardware.precision
    )
    steps = None if sizes.max_minutes is not None else sizes.total_steps
    advice = objective.advice(sizes.num_samples, sizes.global_batch_size, steps, cfg.epochs)
    for note in (*objective.trained_encoder.notes, *advice):
        log.warning("%s", note)


def _shown(cfg: DictConfig) -> dict[str, Any]:
    """The configuration, resolved, as it may be written down: without secrets."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return secret.recorded(plain)

"""A whole run of DINO against the same run written out by hand, as the paper and the official code have it.

What is shared are the networks, whose outputs golden files vouch for, and the prepared views. Loss, clipping, frozen
prototypes, parameter groups, schedules, the order of optimizer, teacher and centre are all done again, in plain loops.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.assemble import materialise, objective_of
from pretrain.config.overrides import composed
from pretrain.objective import dino
from pretrain.records import Batch
from pretrain.trainer import checkpoint
from pretrain.trainer.module import PretrainModule
from tests.job import DINO, Job

EPOCHS, PER_EPOCH, BATCH = 4, 5, 8  # 41 samples
SETTINGS = [
    *(word for word in DINO if not word.startswith("encoder.drop_path")),
    "encoder.drop_path=0",
    "max_steps=null",
    f"epochs={EPOCHS}",
    f"global_batch_size={BATCH}",
    "warmup_epochs=1",
    "base_lr=0.03",
    "clip_grad_norm=0.3",
    "clip_grad_by=parameter",
    "objective.warmup_teacher_temp_epochs=3",
    "objective.teacher_temp=0.07",
    "objective.momentum_teacher=0.9",
    "objective.freeze_last_layer=1",
]


def cosine(start: float, end: float, steps: int) -> np.ndarray[Any, Any]:
    return end + 0.5 * (start - end) * (1 + np.cos(np.pi * np.arange(steps) / steps))


def by_hand(objective: dino.DINO, batches: list[Batch], base_lr: float, norm_last_layer: bool) -> dict[str, Tensor]:
    """The state after training on these batches."""
    total = EPOCHS * PER_EPOCH
    lr = base_lr * BATCH / 256
    lrs = np.concatenate([np.linspace(0, lr, PER_EPOCH), cosine(lr, 1e-6, total - PER_EPOCH)])
    decays, momenta = cosine(0.04, 0.4, total), cosine(0.9, 1.0, total)
    temperatures = np.concatenate([np.linspace(0.04, 0.07, 3), np.full(EPOCHS - 3, 0.07)])
    student, teacher = copy.deepcopy(objective.student), copy.deepcopy(objective.student)
    center = torch.zeros(objective.student.head.prototypes)
    trained = {name: one for name, one in student.named_parameters() if one.requires_grad}
    assert any(name.endswith("weight_g") for name in trained) != norm_last_layer
    plain = [one for name, one in trained.items() if name.endswith(".bias") or one.ndim == 1]
    decayed = [one for name, one in trained.items() if not (name.endswith(".bias") or one.ndim == 1)]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], foreach=False)
    for step, batch in enumerate(batches):
        epoch = step // PER_EPOCH
        for group in optimizer.param_groups:
            group["lr"] = lrs[step]
        optimizer.param_groups[0]["weight_decay"] = decays[step]
        views = [view for kind in batch.views for view in kind]
        with torch.no_grad():
            taught = [teacher([view])[1] for view in views[:2]]
        said = [student([view])[1] for view in views]
        loss, terms = torch.zeros(()), 0
        for g, answer in enumerate(taught):
            q = ((answer - center) / temperatures[epoch]).softmax(-1)
            for v, logits in enumerate(said):
                if v != g:
                    loss = loss - (q * (logits / 0.1).log_softmax(-1)).sum(-1).mean()
                    terms += 1
        optimizer.zero_grad()
        (loss / terms).backward()
        for name, one in trained.items():
            assert one.grad is not None
            one.grad.mul_(min(1.0, 0.3 / (one.grad.norm().item() + 1e-6)))
            if epoch < 1 and "last_layer" in name:
                one.grad = None
        optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                ours.mul_(momenta[step]).add_((1 - momenta[step]) * theirs)
        center = 0.9 * center + 0.1 * torch.cat(taught).mean(0)
    state = {f"student.{name}": value for name, value in student.state_dict().items()}
    return state | {f"teacher.{name}": value for name, value in teacher.state_dict().items()} | {"center": center}


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_a_run_is_what_it_is_by_hand(job: Job, monkeypatch: pytest.MonkeyPatch, norm_last_layer: bool) -> None:
    """float32 on both sides, sums in other orders: 1e-4 of the greatest after twenty steps. Biases of keys, whose
    gradient is nothing but rounding, which Adam enlarges, may differ by 2e-5, a fiftieth of one step."""
    batches: list[Batch] = []
    training_step = PretrainModule.training_step

    def recorded(self: PretrainModule, batch: Batch, batch_idx: int) -> Tensor:
        batches.append(batch)
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(PretrainModule, "training_step", recorded)
    words = [*SETTINGS, f"objective.head.norm_last_layer={str(norm_last_layer).lower()}"]
    job.run(*words)
    assert len(batches) == EPOCHS * PER_EPOCH
    cfg = composed(job.overrides(*words))
    objective = materialise(objective_of(cfg), cfg.seed)
    assert isinstance(objective, dino.DINO)
    first = {name: value.clone() for name, value in objective.state_dict().items()}
    expected = by_hand(objective.train(), batches, cfg.base_lr, norm_last_layer)
    newest = checkpoint.newest(job.out / "checkpoints")
    assert newest is not None
    ours = checkpoint.load(newest)["objective"]
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert (ours[name] - value).abs().max() <= max(2e-5, 1e-4 * value.abs().max()), name
    assert not torch.equal(ours["teacher.encoder.cls_token"], first["teacher.encoder.cls_token"])

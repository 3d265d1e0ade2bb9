"""DINO (Caron et al., "Emerging properties in self-supervised vision transformers", arXiv 2104.14294).

A student matches, from any view of an image, what a teacher makes of another, larger view. The teacher is the moving
average of the student; its outputs are centred and sharpened, so that neither kind of collapse pays. Ours equals the
official code in loss, gradient, centre and schedules, and differs in what it promises around them: centre and teacher
move once per optimizer step, from the mean over the whole global batch, and every micro-batch sees the centre from
before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.encoder.encoder import Encoder
from pretrain.objective import dino_health
from pretrain.objective.dino_head import DINOHead
from pretrain.objective.distillation import distillation_loss, entropy, moved_center, teacher_probabilities
from pretrain.objective.ema import follow, teacher_of
from pretrain.objective.health import effective_rank, feature_std
from pretrain.objective.objective import Objective
from pretrain.objective.picture import colours, components
from pretrain.optim.schedule import WarmupCosine
from pretrain.precision import wide
from pretrain.records import Batch, Problem, Progress, Randomness, StepOutput, Tokens, refuse
from pretrain.view.spec import ViewSpec

_PART = 32  # samples whose health is looked at together
_VIEW = 2**48  # apart lie the numbers of two views of a sample, see `Randomness`


class Network(nn.Module):
    """An encoder with its head: views in, one number a prototype out."""

    def __init__(self, encoder: Encoder, head: DINOHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(
        self, views: Sequence[Tensor], randomness: Sequence[Randomness] | None = None, train_prototypes: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Vectors [N, D] and outputs [N, K] of several sets of views [N_i, C, H_i, W_i], one after the other."""
        vectors = torch.cat([_vector(tokens) for tokens in self.encoder.forward_views(views, randomness)])
        return vectors, self.head(vectors, train_prototypes)


class DINO(Objective):
    """Self-distillation with any encoder: the class token, or the mean of the patches, goes to the head.

    Args:
        encoder: the student's; the teacher's is its moving average.
        head: makes the head, given `in_dim`.
        global_view: the views that the teacher sees, too.
        local_view: those that the student alone sees; None is no multi-crop.
        student_temp: of the student's softmax.
        teacher_temp: of the teacher's softmax, after its warm-up.
        warmup_teacher_temp: at the start of its warm-up.
        warmup_teacher_temp_epochs: how long it is, in epochs of the schedule; the temperature moves from epoch
            to epoch, as in the original, not from step to step.
        center_momentum: how much of the centre a step keeps; 1 is no centring.
        momentum_teacher: how much of the teacher the first step keeps.
        final_momentum_teacher: and the last; in between it rises by half a cosine.
        freeze_last_layer: epochs at the start in which the prototypes stay as they are.

    Raises:
        ValueError: an argument is out of range, or a view cannot be cut into the encoder's mask units.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: Callable[..., DINOHead],
        global_view: ViewSpec,
        local_view: ViewSpec | None = None,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        warmup_teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 0,
        center_momentum: float = 0.9,
        momentum_teacher: float = 0.996,
        final_momentum_teacher: float = 1.0,
        freeze_last_layer: int = 1,
    ) -> None:
        super().__init__()
        temperatures = (student_temp, teacher_temp, warmup_teacher_temp)
        epochs = (warmup_teacher_temp_epochs, freeze_last_layer)
        momenta = (center_momentum, momentum_teacher, final_momentum_teacher)
        refuse(self, self.problems(*temperatures, *epochs, *momenta))
        self.views = (global_view,) if local_view is None else (global_view, local_view)
        _refuse_views(encoder, self.views)
        self.pool = "cls" if encoder.has_cls else "mean"
        self.student = Network(encoder, head(in_dim=encoder.embed_dim))
        self.teacher = teacher_of(self.student)
        self.student_temp = student_temp
        self.teacher_temperatures = (warmup_teacher_temp, teacher_temp)
        self.warmup_epochs = warmup_teacher_temp_epochs
        self.center_momentum = center_momentum
        self.momentum_teacher = WarmupCosine(momentum_teacher, 0.0, final=final_momentum_teacher, peak_twice=True)
        self.freeze_last_layer = freeze_last_layer
        self.rests = freeze_last_layer > 0  # the prototypes do
        prototypes = self.student.head.prototypes
        self.register_buffer("center", torch.zeros(prototypes))
        # of the step under way: the sum of the teacher's outputs, and how many they were
        self.register_buffer("outputs", torch.zeros(prototypes), persistent=False)
        self.register_buffer("count", torch.zeros(()), persistent=False)
        self.center: Tensor
        self.outputs: Tensor
        self.count: Tensor

    @staticmethod
    def problems(
        student_temp: float,
        teacher_temp: float,
        warmup_teacher_temp: float,
        warmup_teacher_temp_epochs: int,
        freeze_last_layer: int,
        center_momentum: float,
        momentum_teacher: float,
        final_momentum_teacher: float,
        **_: object,
    ) -> Iterator[Problem]:
        positive = {
            "student_temp": student_temp,
            "teacher_temp": teacher_temp,
            "warmup_teacher_temp": warmup_teacher_temp,
        }
        epochs = {
            "warmup_teacher_temp_epochs": warmup_teacher_temp_epochs,
            "freeze_last_layer": freeze_last_layer,
        }
        shares = {
            "center_momentum": center_momentum,
            "momentum_teacher": momentum_teacher,
            "final_momentum_teacher": final_momentum_teacher,
        }
        yield from ((name, "must be positive") for name, value in positive.items() if value <= 0)
        yield from ((name, "must be at least 0") for name, value in epochs.items() if value < 0)
        yield from ((name, "must be between 0 and 1") for name, value in shares.items() if not 0 <= value <= 1)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        views, keys = _flattened(batch)
        teacher = self.teacher_outputs(batch)
        if self.training:
            self.outputs += teacher.sum(dim=(0, 1))
            self.count += teacher.shape[0] * teacher.shape[1]
        frozen = progress.epoch < self.freeze_last_layer
        _, student = self.student(views, keys, train_prototypes=not frozen)
        probabilities = teacher_probabilities(teacher, self.center, self.teacher_temp(progress))
        return StepOutput(distillation_loss(student.unflatten(0, (-1, len(batch))), probabilities, self.student_temp))

    @torch.no_grad()
    def teacher_outputs(self, batch: Batch) -> Tensor:
        """The teacher's outputs of the global views, before centring: [V, B, K] float32."""
        _, outputs = self.teacher([batch.views[0].flatten(0, 1)])
        return wide(outputs).unflatten(0, batch.views[0].shape[:2])

    def teacher_temp(self, progress: Progress) -> float:
        """Of the epoch: a straight line through the warm-up's epochs, its last one included."""
        start, end = self.teacher_temperatures
        if progress.epoch >= self.warmup_epochs:
            return end
        return start + (end - start) * progress.epoch / max(1, self.warmup_epochs - 1)

    @torch.no_grad()
    def after_step(self, progress: Progress, skipped: Tensor) -> None:
        if dist.is_initialized():
            dist.all_reduce(self.outputs)
            dist.all_reduce(self.count)
        moved = moved_center(self.center, self.outputs / self.count, self.center_momentum)
        self.center.copy_(torch.where(skipped, self.center, moved))
        self.outputs.zero_()
        self.count.zero_()
        follow(self.teacher, self.student, self.momentum_teacher(progress), skipped)

    @torch.no_grad()
    def health(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """See `dino_health` for what they mean. A few samples go through the networks at a time."""
        temperature, starts = self.teacher_temp(progress), range(0, len(batch), _PART)
        parts = [self._part_of_health(batch.part(start, start + _PART), temperature) for start in starts]
        vectors, shares, entropies, losses = (torch.cat(values) for values in zip(*parts, strict=True))
        return {
            "teacher_entropy": entropies.mean(),
            "teacher_entropy_of_mean": entropy(shares.sum(dim=0) / len(batch)),
            "kl": losses.sum() / len(batch) - entropies.mean(),
            "center_norm": self.center.norm(),
            "feature_std": feature_std(vectors),
            "effective_rank": effective_rank(vectors),
        }

    def _part_of_health(self, batch: Batch, temperature: float) -> tuple[Tensor, ...]:
        """The teacher's vectors, the sum of its probabilities over samples, their entropies, and the sum of losses."""
        views, _ = _flattened(batch)
        vectors, outputs = self.teacher(views[:1])
        _, student = self.student(views)
        probabilities = teacher_probabilities(outputs.unflatten(0, (-1, len(batch))), self.center, temperature)
        loss = distillation_loss(student.unflatten(0, (-1, len(batch))), probabilities, self.student_temp)
        shares = probabilities.mean(dim=0).sum(dim=0)
        return vectors.float(), shares[None], entropy(probabilities).flatten(), (loss * len(batch))[None]

    def alarms(self, health: Mapping[str, float]) -> Iterator[str]:
        return dino_health.alarms(health, len(self.center))

    def advice(self, images: int, batch: int, steps: int | None, epochs: int) -> Iterator[str]:
        yield from dino_health.never_reached(epochs, self.freeze_last_layer, self.warmup_epochs)
        start, end = self.teacher_temperatures
        temperatures = dino_health.Temperatures(self.student_temp, end, start, self.warmup_epochs)
        momentum, run = self.momentum_teacher.peak, dino_health.Run(images, batch, steps)
        yield from dino_health.advice(run, len(self.center), momentum, temperatures, self.views)

    @torch.no_grad()
    def illustrate(self, batch: Batch) -> dict[str, Tensor]:
        """A row a sample: its global views, each beside the main directions of the teacher's tokens, and local ones."""
        first = batch.views[0]
        height, width = first.shape[-2:]
        columns = []
        for view in first:
            tokens = self.teacher.encoder(view)
            shades = components(tokens.patches, tokens.grid).float()
            columns += [colours(view, self.views[0]), _enlarged(shades, height, width)]
        for spec, views in zip(self.views[1:], batch.views[1:], strict=True):
            columns += [_enlarged(colours(view, spec).float(), height, width) for view in views]
        return {"views": torch.cat(columns, dim=-1).permute(1, 0, 2, 3).flatten(1, 2)}

    def train(self, mode: bool = True) -> DINO:
        """The teacher never drops anything: it stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @property
    def encoder_for_export(self) -> Encoder:
        return self.teacher.encoder

    @property
    def trained_encoder(self) -> Encoder:
        return self.student.encoder

    def fsdp_units(self) -> list[nn.Module]:
        networks = (self.student, self.teacher)
        return [unit for one in networks for unit in (*one.encoder.fsdp_units(), one.head.mlp)]

    def no_decay(self) -> set[str]:
        return {f"student.encoder.{name}" for name in self.student.encoder.no_decay()}

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        self.student.encoder.init_weights(seed)
        self.student.head.init_weights(seed)
        self.teacher.load_state_dict(self.student.state_dict())
        for buffer in (self.center, self.outputs, self.count):
            buffer.zero_()


def _vector(tokens: Tokens) -> Tensor:
    """[N, D]: the class token, or the mean of the patches where there is none."""
    return tokens.patches.mean(dim=1) if tokens.cls is None else tokens.cls


def _flattened(batch: Batch) -> tuple[list[Tensor], list[Randomness]]:
    """Views [V, B, C, H, W] of each kind as [V·B, C, H, W], and what their rows' random decisions are keyed by."""
    views, keys, before = [], [], 0
    for view in batch.views:
        numbers = torch.arange(before, before + len(view), device=batch.g.device)[:, None] * _VIEW + batch.g
        views.append(view.flatten(0, 1))
        keys.append(Randomness(batch.seed, numbers.flatten()))
        before += len(view)
    return views, keys


def _refuse_views(encoder: Encoder, views: Sequence[ViewSpec]) -> None:
    lines, unit = [], encoder.mask_unit
    for name, view in zip(("global_view", "local_view"), views, strict=False):
        height, width = view.height_width
        if height % unit or width % unit:
            near = " or ".join(str(size) for size in (height // unit * unit, (height // unit + 1) * unit) if size)
            lines.append(
                f"objective.{name}.size: a view of {height}×{width} pixels cannot be cut into mask units of {unit}; "
                f"sides must be multiples of it, such as {near}"
            )
        if encoder.in_chans != view.channels:
            lines.append(
                f"objective.{name}.mean: {view.channels} channels, but encoder.in_chans={encoder.in_chans}; give mean "
                f"and std {encoder.in_chans} values each, or the encoder as many channels"
            )
        if (view.pixels, view.full_scale) != (views[0].pixels, views[0].full_scale):
            lines.append(
                f"objective.{name}.pixels={view.pixels} with full_scale={view.full_scale:g}: all views of a sample "
                f"are of the same numbers, and global_view's are {views[0].pixels} with {views[0].full_scale:g}"
            )
    if sum(view.count for view in views) < 2:
        lines.append(
            "objective.global_view.count=1 and no local views: there is nothing to match; give global_view.count=2"
        )
    if lines:
        raise ValueError("; ".join(lines))


def _enlarged(images: Tensor, height: int, width: int) -> Tensor:
    """[B, 3, h, w] float as [B, 3, height, width] uint8, pixel by pixel."""
    return nn.functional.interpolate(images, size=(height, width), mode="nearest").to(torch.uint8)

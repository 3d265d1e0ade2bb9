"""What a run will do, in numbers, before it does it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from pretrain.count import operations
from pretrain.records import Batch, Progress, Randomness, SourceShare, Tokens, UserError


@dataclass(frozen=True)
class Plan:
    """The sizes of a run. `epoch` means the schedule's: the steps that a data set's samples fill."""

    global_batch_size: int
    devices: int
    micro_batch: int
    accumulation: int
    base_lr: float
    lr: float
    num_samples: int
    steps_per_epoch: int
    epochs: int
    total_steps: int
    warmup: float  # share of the run
    max_minutes: float | None
    stop_after_steps: int | None
    sources: Mapping[str, SourceShare] = field(default_factory=dict)  # of a mixture, by name

    @property
    def max_seconds(self) -> float | None:
        """Of training, None where the number of steps decides."""
        return None if self.max_minutes is None else 60 * self.max_minutes

    def __str__(self) -> str:
        steps = (
            f"{self.total_steps:,} steps ({self.total_steps * self.global_batch_size / self.num_samples:,.1f} epochs)"
        )
        if self.max_minutes is not None:
            steps = (
                f"max_minutes={self.max_minutes:g} of training: not bit-reproducible, the clock decides the schedule"
            )
        if self.stop_after_steps is not None:
            steps += f", cut after {self.stop_after_steps:,}"
        mixture = "".join(f"\n{self._source(name, one)}" for name, one in self.sources.items())
        return (
            f"global batch {self.global_batch_size} = {self.devices} device{'s' * (self.devices > 1)} × "
            f"{self.micro_batch} samples × {self.accumulation} accumulated\n"
            f"lr {self.lr:g} (base_lr {self.base_lr:g} per 256), warm-up {self.warmup:.1%} of the run\n"
            f"{self.num_samples:,} samples an epoch, {self.steps_per_epoch:,} steps an epoch, {steps}{mixture}"
        )

    def _source(self, name: str, source: SourceShare) -> str:
        line = f"{name}: {source.share:.4g} of all samples"
        if source.num_samples is None or self.max_minutes is not None:
            return line
        times = self.total_steps * self.global_batch_size * source.share / source.num_samples
        return f"{line}, each of its {source.num_samples:,} seen {times:,.1f} times"


def plan(cfg: DictConfig, num_samples: int, devices: int, sources: Mapping[str, SourceShare] | None = None) -> Plan:
    """The plan of a configuration on data of so many samples, of a mixture of `sources`, and on so many devices.

    An epoch of the schedule has ⌊samples / global batch⌋ steps, as in the original recipes, which drop the last,
    incomplete batch; our stream drops nothing, it goes on into the next epoch. Of a mixture an epoch is as many samples
    as all sources have together, whatever their weights.

    Raises:
        UserError: there are not enough samples for one batch, or the batch cannot be split over the devices.
    """
    batch = cfg.global_batch_size
    if batch % devices:
        below, above = batch - batch % devices, batch + devices - batch % devices
        raise UserError(f"global_batch_size={batch}: cannot be split over {devices} devices; {below} or {above} could")
    if lines := too_few(batch, num_samples):
        raise UserError("\n".join(lines))
    micro, accumulation = micro_batches(batch // devices, cfg.max_micro_batch_size)
    per_epoch = num_samples // batch
    return Plan(
        global_batch_size=batch,
        devices=devices,
        micro_batch=micro,
        accumulation=accumulation,
        base_lr=cfg.base_lr,
        lr=cfg.base_lr * batch / 256,
        num_samples=num_samples,
        steps_per_epoch=per_epoch,
        epochs=cfg.epochs,
        total_steps=cfg.max_steps or cfg.epochs * per_epoch,
        warmup=cfg.warmup_epochs / cfg.epochs,
        max_minutes=cfg.max_minutes,
        stop_after_steps=cfg.stop_after_steps,
        sources=sources or {},
    )


def micro_batches(share: int, largest: int) -> tuple[int, int]:
    """(samples of a micro-batch, how many micro-batches) of a device's share of a batch: the largest within a bound."""
    micro = max(size for size in range(1, min(share, largest) + 1) if share % size == 0)
    return micro, share // micro


def too_few(global_batch_size: int, num_samples: int) -> list[str]:
    """What is wrong with so few samples, nothing if there are enough for one batch."""
    if num_samples >= global_batch_size:
        return []
    return [
        f"global_batch_size={global_batch_size}: there are only {num_samples} images, not enough for one batch; "
        "give more shards or a smaller global_batch_size"
    ]


@dataclass(frozen=True)
class Cost:
    """What a model costs: trained parameters, of the encoder and of all, and operations an image, forward and back."""

    encoder_parameters: int
    parameters: int
    flops: int

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:,.1f} M parameters, {self.encoder_parameters / 1e6:,.1f} M in the encoder\n"
            f"{self.flops / 1e9:,.1f} GFLOP an image, forward and backward (two a multiply-add)"
        )


def cost(objective: nn.Module, encoder: nn.Module, batch: Batch) -> Cost:
    """Counts on the meta device: nothing is computed.

    Args:
        objective: without weights.
        encoder: the one that it exports.
        batch: prepared views of one sample, on the meta device.
    """
    sizes = [sum(one.numel() for one in module.parameters() if one.requires_grad) for module in (encoder, objective)]
    flops = operations(lambda: objective(batch, Progress(0, 1, 1)).loss)
    return Cost(encoder_parameters=sizes[0], parameters=sizes[1], flops=flops)


def empty_batch(views: Iterable[tuple[int, int, int, int]]) -> Batch:
    """A batch of one sample on the meta device, given how many views of each kind, their channels, height and width."""
    number = torch.empty(1, dtype=torch.int64, device="meta")
    tensors = tuple(torch.empty(count, 1, *shape, device="meta") for count, *shape in views)
    return Batch(tensors, number, number, [""], 0)


@dataclass(frozen=True)
class Masking:
    """What an encoder costs that looks at a part of an image: operations an image, forward and back.

    `unmasked` when it looks at the whole image, `masked` when at the `visible` share of its mask units alone;
    `embedding` is what the first tokens of the whole image cost, before any block.
    """

    unmasked: int
    masked: int
    embedding: int
    visible: float

    @property
    def embedded_whole(self) -> int:
        """The cost of making the first tokens of the whole image and dropping the hidden ones afterwards."""
        return self.masked + round((1 - self.visible) * self.embedding)


def masking(encoder: nn.Module, batch: Batch, visible_ids: Tensor, masked_ids: Tensor) -> Masking:
    """Counts on the meta device: nothing is computed.

    Args:
        encoder: without weights; its first tokens are made by its `patch_embed`.
        batch: one prepared view of one sample, on the meta device.
        visible_ids, masked_ids: [1, K] and [1, M], the units to show and to hide.
    """
    images, randomness = batch.views[0][0], Randomness(batch.seed, batch.g)

    def output(ids: Tensor | None) -> Tensor:
        tokens: Tokens = encoder(images, ids, randomness)
        return tokens.joined()

    embed, visible = encoder.get_submodule("patch_embed"), visible_ids.shape[1]
    return Masking(
        unmasked=operations(lambda: output(None)),
        masked=operations(lambda: output(visible_ids)),
        embedding=operations(lambda: embed(images)),
        visible=visible / (visible + masked_ids.shape[1]),
    )

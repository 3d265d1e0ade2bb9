"""Linear probe in the protocol of the MAE paper (He et al., arXiv 2111.06377, appendix A.1, table 10).

A linear classifier on batch-normalised features of augmented images, by LARS: base lr 0.1, no weight decay, 10
epochs of warm-up, then a cosine to 0. As in the official code the normalisation has no learned scale and sees 512
samples at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.optim.lars import LARS
from pretrain.optim.schedule import WarmupCosine
from pretrain.records import Progress

NORM_SAMPLES = 512


class Head(nn.Module):
    """Batch norm without affine (ε 1e-6), then a linear layer whose weights begin with σ 0.01."""

    def __init__(self, dim: int, classes: int, seed: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features))


def fit(
    head: Head,
    batches: Iterable[tuple[Tensor, Tensor]],
    batch_size: int,
    steps_per_epoch: int,
    epochs: int = 90,
    warmup_epochs: int = 10,
    base_lr: float = 0.1,
) -> Iterator[float]:
    """Trains the head; yields the loss of each step.

    Args:
        head: what is trained.
        batches: features [b, D] and labels [b] of augmented samples, without end; b divides `batch_size`.
        batch_size: samples of a step.
        steps_per_epoch, epochs, warmup_epochs: the schedule.
        base_lr: per 256 samples.
    """
    optimizer = LARS(head.parameters())
    schedule = WarmupCosine(peak=base_lr * batch_size / 256, warmup=warmup_epochs / epochs)
    stream = iter(batches)
    total = epochs * steps_per_epoch
    for step in range(total):
        seen, total_loss = 0, 0.0
        while seen < batch_size:
            features, labels = next(stream)
            loss = F.cross_entropy(head(features), labels) * len(labels) / batch_size
            loss.backward()
            seen += len(labels)
            total_loss += loss.item()
        for group in optimizer.param_groups:
            group["lr"] = schedule(Progress(step, total, epochs))
        optimizer.step()
        optimizer.zero_grad()
        yield total_loss


@torch.no_grad()
def accuracy(head: Head, features: Tensor, labels: Tensor) -> float:
    """The share of samples whose class the head names."""
    device = head.linear.weight.device
    predictions = head.eval()(features.to(device)).argmax(dim=1).cpu()
    return (predictions == labels).float().mean().item()

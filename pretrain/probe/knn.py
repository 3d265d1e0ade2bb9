"""k-nearest-neighbour classification of frozen features (Wu et al., arXiv 1805.01978, §3.4, as DINO evaluates)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 1024  # test samples compared with all training samples at once


def predict(train: Tensor, labels: Tensor, test: Tensor, k: int = 20, temperature: float = 0.07) -> Tensor:
    """The class with the greatest sum of exp(cosine similarity / temperature) among the k nearest.

    Args:
        train: features [N, D].
        labels: [N] int64.
        test: features [M, D].
        k: neighbours, at most N of them are used.

    Returns:
        [M] int64
    """
    classes = int(labels.max()) + 1
    train = F.normalize(train, dim=1)
    predictions = []
    for chunk in F.normalize(test, dim=1).split(_CHUNK):
        similarity, nearest = (chunk @ train.T).topk(min(k, len(train)), dim=1)  # [m, k]
        votes = torch.zeros(len(chunk), classes, dtype=similarity.dtype, device=similarity.device)
        votes.scatter_add_(1, labels[nearest], ((similarity - 1) / temperature).exp())
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """The share of predictions that are right."""
    return (predictions == labels).float().mean().item()

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
    classes, train = int(labels.max()) + 1, F.normalize(train, dim=1)
    chunks = F.normalize(test, dim=1).split(_CHUNK)
    return torch.cat([_vote(chunk @ train.T, labels, classes, min(k, len(train)), temperature) for chunk in chunks])


def leave_one_out(features: Tensor, labels: Tensor, k: int = 20, temperature: float = 0.07) -> Tensor:
    """The same for each sample among all others.

    Args:
        features: [N, D].
        labels: [N] int64.
        k: neighbours, at most N − 1 of them are used.

    Returns:
        [N] int64
    """
    classes, features = int(labels.max()) + 1, F.normalize(features, dim=1)
    predictions = []
    for start in range(0, len(features), _CHUNK):
        similarity = features[start : start + _CHUNK] @ features.T
        similarity.diagonal(start).fill_(-torch.inf)  # its own
        predictions.append(_vote(similarity, labels, classes, min(k, len(features) - 1), temperature))
    return torch.cat(predictions)


def _vote(similarity: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """The class [M] that the k most similar of N samples vote for: similarity [M, N], labels [N]."""
    similarity, nearest = similarity.topk(k, dim=1)  # [M, k]
    votes = torch.zeros(len(similarity), classes, dtype=similarity.dtype, device=similarity.device)
    votes.scatter_add_(1, labels[nearest], ((similarity - 1) / temperature).exp())
    return votes.argmax(dim=1)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """The share of predictions that are right."""
    return (predictions == labels).float().mean().item()

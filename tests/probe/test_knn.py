"""k-NN equals its definition and scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from pretrain.probe import knn


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 8, generator=generator)
    labels = torch.randint(0, 4, (300,), generator=generator)
    train = centres[labels] + torch.randn(300, 8, generator=generator)
    return train, labels, torch.randn(2000, 8, generator=generator)


def test_it_equals_its_definition(features: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    train, labels, test = features
    predictions = knn.predict(train, labels, test[:50], k=20, temperature=0.07)
    for row, prediction in zip(test[:50], predictions, strict=True):
        similarity = [
            (float(row @ other / row.norm() / other.norm()), int(label))
            for other, label in zip(train, labels, strict=True)
        ]
        votes = dict.fromkeys(range(4), 0.0)
        for value, label in sorted(similarity, reverse=True)[:20]:
            votes[label] += np.exp(value / 0.07)
        assert votes[int(prediction)] == pytest.approx(max(votes.values()), rel=1e-4)


def test_it_equals_scikit_learns(features: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    train, labels, test = features
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07))
    reference.fit(train.numpy(), labels.numpy())
    ours = knn.predict(train, labels, test).numpy()
    assert (ours == reference.predict(test.numpy())).mean() > 0.999  # ties apart


def test_few_neighbours_and_accuracy() -> None:
    train, labels = torch.eye(3), torch.tensor([2, 0, 1])
    predictions = knn.predict(train, labels, train, k=20, temperature=0.07)
    assert predictions.tolist() == [2, 0, 1]
    assert knn.accuracy(predictions, torch.tensor([2, 0, 0])) == pytest.approx(2 / 3)

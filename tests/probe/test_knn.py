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


@pytest.mark.parametrize("k", [1, 20, 5000])
def test_leave_one_out_equals_its_definition(
    features: tuple[torch.Tensor, torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    """Each sample is asked of all others, whatever the chunks."""
    train, labels, _ = features
    expected = []
    for left in range(len(train)):
        others = [i for i in range(len(train)) if i != left]
        expected.append(int(knn.predict(train[others], labels[others], train[left : left + 1], k)))
    for chunk in (1024, 77):
        monkeypatch.setattr(knn, "_CHUNK", chunk)
        assert knn.leave_one_out(train, labels, k).tolist() == expected
    assert expected != labels.tolist()


def test_leave_one_out_never_asks_the_sample_itself() -> None:
    """Two of each feature, with opposite labels: the nearest other is always wrong."""
    features, labels = torch.eye(6).repeat(2, 1), torch.tensor([0] * 6 + [1] * 6)
    assert knn.leave_one_out(features, labels, k=1).tolist() == [1] * 6 + [0] * 6

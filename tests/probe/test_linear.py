"""The closed solution: standardised features, a converged fit, the stated penalties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pretrain.probe import linear
from pretrain.records import UserError


def blobs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    features = torch.nn.functional.one_hot(labels, 6) * 2.0 + torch.randn(count, 6, generator=generator)
    return features * torch.tensor([1e-3, 1.0, 50.0, 1.0, 1.0, 1.0]) + 7, labels


def test_features_are_standardised_by_the_training_set() -> None:
    train, test = blobs(500, 0)[0], blobs(100, 1)[0]
    train[:, 5] = test[:, 5] = 3.0  # a constant feature
    x, y = linear.standardize(train, test)
    assert x[:, :5].mean(0).abs().max() < 1e-3
    assert (x[:, :5].std(0) - 1).abs().max() < 1e-3
    assert (x[:, 5] == 0).all()
    torch.testing.assert_close(y[:, 1], (test[:, 1] - train[:, 1].mean()) / train[:, 1].std())


def test_the_fit_is_at_the_optimum_of_the_penalised_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of ½‖W‖² + C · Σ cross-entropy vanishes at the coefficients of each model that is made."""
    models: list[Any] = []

    class Kept(linear.LogisticRegression):  # type: ignore[misc]
        def fit(self, *arguments: Any) -> Any:
            models.append(self)
            return super().fit(*arguments)

    monkeypatch.setattr(linear, "LogisticRegression", Kept)
    (train, labels), (test, test_labels) = blobs(400, 0), blobs(300, 1)
    result = linear.fit(train, labels, test, test_labels)
    assert list(result) == [0.001, 0.01, 0.1]
    assert all(0.7 < accuracy <= 1 for accuracy in result.values())
    x = linear.standardize(train, test)[0].double()
    for strength, model in zip(result, models, strict=True):
        weight = torch.tensor(model.coef_, requires_grad=True)
        bias = torch.tensor(model.intercept_, requires_grad=True)
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels, reduction="sum")
        (weight.square().sum() / 2 + strength * loss).backward()
        assert weight.grad is not None
        assert weight.grad.abs().max() < 1e-2 * strength * len(x)


def test_a_fit_that_does_not_converge_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_ITERATIONS", 1)
    (train, labels), (test, test_labels) = blobs(100, 0), blobs(100, 1)
    with pytest.raises(UserError, match=r"C=0\.001 does not converge"):
        linear.fit(train, labels, test, test_labels)


def test_shuffled_labels_give_chance() -> None:
    (train, labels), (test, test_labels) = blobs(400, 0), blobs(400, 1)
    labels = labels[torch.tensor(np.random.default_rng(0).permutation(400))]
    assert max(linear.fit(train, labels, test, test_labels).values()) < 0.5


def test_one_class_is_no_task() -> None:
    (train, _), (test, labels) = blobs(10, 0), blobs(10, 1)
    with pytest.raises(UserError, match="all training samples have label 3"):
        linear.fit(train, torch.full((10,), 3), test, labels)

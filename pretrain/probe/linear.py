"""Linear probe with a closed solution: logistic regression on standardised features, to convergence.

Nothing is tuned but the strength of the L2 penalty, from three values, best on the validation set: no learning rate, no
augmentation, no luck. The figures of `docs/results.md` use this protocol.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pretrain.records import UserError

STRENGTHS = (0.001, 0.01, 0.1)  # C: the inverse of the penalty's weight
_ITERATIONS = 20_000


def standardize(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets with the mean and standard deviation of the training set taken out, feature by feature."""
    mean, std = train.mean(dim=0), train.std(dim=0)
    std = std.where(std > 0, 1.0)
    return (train - mean) / std, (test - mean) / std


def fit(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, strengths: Sequence[float] = STRENGTHS
) -> dict[float, float]:
    """The accuracy on the test set for each C.

    Args:
        train, test: features [N, D] and [M, D].
        labels, test_labels: [N] and [M].

    Raises:
        UserError: the fit does not converge, or there is only one class.
    """
    if len(labels.unique()) < 2:
        raise UserError(f"all training samples have label {int(labels[0])}: a probe needs at least two classes")
    x, x_test = (features.double().numpy() for features in standardize(train, test))
    result = {}
    for strength in strengths:
        model = LogisticRegression(C=strength, max_iter=_ITERATIONS, tol=1e-4)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                model.fit(x, labels.numpy())
            except ConvergenceWarning:
                raise UserError(f"the logistic regression with C={strength} does not converge") from None
        result[strength] = float(model.score(x_test, test_labels.numpy()))
    return result

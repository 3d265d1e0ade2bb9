"""LARS, step by step, as its definition."""

from __future__ import annotations

import torch

from pretrain.optim.lars import LARS


def test_steps_equal_the_definition() -> None:
    torch.manual_seed(0)
    matrix, vector = torch.randn(3, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    w, v = matrix.detach().clone(), vector.detach().clone()
    m_w, m_v = torch.zeros_like(w), torch.zeros_like(v)
    optimizer = LARS([matrix, vector], lr=0.5, weight_decay=0.1, momentum=0.9, trust=0.001)
    for _ in range(4):
        matrix.grad, vector.grad = torch.randn(3, 4), torch.randn(3)
        optimizer.step()
        update = matrix.grad + 0.1 * w
        m_w = 0.9 * m_w + update * 0.001 * w.norm() / update.norm()
        m_v = 0.9 * m_v + vector.grad
        w, v = w - 0.5 * m_w, v - 0.5 * m_v
        torch.testing.assert_close(matrix.detach(), w)
        torch.testing.assert_close(vector.detach(), v)


def test_zero_weights_move() -> None:
    matrix = torch.zeros(2, 2, requires_grad=True)
    matrix.grad = torch.ones(2, 2)
    LARS([matrix], lr=1.0).step()
    assert (matrix == -1).all()

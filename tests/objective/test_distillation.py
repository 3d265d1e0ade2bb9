"""The loss of DINO: its definition in nested loops, and the original's five consecutive steps."""

from __future__ import annotations

import pytest
import torch

from pretrain.objective.distillation import distillation_loss, moved_center, teacher_probabilities
from tests.conftest import Golden, close


def by_loops(
    student: torch.Tensor, teacher: torch.Tensor, center: torch.Tensor, temperature: float, teacher_temp: float
) -> torch.Tensor:
    """Arrays [V, B, K] and [G, B, K]: the definition in the module's docstring, number by number, in float64."""
    total, pairs = 0.0, 0
    for g in range(len(teacher)):
        for v in range(len(student)):
            if v == g:
                continue
            for sample in range(student.shape[1]):
                q = torch.exp((teacher[g, sample].double() - center.double()) / teacher_temp)
                q = q / q.sum()
                p = torch.exp(student[v, sample].double() / temperature)
                total -= (q * torch.log(p / p.sum())).sum()
                pairs += 1
    return torch.as_tensor(total / pairs)


@pytest.mark.parametrize(("views", "globals_"), [(2, 2), (10, 2), (3, 1), (5, 3)])
def test_the_loss_is_its_definition(views: int, globals_: int) -> None:
    generator = torch.Generator().manual_seed(views)
    student, teacher = (torch.randn(n, 3, 7, generator=generator) for n in (views, globals_))
    center = torch.randn(7, generator=generator) * 0.1
    loss = distillation_loss(student, teacher_probabilities(teacher, center, 0.04), 0.1)
    expected = by_loops(student, teacher, center, 0.1, 0.04)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # float32 against float64


@pytest.mark.parametrize("golden", ["dino_loss"], indirect=True)
def test_golden_steps_in_a_row(golden: Golden) -> None:
    """Loss, gradient and centre; the centre is carried from step to step by our own rule."""
    config = golden.config
    center = torch.zeros(config["out_dim"])
    warmup, start, end = (
        config[name] for name in ("warmup_teacher_temp_epochs", "warmup_teacher_temp", "teacher_temp")
    )
    for step, epoch in enumerate(config["epochs_of_steps"]):
        expected = golden.state(f"step{step}.")
        temperature = start + (end - start) * epoch / (warmup - 1) if epoch < warmup else end
        student = expected["student"].clone().requires_grad_()
        views = student.unflatten(0, (config["ncrops"], config["batch"]))
        teacher = expected["teacher"].unflatten(0, (2, config["batch"]))
        assert close(center, expected["center_before"][0])
        loss = distillation_loss(views, teacher_probabilities(teacher, center, temperature), config["student_temp"])
        assert abs(loss.item() / expected["loss"].item() - 1) <= 1e-5
        (gradient,) = torch.autograd.grad(loss, student)
        assert close(gradient, expected["student_grad"])
        center = moved_center(center, teacher.flatten(0, 1).mean(dim=0), config["center_momentum"])
        assert close(center, expected["center_after"][0])

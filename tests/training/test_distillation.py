"""Distillation against its formula in float64."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepreduce.training import distillation_loss


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def by_formula(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, weight: float, T: float) -> float:
    hard = -np.log(softmax(student)[np.arange(len(labels)), labels]).mean()
    p, q = softmax(teacher / T), softmax(student / T)
    soft = (p * (np.log(p) - np.log(q))).sum(1).mean()
    return float((1 - weight) * hard + weight * T**2 * soft)


def test_example_a_student_that_answers_like_its_teacher_has_nothing_to_learn() -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0]])
    loss = distillation_loss(logits, logits, torch.tensor([0]), weight=1.0, temperature=4.0)
    assert abs(float(loss)) < 1e-6


@given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0.5, 20))
def test_the_loss_is_the_formula(seed: int, weight: float, T: float) -> None:
    random = np.random.default_rng(seed)
    student, teacher = random.normal(0, 3, (2, 6, 4))
    labels = random.integers(0, 4, 6)
    got = distillation_loss(
        torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(labels), weight=weight, temperature=T
    )
    np.testing.assert_allclose(float(got), by_formula(student, teacher, labels, weight, T), rtol=1e-9, atol=1e-9)


def test_its_gradient_is_right() -> None:
    torch.manual_seed(0)
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher, labels = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(
        lambda logits: distillation_loss(logits, teacher, labels, weight=0.7, temperature=3.0), student
    )


def test_at_a_high_temperature_the_gradient_matches_logits() -> None:
    """Hinton et al., section 2.1: for large T the gradient tends to (z - v) / classes, with both of mean zero."""
    student = torch.tensor([[1.0, -2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.5, 0.5, -1.0]], dtype=torch.float64)
    distillation_loss(student, teacher, torch.tensor([0]), weight=1.0, temperature=1e4).backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 3, rtol=1e-3, atol=1e-4)

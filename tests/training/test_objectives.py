import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ray_learngene.training.objectives import DistillationLoss

STUDENT, TEACHER, LABELS = torch.randn(6, 10), torch.randn(6, 10), torch.arange(6)


@given(st.floats(0.05, 0.95), st.floats(0.5, 8))
def test_soft_loss_is_the_formula(alpha: float, tau: float) -> None:
    p = F.softmax(TEACHER / tau, -1)
    kl = (p * (p.log() - F.log_softmax(STUDENT / tau, -1))).sum() / len(p)
    expected = (1 - alpha) * F.cross_entropy(STUDENT, LABELS) + alpha * tau**2 * kl
    torch.testing.assert_close(DistillationLoss("soft", alpha, tau)(STUDENT, TEACHER, LABELS)["loss"], expected)


def test_hard_loss_takes_the_teachers_decision() -> None:
    losses = DistillationLoss("hard", 0.5)(STUDENT, TEACHER, LABELS)
    expected = 0.5 * F.cross_entropy(STUDENT, TEACHER.argmax(-1)) + 0.5 * F.cross_entropy(STUDENT, LABELS)
    torch.testing.assert_close(losses["loss"], expected)


def test_a_perfect_student_has_no_distillation_loss() -> None:
    assert DistillationLoss()(TEACHER, TEACHER, None)["loss"].abs() < 1e-6


def test_with_alpha_one_labels_have_no_gradient_but_are_reported() -> None:
    student = STUDENT.clone().requires_grad_()
    losses = DistillationLoss(alpha=1.0)(student, TEACHER, LABELS)
    losses["loss"].backward()
    other = STUDENT.clone().requires_grad_()
    DistillationLoss(alpha=1.0)(other, TEACHER, None)["loss"].backward()
    assert torch.equal(student.grad, other.grad)
    assert set(losses) == {"loss", "distill_loss", "label_loss"}


def test_gradient_scale_is_kept_over_temperatures() -> None:
    # Hinton et al., §2.1: at high temperature τ² leaves (z_s - z_t) / (N·K) of centred logits, up to O(z² / τ)
    student = STUDENT.clone().requires_grad_()
    DistillationLoss(tau=300)(student, TEACHER, None)["loss"].backward()
    difference = (STUDENT - STUDENT.mean(-1, keepdim=True)) - (TEACHER - TEACHER.mean(-1, keepdim=True))
    torch.testing.assert_close(student.grad, difference / STUDENT.numel(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("alpha", "tau"), [(-0.1, 1), (1.1, 1), (0.5, 0)])
def test_impossible_weights_are_refused(alpha: float, tau: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        DistillationLoss("soft", alpha, tau)

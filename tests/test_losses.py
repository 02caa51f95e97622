"""Eq. 8 against a hand calculation in NumPy (float64).

Values, gradients, mixtures, missing teachers and annotations.
"""

import numpy as np
import pytest
import torch

from dymn.training.losses import (
    Targets,
    label_loss,
    loss_terms,
    mix,
    probabilities,
    targets_of,
    teacher_loss,
)

B, C = 5, 7
LAMBDA = 0.1


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def softmax(z):
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


def cross_entropy(p, t):
    """Of independent classes, entry by entry."""
    return -(t * np.log(p) + (1 - t) * np.log(1 - p))


@pytest.fixture
def case():
    """Student logits, labels, teacher logits: [B, C] float64."""
    rng = np.random.default_rng(0)
    return rng.normal(0, 2, (B, C)), (rng.random((B, C)) < 0.3).astype(float), rng.normal(0, 3, (B, C))


def distillation_loss(logits, made, *, label_weight, **settings):
    return loss_terms(logits, made, label_weight=label_weight, **settings).weighted(label_weight)


def targets(labels, teacher, *, mask=None, has_teacher=None, kind="bce") -> Targets:
    known = np.ones(len(labels), dtype=bool) if has_teacher is None else np.asarray(has_teacher)
    mask = np.ones_like(labels) if mask is None else mask
    made = targets_of(*(torch.from_numpy(values) for values in (labels, mask, teacher, known)), kind=kind)
    return made._replace(teacher_share=made.teacher_share.double())


def value_and_gradient(logits, made, **settings):
    z = torch.from_numpy(logits).requires_grad_()
    loss = distillation_loss(z, made, **settings)
    loss.backward()
    return float(loss.detach()), z.grad.numpy()


def test_equation_8(case):
    z, y, zt = case
    p, t = sigmoid(z), sigmoid(zt)
    value, gradient = value_and_gradient(z, targets(y, zt), label_weight=LAMBDA)
    assert value == pytest.approx(
        LAMBDA * cross_entropy(p, y).mean() + (1 - LAMBDA) * cross_entropy(p, t).mean(), rel=1e-12
    )
    np.testing.assert_allclose(gradient, (LAMBDA * (p - y) + (1 - LAMBDA) * (p - t)) / (B * C), rtol=1e-10)


def test_equation_8_for_exclusive_classes(case):
    z, _, zt = case
    y = np.eye(C)[[0, 3, 3, 6, 1]]
    p, t = softmax(z), softmax(zt)
    value, gradient = value_and_gradient(z, targets(y, zt, kind="ce"), label_weight=LAMBDA, kind="ce")
    by_hand = -(LAMBDA * y * np.log(p) + (1 - LAMBDA) * t * np.log(p)).sum(axis=1).mean()
    assert value == pytest.approx(by_hand, rel=1e-12)
    np.testing.assert_allclose(gradient, (LAMBDA * (p - y) + (1 - LAMBDA) * (p - t)) / B, rtol=1e-10)


@pytest.mark.parametrize(("weight", "part"), [(1.0, label_loss), (0.0, teacher_loss)])
def test_lambda_at_its_ends_leaves_one_part(case, weight, part):
    z, y, zt = case
    made = targets(y, zt)
    assert float(distillation_loss(torch.from_numpy(z), made, label_weight=weight)) == float(
        part(torch.from_numpy(z), made, "bce")
    )


@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_a_clip_without_teacher_counts_its_labels_only(case, kind):
    z, y, zt = case
    y = np.eye(C)[[0, 3, 3, 6, 1]] if kind == "ce" else y
    known = np.array([True, False, True, True, False])
    value, gradient = value_and_gradient(
        z, targets(y, zt, has_teacher=known, kind=kind), label_weight=LAMBDA, kind=kind
    )
    p, t = (sigmoid(z), sigmoid(zt)) if kind == "bce" else (softmax(z), softmax(zt))
    n = B * C if kind == "bce" else B
    np.testing.assert_allclose(
        gradient, (LAMBDA * (p - y) + (1 - LAMBDA) * (p - t) * known[:, None]) / n, rtol=1e-10, atol=1e-18
    )
    other = np.where(known[:, None], zt, 50.0)
    assert (
        value_and_gradient(z, targets(y, other, has_teacher=known, kind=kind), label_weight=LAMBDA, kind=kind)[0]
        == value
    )


@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_a_mixture_with_a_clip_without_teacher_learns_from_the_known_share(case, kind):
    z, y, zt = case
    z, y, zt = z[:2], (np.eye(C)[[2, 5]] if kind == "ce" else y[:2]), zt[:2]
    share = torch.tensor([0.7, 0.6], dtype=torch.float64)
    mixed = targets(y, zt, has_teacher=[True, False], kind=kind).mixed(torch.tensor([1, 0]), share)
    assert mixed.teacher_share.tolist() == pytest.approx([0.7, 0.4])
    _, gradient = value_and_gradient(z, mixed, label_weight=LAMBDA, kind=kind)
    p, t = (sigmoid(z), sigmoid(zt)) if kind == "bce" else (softmax(z), softmax(zt))
    y_mixed = np.stack([0.7 * y[0] + 0.3 * y[1], 0.6 * y[1] + 0.4 * y[0]])
    known = np.stack([0.7 * (p[0] - t[0]), 0.4 * (p[1] - t[0])])  # the first clip's teacher, in both mixtures
    n = 2 * C if kind == "bce" else 2
    np.testing.assert_allclose(gradient, (LAMBDA * (p - y_mixed) + (1 - LAMBDA) * known) / n, rtol=1e-10, atol=1e-18)


def test_masked_labels_have_neither_loss_nor_gradient(case):
    z, y, zt = case
    mask = (np.random.default_rng(1).random((B, C)) < 0.4).astype(float)
    value, gradient = value_and_gradient(z, targets(y, zt, mask=mask), label_weight=1.0)
    assert value == pytest.approx((cross_entropy(sigmoid(z), y) * mask).sum() / mask.sum(), rel=1e-12)
    np.testing.assert_allclose(gradient, (sigmoid(z) - y) * mask / mask.sum(), rtol=1e-10)
    turned = np.where(mask > 0, y, 1 - y)
    assert value_and_gradient(z, targets(turned, zt, mask=mask), label_weight=1.0)[0] == value


def test_mixing_masked_clips_keeps_annotated_targets_and_unites_masks():
    """OpenMIC: what is not annotated says nothing, also as a part of a mixture."""
    y = np.array([[0.9, 0.8, 0.0], [1.0, 0.6, 0.4]])
    mask = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    made = targets(y, np.zeros_like(y), mask=mask).mixed(
        torch.tensor([1, 1]), torch.tensor([0.75, 0.5], dtype=torch.float64)
    )
    assert made.labels.numpy() == pytest.approx(np.array([[0.675, 0.15, 0.0], [0.0, 0.6, 0.0]]))
    assert made.mask.tolist() == [[1, 1, 0], [0, 1, 0]]
    unmixed = targets(y, np.zeros_like(y), mask=mask).mixed(torch.tensor([1, 0]), torch.ones(2, dtype=torch.float64))
    assert unmixed.mask.tolist() == mask.tolist()  # a partner of which nothing is taken annotates nothing


@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_no_labels_at_all_is_no_loss(case, kind):
    z, y, zt = case
    made = targets(np.zeros_like(y), zt, mask=np.zeros_like(y), kind=kind)
    assert float(label_loss(torch.from_numpy(z), made, kind)) == 0.0


def test_clips_without_a_label_do_not_count_among_exclusive_classes(case):
    z, _, zt = case
    y = np.eye(C)[[0, 3, 3, 6, 1]]
    y[1] = 0
    expected = -np.log(softmax(z))[[0, 2, 3, 4], [0, 3, 6, 1]].mean()
    assert float(label_loss(torch.from_numpy(z), targets(y, zt, kind="ce"), "ce")) == pytest.approx(expected)


def test_mixing_is_linear(case):
    z, y, zt = case
    partner, share = torch.tensor([1, 2, 3, 4, 0]), torch.tensor([0.5, 0.6, 0.7, 0.8, 1.0], dtype=torch.float64)
    made = targets(y, zt)
    mixed = made.mixed(partner, share)
    for before, after in ((made.labels, mixed.labels), (made.teacher, mixed.teacher)):
        np.testing.assert_allclose(after, share[:, None] * before + (1 - share[:, None]) * before[partner])
    assert torch.equal(mixed.labels[4], made.labels[4]) and mixed.teacher_share.tolist() == pytest.approx([1.0] * B)
    # The loss of a mixture is the mixture of its parts' losses, for the same logits.
    logits = torch.from_numpy(z)
    other = Targets(*(values[partner] for values in made))
    for clip in range(B):
        row = slice(clip, clip + 1)
        parts = [
            distillation_loss(logits[row], Targets(*(values[row] for values in part)), label_weight=LAMBDA)
            for part in (made, other, mixed)
        ]
        assert float(parts[2]) == pytest.approx(float(share[clip] * parts[0] + (1 - share[clip]) * parts[1]), rel=1e-10)


def test_mix_of_any_shape():
    values = torch.arange(24.0).view(2, 3, 4)
    mixed = mix(values, torch.tensor([1, 0]), torch.tensor([0.75, 1.0]))
    assert torch.equal(mixed[0], 0.75 * values[0] + 0.25 * values[1]) and torch.equal(mixed[1], values[1])


def test_extreme_logits_stay_finite():
    z = torch.tensor([[300.0, -300.0]], requires_grad=True)
    made = targets_of(
        torch.tensor([[0.0, 1.0]]), torch.ones(1, 2), torch.tensor([[-300.0, 300.0]]), torch.tensor([True])
    )
    loss = distillation_loss(z, made, label_weight=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(300) and torch.isfinite(z.grad).all()


def test_probabilities():
    z = torch.randn(3, 4)
    assert torch.equal(probabilities(z, "bce"), z.sigmoid()) and torch.equal(probabilities(z, "ce"), z.softmax(dim=1))

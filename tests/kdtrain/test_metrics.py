import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, recall_score, top_k_accuracy_score

from kdtrain import metrics

# The golden row: softmax of 3 sin(0.37 n + 0.1) in row-major order, labels 7 i mod 10.
LOGITS = 3 * torch.sin(0.37 * torch.arange(2000, dtype=torch.float64) + 0.1).view(200, 10)
LABELS = 7 * torch.arange(200) % 10


def random_case(n=300, k=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator, dtype=torch.float64)
    labels = torch.randint(k, (n,), generator=generator)
    logits[torch.arange(n), labels] += 1.0
    return logits, labels


def slow_ece(probs, labels):
    total = 0.0
    for m in range(10):
        inside = [(max(p), p.index(max(p)) == y) for p, y in zip(probs, labels, strict=True)]
        inside = [(c, r) for c, r in inside if m / 10 < c <= (m + 1) / 10]
        if inside:
            accuracy = sum(r for _, r in inside) / len(inside)
            confidence = sum(c for c, _ in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return 100 * total


def slow_aurc(probs, labels):
    ranked = sorted(zip(probs, labels, strict=True), key=lambda pair: -max(pair[0]))
    risks, errors = [], 0
    for k, (p, y) in enumerate(ranked, start=1):
        errors += p.index(max(p)) != y
        risks.append(errors / k)
    return 1000 * sum(risks) / len(risks)


def slow_best_aurc(errors, n):
    # The best order has all errors last.
    risks = [max(0, k - (n - errors)) / k for k in range(1, n + 1)]
    return 1000 * sum(risks) / n


def test_golden_row_in_float64():
    probs = LOGITS.softmax(1)
    assert metrics.ece(probs, LABELS) == pytest.approx(29.897958, abs=5e-7)
    assert metrics.aurc(probs, LABELS) == pytest.approx(900.21283, abs=5e-6)
    assert metrics.eaurc(probs, LABELS) == pytest.approx(204.67589, abs=5e-6)
    assert metrics.evaluate(LOGITS, LABELS).top1 == pytest.approx(9.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_calibration_and_risk_equal_slow_loops(seed):
    logits, labels = random_case(seed=seed)
    probs = logits.softmax(1)
    rows, ys = probs.tolist(), labels.tolist()
    errors = int((probs.argmax(1) != labels).sum())
    assert metrics.ece(probs, labels) == pytest.approx(slow_ece(rows, ys))
    assert metrics.aurc(probs, labels) == pytest.approx(slow_aurc(rows, ys))
    assert metrics.eaurc(probs, labels) == pytest.approx(slow_aurc(rows, ys) - slow_best_aurc(errors, 300))


def test_evaluate_equals_scikit_learn():
    logits, labels = random_case()
    got = metrics.evaluate(logits, labels)
    probs = logits.softmax(1).numpy()
    assert got.top1 == pytest.approx(100 * top_k_accuracy_score(labels, probs, k=1))
    assert got.top5 == pytest.approx(100 * top_k_accuracy_score(labels, probs, k=5))
    assert got.nll == pytest.approx(log_loss(labels, probs), rel=1e-6)
    recall = recall_score(labels, probs.argmax(1), average=None)
    assert got.class_recall == pytest.approx(tuple(100 * recall))


def test_evaluate_takes_calibration_from_float32_probabilities():
    logits, labels = random_case()
    probs = logits.float().softmax(1)
    got = metrics.evaluate(logits, labels)
    assert got.ece == pytest.approx(metrics.ece(probs, labels), rel=1e-6)
    assert got.aurc == pytest.approx(metrics.aurc(probs, labels))
    assert got.eaurc == pytest.approx(metrics.eaurc(probs, labels))


def test_a_bin_is_closed_above():
    # 0.5 (right) and 0.45 (wrong) share the bin (0.4, 0.5]: |1 - 0.95| / 2. Apart, they would give (0.5 + 0.45) / 2.
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.45, 0.3, 0.25]], dtype=torch.float64)
    assert metrics.ece(probs, torch.tensor([0, 1])) == pytest.approx(100 * 0.05 / 2)


def test_aurc_by_hand():
    # In order of confidence: right, wrong, right; risks 0, 1/2, 1/3. Best order: 0, 0, 1/3.
    probs = torch.tensor([[0.7, 0.3], [0.9, 0.1], [0.2, 0.8]])
    labels = torch.tensor([0, 0, 0])
    assert metrics.aurc(probs, labels) == pytest.approx(1000 * (1 / 2 + 1 / 3) / 3)
    assert metrics.eaurc(probs, labels) == pytest.approx(1000 * (1 / 2) / 3)


def test_images_of_equal_confidence_keep_their_order():
    probs = torch.full((4, 2), 0.5)
    # All are taken for class 0: risks 1, 1/2, 1/3, 1/4.
    assert metrics.aurc(probs, torch.tensor([1, 0, 0, 0])) == pytest.approx(1000 * (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_all_right():
    got = metrics.evaluate(100 * torch.eye(6), torch.arange(6))
    assert (got.top1, got.top5, got.aurc, got.eaurc) == (100, 100, 0, 0)
    assert got.nll == pytest.approx(0, abs=1e-6)
    assert got.ece == pytest.approx(0, abs=1e-6)
    assert got.class_recall == (100,) * 6


def test_all_wrong():
    got = metrics.evaluate(100 * torch.eye(6), (torch.arange(6) + 1) % 6)
    assert (got.top1, got.aurc) == (0, 1000)
    assert got.eaurc == pytest.approx(0)  # no order is better
    assert got.ece == pytest.approx(100)
    assert got.nll == pytest.approx(100)
    assert got.class_recall == (0,) * 6


def test_uniform_logits_have_the_nll_of_a_guess():
    assert metrics.evaluate(torch.zeros(3, 8), torch.tensor([0, 1, 2])).nll == pytest.approx(math.log(8))


def test_fewer_than_five_classes():
    got = metrics.evaluate(torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), torch.tensor([2, 2]))
    assert (got.top1, got.top5) == (50, 100)


def test_a_class_without_images_has_no_recall():
    recall = metrics.evaluate(torch.eye(3), torch.tensor([0, 1, 1])).class_recall
    assert recall[:2] == (100, 50)
    assert math.isnan(recall[2])


def test_bf16_logits_on_a_graph():
    logits, labels = random_case()
    half = logits.bfloat16().requires_grad_()
    assert metrics.evaluate(half, labels) == metrics.evaluate(half.detach().float(), labels)


def test_values_are_python_floats():
    got = metrics.evaluate(*random_case())
    values = [got.top1, got.top5, got.nll, got.ece, got.aurc, got.eaurc, *got.class_recall]
    assert {type(value) for value in values} == {float}
    assert np.isfinite(values).all()


def test_no_images():
    with pytest.raises(ValueError, match=r"evaluate needs at least one image, but got none\."):
        metrics.evaluate(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))

import math

import pytest
import torch
import torch.nn.functional as F

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods.wsld import soft_cross_entropy, soft_label_weights


def cross_entropies(z, y):
    return F.cross_entropy(z, y, reduction="none")


def random(*shape, seed=0):
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slow_weights(h_s, h_t):
    return [1 - math.exp(-max(s / (t + 1e-7), 0)) for s, t in zip(h_s, h_t, strict=True)]


def slow_soft(slow, z_s, z_t, tau):
    """tau^2 times the soft cross-entropy of each sample."""
    values = []
    for row_s, row_t in zip(z_s.tolist(), z_t.tolist(), strict=True):
        pairs = zip(slow.log_softmax(row_s, tau), slow.log_softmax(row_t, tau), strict=True)
        values.append(-(tau**2) * sum(math.exp(t) * s for s, t in pairs))
    return values


def test_golden_weights(golden):
    w = soft_label_weights(cross_entropies(golden.zs, golden.y), cross_entropies(golden.zt, golden.y))
    expected = [0.72287, 0.91832838, 0.14264387, 0.46229543, 0.047699052, 0.53347174, 0.99923856, 0.18135862]
    assert w.tolist() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("tau", "value"), [(4.0, 18.741203), (2.0, 4.9984329)])
def test_golden_term(golden, toy, tau, value):
    terms = toy.method("wsld", {"alpha": 1.0, "tau": tau}).loss(
        toy.batch(golden.y), toy.outputs(golden.zs), toy.outputs(golden.zt)
    )
    assert terms["wsld"].item() == pytest.approx(value, rel=1e-7)


def test_weights_by_hand():
    # Ratios 0, 1 and ln 4 (up to the 1e-7): 0, 1 - 1/e, 3/4.
    h_t = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)
    h_s = torch.tensor([0.0, 0.5, math.log(4)], dtype=torch.float64)
    assert soft_label_weights(h_s, h_t).tolist() == pytest.approx([0, 1 - 1 / math.e, 0.75], abs=1e-6)


def test_weights_are_never_negative():
    assert soft_label_weights(torch.tensor([-1e-9]), torch.tensor([1.0])).item() == 0


def test_weights_of_samples_that_the_teacher_knows_for_certain():
    assert soft_label_weights(torch.tensor([0.0, 1.0]), torch.zeros(2)).tolist() == [0, 1]


def test_tiny_weights_are_not_rounded_away():
    # 1 - exp(-1e-9) is 0 in float32, the weight is 1e-9.
    w = soft_label_weights(torch.tensor([1e-9]), torch.tensor([1.0]))
    assert w.item() == pytest.approx(1e-9, rel=1e-5, abs=0)


def test_gradient_is_that_of_the_weighted_divergence(golden):
    z = golden.zs.clone().requires_grad_()
    w = soft_label_weights(cross_entropies(z, golden.y), cross_entropies(golden.zt, golden.y))
    assert not w.requires_grad
    (w * soft_cross_entropy(z, golden.zt, 4.0)).sum().backward()
    # d/dz of tau^2 KL is tau (p_s - p_t).
    p_s, p_t = F.softmax(golden.zs / 4, dim=1), F.softmax(golden.zt / 4, dim=1)
    torch.testing.assert_close(z.grad, 4 * w[:, None] * (p_s - p_t))


def test_soft_cross_entropy_exceeds_the_divergence_by_the_entropy(golden, slow):
    p = F.softmax(golden.zt / 4, dim=1)
    entropy = -(p * p.log()).sum(1) * 16
    difference = soft_cross_entropy(golden.zs, golden.zt, 4.0) - entropy
    assert difference.tolist() == pytest.approx(slow.kls(golden.zs, golden.zt, 4.0))


@pytest.mark.parametrize(("n", "num_classes"), [(1, 10), (2, 100), (7, 200)])
@pytest.mark.parametrize(
    ("params", "alpha", "tau"), [({}, 2.25, 4.0), ({"alpha": 2.5, "tau": 2.0, "teacher_bn": "eval"}, 2.5, 2.0)]
)
def test_terms_equal_slow_loops(toy, slow, n, num_classes, params, alpha, tau):
    z_s, z_t, y = random(n, num_classes), random(n, num_classes, seed=1), torch.arange(n)
    h_s, h_t = slow.cross_entropies(z_s, y), slow.cross_entropies(z_t, y)
    soft = slow_soft(slow, z_s, z_t, tau)
    weighted = [w * value for w, value in zip(slow_weights(h_s, h_t), soft, strict=True)]
    terms = toy.method("wsld", params).loss(toy.batch(y), toy.outputs(z_s), toy.outputs(z_t))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"ce": slow.mean(h_s), "wsld": alpha * slow.mean(weighted)}
    )


def test_the_order_of_the_classes_does_not_matter(golden, toy):
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    method = toy.method("wsld")
    first = method.loss(toy.batch(golden.y), toy.outputs(golden.zs), toy.outputs(golden.zt))
    second = method.loss(toy.batch(place[golden.y]), toy.outputs(golden.zs[:, order]), toy.outputs(golden.zt[:, order]))
    torch.testing.assert_close(second, first)


def test_the_teacher_trains_as_in_the_authors_code(toy):
    assert toy.method("wsld").teacher_trains
    assert not toy.method("wsld", {"teacher_bn": "eval"}).teacher_trains
    assert methods.nesterov(MethodRef(name="wsld"))


def test_there_is_nothing_to_train(toy):
    assert toy.method("wsld").param_groups() == []


def test_temperature_zero_is_refused(toy):
    with pytest.raises(ConfigError, match=r"^wsld\.tau should be greater than 0, but got 0\.$"):
        toy.method("wsld", {"tau": 0})

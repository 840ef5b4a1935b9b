import math

import pytest
import torch
import torch.nn.functional as F

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods.tf_kd import virtual_loss


def tf_kd(toy, num_classes=10, **params):
    return toy.method("tf_kd", params, toy.setting(num_classes=num_classes))


def values(terms):
    return {name: term.item() for name, term in terms.items()}


def slow_virtual(slow, z, y, tau):
    """mean_b sum_c q (log q - log p), q = softmax(u / tau), u = 0.99 for the true class, 0.01 / (K - 1) elsewhere."""
    losses = []
    for row, label in zip(z.tolist(), y.tolist(), strict=True):
        u = [0.99 if c == label else 0.01 / (len(row) - 1) for c in range(len(row))]
        pairs = zip(slow.log_softmax(u, tau), slow.log_softmax(row), strict=True)
        losses.append(sum(math.exp(q) * (q - p) for q, p in pairs))
    return slow.mean(losses)


class TestVirtualTeacher:
    def test_golden_value(self, golden):
        # The authors' reduction divides by K = 10, too.
        assert virtual_loss(golden.zs, golden.y, 20.0).item() / 10 == pytest.approx(0.11856616, rel=1e-6)

    @pytest.mark.parametrize("tau", [1.0, 20.0])
    @pytest.mark.parametrize(("b", "k"), [(1, 10), (5, 100), (3, 200), (2, 2)])
    def test_equals_a_slow_loop(self, slow, b, k, tau):
        torch.manual_seed(0)
        z, y = 3 * torch.randn(b, k, dtype=torch.float64), torch.randint(k, (b,))
        assert virtual_loss(z, y, tau).item() == pytest.approx(slow_virtual(slow, z, y, tau), rel=1e-9)

    def test_zero_for_a_student_that_says_the_same(self):
        # At tau = 20 and 100 classes the target is .010502 for the true class and .009995 for each other.
        p = torch.full((1, 100), math.exp(0.01 / 99 / 20), dtype=torch.float64)
        p[0, 7] = math.exp(0.99 / 20)
        p /= p.sum()
        assert p[0, 7].item() == pytest.approx(0.010502, abs=5e-7)
        assert p[0, 0].item() == pytest.approx(0.009995, abs=5e-7)
        assert virtual_loss(p.log(), torch.tensor([7]), 20.0).item() == pytest.approx(0, abs=1e-12)

    def test_the_gradient_is_that_of_label_smoothing(self, golden):
        # The target is (1 - e) onehot + e / K, with e = K q for the probability q of a wrong class.
        q = 1 / (9 + math.exp((0.99 - 0.01 / 9) / 20))
        gradients = []
        for loss in (
            lambda z: virtual_loss(z, golden.y, 20.0),
            lambda z: F.cross_entropy(z, golden.y, label_smoothing=10 * q),
        ):
            z = golden.zs.clone().requires_grad_()
            loss(z).backward()
            gradients.append(z.grad)
        torch.testing.assert_close(*gradients)


class TestSelf:
    @pytest.mark.parametrize(
        ("params", "alpha", "tau"),
        [
            ({}, 0.95, 6.0),
            ({"alpha": 0.9, "tau": 20.0}, 0.9, 20.0),
            ({"multiplier": 5.0}, 0.95 / 2, 6.0),  # of 10 classes: the term halves, not the cross-entropy
        ],
    )
    def test_terms(self, golden, slow, toy, params, alpha, tau):
        terms = tf_kd(toy, **params).loss(toy.batch(golden.y), toy.outputs(golden.zs), toy.outputs(golden.zt))
        gamma = 1 - params.get("alpha", 0.95)
        assert values(terms) == pytest.approx(
            {
                "ce": gamma * slow.mean(slow.cross_entropies(golden.zs, golden.y)),
                "tf_kd": alpha * slow.mean(slow.kls(golden.zs, golden.zt, tau)),
            }
        )

    @pytest.mark.parametrize(("b", "k"), [(1, 10), (2, 100), (3, 200)])
    def test_the_authors_form(self, toy, b, k):
        # alpha T^2 multiplier mean_{b, c}, with their ResNet18's multiplier.
        torch.manual_seed(0)
        z_s, z_t = 3 * torch.randn(2, b, k)
        y = torch.randint(k, (b,))
        method = toy.method("tf_kd", {"multiplier": 50.0}, toy.setting(num_classes=k))
        term = method.loss(toy.batch(y), toy.outputs(z_s), toy.outputs(z_t))["tf_kd"]
        mean = F.kl_div((z_s / 6).log_softmax(1), (z_t / 6).softmax(1), reduction="none").mean()
        torch.testing.assert_close(term, 0.95 * 36 * 50 * mean)

    def test_needs_a_teacher_of_its_own_architecture(self):
        ref = MethodRef(name="tf_kd")
        assert methods.needs(ref) == {"logits"}
        assert methods.self_taught(ref)
        assert not methods.self_taught(MethodRef(name="kd"))


class TestReg:
    @pytest.mark.parametrize(
        ("params", "gamma", "alpha", "tau"),
        [
            ({}, 0.9, 0.1, 20.0),
            ({"alpha": 0.5, "tau": 40.0}, 0.5, 0.5, 40.0),
            ({"multiplier": 1.0}, 0.9, 0.1 / 10, 20.0),
        ],
    )
    def test_terms_without_a_teacher(self, golden, slow, toy, params, gamma, alpha, tau):
        without = toy.setting()._replace(teacher=None, teacher_shapes=None)
        method = toy.method("tf_kd", {"variant": "reg", **params}, without)
        assert values(method.loss(toy.batch(golden.y), toy.outputs(golden.zs), None)) == pytest.approx(
            {
                "ce": gamma * slow.mean(slow.cross_entropies(golden.zs, golden.y)),
                "tf_kd": alpha * slow_virtual(slow, golden.zs, golden.y, tau),
            }
        )

    def test_needs_no_teacher(self):
        ref = MethodRef(name="tf_kd", params={"variant": "reg"})
        assert methods.needs(ref) == frozenset()
        assert not methods.self_taught(ref)


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ({}, {"variant": "self", "alpha": 0.95, "tau": 6.0}),
        ({"variant": "reg"}, {"variant": "reg", "alpha": 0.1, "tau": 20.0}),
        ({"variant": "reg", "tau": 40.0}, {"variant": "reg", "alpha": 0.1, "tau": 40.0}),
    ],
)
def test_constants_follow_the_variant_unless_they_are_given(given, full):
    assert methods.params(MethodRef(name="tf_kd", params=given)) == full
    assert methods.params(MethodRef(name="tf_kd", params=full)) == full
    assert not methods.nesterov(MethodRef(name="tf_kd"))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"variant": "both"}, r"^tf_kd\.variant should be 'self' or 'reg', but got 'both'\.$"),
        ({"alpha": 1.5}, r"^tf_kd\.alpha should be less than or equal to 1, but got 1\.5\.$"),
        ({"tau": 0}, r"^tf_kd\.tau should be greater than 0, but got 0\.$"),
        ({"multiplier": -1}, r"^tf_kd\.multiplier should be greater than or equal to 0, but got -1\.$"),
    ],
)
def test_bad_parameters(toy, params, message):
    with pytest.raises(ConfigError, match=message):
        tf_kd(toy, **params)

import math

import pytest
import torch

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods.dkd import decoupled_losses, ramp
from kdtrain.methods.kd import kd_loss


def random_logits(b, k, seed=0):
    """Two sets of logits, and labels that use several classes."""
    torch.manual_seed(seed)
    z_s, z_t = 3 * torch.randn(2, b, k, dtype=torch.float64)
    return z_s, z_t, torch.randint(0, k, (b,))


def slow_decoupled(z_s, z_t, labels, tau):
    """TCKD and NCKD of softmax probabilities, one sample and one class at a time."""
    tckd = nckd = 0.0
    for row_s, row_t, y in zip(z_s.tolist(), z_t.tolist(), labels.tolist(), strict=True):
        e_s, e_t = ([math.exp(z / tau) for z in row] for row in (row_s, row_t))
        p_s, p_t = e_s[y] / sum(e_s), e_t[y] / sum(e_t)
        tckd += p_t * math.log(p_t / p_s) + (1 - p_t) * math.log((1 - p_t) / (1 - p_s))
        for c in range(len(row_s)):
            if c != y:
                q_s, q_t = e_s[c] / (sum(e_s) - e_s[y]), e_t[c] / (sum(e_t) - e_t[y])
                nckd += q_t * math.log(q_t / q_s)
    return tau**2 * tckd / len(labels), tau**2 * nckd / len(labels)


def values(terms):
    return {name: term.item() for name, term in terms.items()}


class TestLosses:
    def test_golden_values(self, golden):
        tckd, nckd = decoupled_losses(golden.zs, golden.zt, golden.y, 4.0)
        assert tckd.item() == pytest.approx(1.0281767, rel=1e-7)
        assert nckd.item() == pytest.approx(5.7901122, rel=1e-7)
        assert (tckd + 8 * nckd).item() == pytest.approx(47.349075, rel=1e-7)

    @pytest.mark.parametrize(("b", "k", "tau"), [(5, 7, 1.0), (1, 10, 2.5), (2, 100, 4.0), (3, 200, 1.0)])
    def test_equal_slow_loops(self, b, k, tau):
        z_s, z_t, labels = random_logits(b, k)
        found = [loss.item() for loss in decoupled_losses(z_s, z_t, labels, tau)]
        assert found == pytest.approx(slow_decoupled(z_s, z_t, labels, tau), rel=1e-10)

    def test_kd_is_their_sum_with_the_weight_of_the_other_classes(self):
        # KL(p_t || p_s) = TCKD + (1 - p_t[y]) NCKD, sample by sample.
        z_s, z_t, labels = random_logits(1, 12)
        tckd, nckd = decoupled_losses(z_s, z_t, labels, 3.0)
        others = 1 - torch.softmax(z_t / 3, 1)[0, labels[0]]
        torch.testing.assert_close(tckd + others * nckd, kd_loss(z_s, z_t, 3.0))

    def test_zero_for_logits_that_differ_by_a_constant(self):
        z_s, _, labels = random_logits(4, 10)
        found = [loss.item() for loss in decoupled_losses(z_s, z_s + 5, labels, 4.0)]
        assert found == pytest.approx([0, 0], abs=1e-12)

    def test_the_label_counts_for_tckd_alone(self):
        z_s, z_t, labels = random_logits(4, 10)
        tckd, nckd = decoupled_losses(z_s, z_t, labels, 4.0)
        raised = z_s.scatter_add(1, labels[:, None], torch.full((4, 1), 2.0, dtype=torch.float64))
        tckd_raised, nckd_raised = decoupled_losses(raised, z_t, labels, 4.0)
        torch.testing.assert_close(nckd_raised, nckd)
        assert abs(tckd_raised - tckd) > 0.01

    def test_tckd_does_not_see_which_other_class_is_likely(self):
        z_s, z_t, _ = random_logits(4, 10)
        labels = torch.zeros(4, dtype=torch.int64)
        tckd, nckd = decoupled_losses(z_s, z_t, labels, 4.0)
        shuffled = torch.cat([z_s[:, :1], z_s[:, 1:].flip(1)], 1)
        tckd_shuffled, nckd_shuffled = decoupled_losses(shuffled, z_t, labels, 4.0)
        torch.testing.assert_close(tckd_shuffled, tckd)
        assert abs(nckd_shuffled - nckd) > 0.01

    def test_two_classes_leave_nothing_to_nckd(self):
        z_s, z_t, labels = random_logits(3, 2)
        tckd, nckd = decoupled_losses(z_s, z_t, labels, 2.0)
        assert nckd.item() == 0
        torch.testing.assert_close(tckd, kd_loss(z_s, z_t, 2.0))

    def test_sure_networks_in_float32(self):
        # p_t = (1, 0, 0) against p_s = (0, 1, 0): TCKD = log 1 - log p_s[0] = 1000. Among the others q_t = (1/2, 1/2)
        # and log q_s = (0, -1000): NCKD = (1000 + 2 log 1/2) / 2 = 500 - log 2.
        z_s = torch.tensor([[0.0, 1000.0, 0.0]], requires_grad=True)
        losses = decoupled_losses(z_s, torch.tensor([[1000.0, 0.0, 0.0]]), torch.tensor([0]), 1.0)
        assert [loss.item() for loss in losses] == pytest.approx([1000, 500 - math.log(2)])
        sum(losses).backward()
        # p_s - p_t of the pair, spread over the others by q_s; and q_s - q_t.
        torch.testing.assert_close(z_s.grad, torch.tensor([[-1.0, 1 + 0.5, -0.5]]))

    @pytest.mark.parametrize("scale", [0.0, 1e4, 1e30])
    def test_finite_for_any_logits(self, scale):
        z_s, z_t, labels = (x.float() if x.is_floating_point() else x for x in random_logits(6, 10))
        z_s = (scale * z_s).requires_grad_()
        losses = decoupled_losses(z_s, -scale * z_t, labels, 1.0)
        sum(losses).backward()
        assert all(torch.isfinite(loss) for loss in losses)
        assert torch.isfinite(z_s.grad).all()


class TestRamp:
    @pytest.mark.parametrize(
        ("epoch", "epochs", "factor"), [(1, 20, 0.05), (10, 20, 0.5), (20, 20, 1), (21, 20, 1), (0, 20, 0), (0, 0, 1)]
    )
    def test_values(self, epoch, epochs, factor):
        assert ramp(epoch, epochs) == pytest.approx(factor)


class TestMethod:
    @pytest.mark.parametrize(
        ("params", "epoch", "factor"),
        [
            ({}, 1, 0.05), ({}, 10, 0.5), ({}, 20, 1.0), ({}, 240, 1.0),  # 20 of 240
            ({"warmup": 4}, 1, 0.25), ({"warmup": 0}, 1, 1.0), ({"warmup": 0.5}, 60, 0.5),
        ],
    )  # fmt: skip
    def test_terms_grow_in_the_warm_up(self, golden, slow, toy, params, epoch, factor):
        student, teacher = toy.outputs(golden.zs), toy.outputs(golden.zt)
        terms = toy.method("dkd", params).loss(toy.batch(golden.y, epoch), student, teacher)
        expected = {
            "ce": slow.mean(slow.cross_entropies(golden.zs, golden.y)),
            "tckd": factor * 1.0281767,
            "nckd": factor * 8 * 5.7901122,
        }
        assert values(terms) == pytest.approx(expected, rel=1e-6)

    def test_weights_and_temperature(self, golden, slow, toy):
        method = toy.method("dkd", {"gamma": 0.5, "alpha": 2.0, "beta": 3.0, "tau": 1.5})
        terms = method.loss(toy.batch(golden.y, 20), toy.outputs(golden.zs), toy.outputs(golden.zt))
        tckd, nckd = slow_decoupled(golden.zs, golden.zt, golden.y, 1.5)
        ce = slow.mean(slow.cross_entropies(golden.zs, golden.y))
        assert values(terms) == pytest.approx({"ce": 0.5 * ce, "tckd": 2 * tckd, "nckd": 3 * nckd})

    def test_the_warm_up_is_a_share_of_the_trial(self, golden, toy):
        student, teacher = toy.outputs(golden.zs), toy.outputs(golden.zt)
        method = toy.method("dkd", setting=toy.setting(epochs=48))  # 4 epochs
        terms = [method.loss(toy.batch(golden.y, epoch), student, teacher)["tckd"] for epoch in (1, 4, 5)]
        assert [term.item() for term in terms] == pytest.approx([1.0281767 / 4, 1.0281767, 1.0281767], rel=1e-6)

    def test_gradients_reach_the_student_alone(self, golden, toy):
        z_s, z_t = golden.zs.clone().requires_grad_(), golden.zt
        terms = toy.method("dkd").loss(toy.batch(golden.y, 20), toy.outputs(z_s), toy.outputs(z_t))
        for name, term in terms.items():
            (gradient,) = torch.autograd.grad(term, z_s, retain_graph=True)
            assert gradient.abs().sum() > 0, name
        assert not list(toy.method("dkd").parameters())

    def test_needs(self):
        assert methods.needs(MethodRef(name="dkd")) == {"logits"}

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"tau": 0.0}, r"^dkd\.tau should be greater than 0, but got 0\.0\.$"),
            ({"beta": -1.0}, r"^dkd\.beta should be greater than or equal to 0, but got -1\.0\.$"),
            ({"warmup": 2.5}, r"^dkd\.warmup .*whole number of epochs or a fraction"),
        ],
    )
    def test_bad_parameters(self, toy, params, message):
        with pytest.raises(ConfigError, match=message):
            toy.method("dkd", params)

import math

import pytest
import torch

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods.dkd import decoupled_losses
from kdtrain.methods.kd import kd_loss
from kdtrain.methods.lskd import LSKD, LSKDPlugin, z_scores


def slow_z_scores(z):
    rows = []
    for row in z.tolist():
        mean = sum(row) / len(row)
        std = math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))
        rows.append([(value - mean) / (1e-7 + std) for value in row])
    return torch.tensor(rows, dtype=torch.float64)


def terms_of(toy, golden, name, params=None, epoch=20):
    method = toy.method(name, params, toy.setting(maps_s=[(6, 4)], maps_t=[(6, 4)]))
    student, teacher = toy.outputs(golden.zs, stages=[golden.fs]), toy.outputs(golden.zt, stages=[golden.ft])
    return {name: term.item() for name, term in method.loss(toy.batch(golden.y, epoch), student, teacher).items()}


class TestZScores:
    @pytest.mark.parametrize(("b", "k"), [(3, 7), (1, 10), (2, 100), (2, 200)])
    def test_equal_slow_loops(self, b, k):
        torch.manual_seed(0)
        z = 4 * torch.randn(b, k, dtype=torch.float64) + 2
        torch.testing.assert_close(z_scores(z), slow_z_scores(z))

    def test_by_hand(self):
        # (0, 3, 6): mean 3, variance (9 + 0 + 9) / 2 = 9.
        torch.testing.assert_close(z_scores(torch.tensor([[0.0, 3.0, 6.0]])), torch.tensor([[-1.0, 0.0, 1.0]]))

    def test_scale_and_offset_of_each_sample_do_not_matter(self, golden):
        scale, offset = torch.arange(1, 9.0)[:, None], torch.arange(8.0)[:, None]
        torch.testing.assert_close(z_scores(scale * golden.zs + offset), z_scores(golden.zs))

    def test_gradients_pass_through_mean_and_deviation(self, golden):
        z = golden.zs.clone().requires_grad_()
        assert torch.autograd.gradcheck(z_scores, z)
        # So no gradient changes only the scale or the offset of a sample.
        (gradient,) = torch.autograd.grad(kd_loss(z_scores(z), z_scores(golden.zt), 2.0), z)
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(gradient.sum(1), torch.zeros(8, dtype=torch.float64))
        torch.testing.assert_close((gradient * z).sum(1), torch.zeros(8, dtype=torch.float64), atol=1e-7, rtol=0)

    def test_constant_logits_are_zero_with_a_finite_gradient(self):
        z = torch.full((2, 10), 5.0, requires_grad=True)
        scores = z_scores(z)
        assert (scores == 0).all()
        scores.square().sum().backward()
        assert torch.isfinite(z.grad).all()


class TestMethod:
    def test_golden_value(self, golden):
        assert kd_loss(z_scores(golden.zs), z_scores(golden.zt), 2.0).item() == pytest.approx(0.87853814, rel=1e-7)

    def test_default_terms(self, golden, slow, toy):
        ce = slow.mean(slow.cross_entropies(golden.zs, golden.y))
        expected = {"ce": 0.1 * ce, "lskd": 9 * 0.87853814}
        assert terms_of(toy, golden, "lskd") == pytest.approx(expected, rel=1e-7)

    def test_terms_equal_slow_loops(self, golden, slow, toy):
        found = terms_of(toy, golden, "lskd", {"gamma": 2.0, "alpha": 0.5, "tau": 3.0})
        kl = slow.mean(slow.kls(slow_z_scores(golden.zs), slow_z_scores(golden.zt), 3.0))
        ce = slow.mean(slow.cross_entropies(golden.zs, golden.y))
        assert found == pytest.approx({"ce": 2 * ce, "lskd": 0.5 * kl})

    def test_beside_another_method_it_is_a_term_of_its_own(self, golden, slow, toy):
        ce = slow.mean(slow.cross_entropies(golden.zs, golden.y))
        expected = {"ce": ce, "sp": 3000 * 0.0032416621, "lskd": 9 * 0.87853814}
        assert terms_of(toy, golden, "sp+lskd") == pytest.approx(expected, rel=1e-6)

    def test_gradients_reach_the_student(self, golden, toy):
        z_s = golden.zs.clone().requires_grad_()
        method = toy.method("lskd")
        for name, term in method.loss(toy.batch(golden.y), toy.outputs(z_s), toy.outputs(golden.zt)).items():
            (gradient,) = torch.autograd.grad(term, z_s, retain_graph=True)
            assert gradient.abs().sum() > 0, name
        assert not list(method.parameters())

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"tau": 0.0}, r"^lskd\.tau should be greater than 0, but got 0\.0\.$"),
            ({"alpha": -9.0}, r"^lskd\.alpha should be greater than or equal to 0, but got -9\.0\.$"),
        ],
    )
    def test_bad_parameters(self, toy, params, message):
        with pytest.raises(ConfigError, match=message):
            toy.method("lskd", params)


class TestPlugin:
    def test_kd_with_it_is_the_method(self, golden, toy):
        alone, plugged = terms_of(toy, golden, "lskd"), terms_of(toy, golden, "kd+lskd")
        assert plugged == {"ce": alone["ce"], "kd": alone["lskd"]}

    @pytest.mark.parametrize(("epoch", "factor"), [(5, 0.25), (20, 1.0)])
    def test_dkd_with_it(self, golden, slow, toy, epoch, factor):
        tckd, nckd = decoupled_losses(slow_z_scores(golden.zs), slow_z_scores(golden.zt), golden.y, 2.0)
        expected = {
            "ce": slow.mean(slow.cross_entropies(golden.zs, golden.y)),
            "tckd": factor * 9 * tckd.item(),
            "nckd": factor * 72 * nckd.item(),
        }
        assert terms_of(toy, golden, "dkd+lskd", epoch=epoch) == pytest.approx(expected)

    def test_given_parameters_are_the_hosts(self, golden, slow, toy):
        found = terms_of(toy, golden, "kd+lskd", {"kd": {"gamma": 0.5, "tau": 4.0}})
        kl = slow.mean(slow.kls(slow_z_scores(golden.zs), slow_z_scores(golden.zt), 4.0))
        ce = slow.mean(slow.cross_entropies(golden.zs, golden.y))
        assert found == pytest.approx({"ce": 0.5 * ce, "kd": 9 * kl})

    def test_the_other_parts_see_the_logits_as_they_are(self, golden, toy):
        found, dkd = terms_of(toy, golden, "kd+lskd+dkd"), terms_of(toy, golden, "dkd")
        assert {name: found[name] for name in ("tckd", "nckd")} == {name: dkd[name] for name in ("tckd", "nckd")}

    def test_defaults(self):
        assert methods.params(MethodRef(name="kd+lskd")) == {
            "kd": {"gamma": 0.1, "alpha": 9.0, "tau": 2.0},
            "lskd": {},
        }
        dkd = methods.params(MethodRef(name="dkd+lskd"))["dkd"]
        assert {key: dkd[key] for key in ("gamma", "alpha", "beta", "tau")} == {
            "gamma": 1.0, "alpha": 9.0, "beta": 72.0, "tau": 2.0
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "part"), [("kd+lskd", LSKDPlugin), ("dkd+lskd", LSKDPlugin), ("lskd+kd", LSKD), ("sp+lskd", LSKD)]
    )
    def test_hosts_are_kd_and_dkd(self, name, part):
        assert methods.classes(MethodRef(name=name))["lskd"] is part

    def test_its_parameters_are_none(self, toy):
        with pytest.raises(ConfigError, match=r"^unknown key 'alpha' at lskd\.alpha\."):
            toy.method("kd+lskd", {"lskd": {"alpha": 1.0}})

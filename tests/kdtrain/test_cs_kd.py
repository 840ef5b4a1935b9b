import pytest
import torch

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef


def cs_kd(toy, z, partner, labels, **params):
    without = toy.setting(num_classes=z.shape[1])._replace(teacher=None, teacher_shapes=None)
    batch = toy.batch(labels)._replace(partner=toy.outputs(partner))
    return toy.method("cs_kd", params, without).loss(batch, toy.outputs(z), None)


def values(terms):
    return {name: term.item() for name, term in terms.items()}


def test_golden_values(golden, toy):
    # CE and KL_4 of the same logits.
    terms = cs_kd(toy, golden.zs, golden.zt, golden.y)
    assert values(terms) == pytest.approx({"ce": 3.3195046, "cs_kd": 6.3772363}, rel=1e-7)


@pytest.mark.parametrize(("params", "alpha", "tau"), [({}, 1.0, 4.0), ({"alpha": 3.0, "tau": 2.0}, 3.0, 2.0)])
@pytest.mark.parametrize(("b", "k"), [(1, 10), (3, 100), (7, 200)])
def test_terms_equal_slow_loops(slow, toy, b, k, params, alpha, tau):
    torch.manual_seed(0)
    z, partner = 3 * torch.randn(2, b, k, dtype=torch.float64)
    y = torch.randint(k, (b,))
    terms = cs_kd(toy, z, partner, y, **params)
    assert values(terms) == pytest.approx(
        {
            "ce": slow.mean(slow.cross_entropies(z, y)),
            "cs_kd": alpha * slow.mean(slow.kls(z, partner, tau)),
        },
        rel=1e-12,
    )


def test_an_image_that_is_its_own_partner_has_nothing_to_learn(golden, toy):
    assert cs_kd(toy, golden.zs, golden.zs, golden.y)["cs_kd"].item() == 0


def test_the_image_learns_from_its_partner_and_not_the_reverse(golden, toy):
    # KL(partner || image): swapping them gives another value, and the gradient is tau (p - p') / B.
    z = golden.zs.clone().requires_grad_()
    term = cs_kd(toy, z, golden.zt, golden.y)["cs_kd"]
    term.backward()
    torch.testing.assert_close(z.grad, 4 * ((golden.zs / 4).softmax(1) - (golden.zt / 4).softmax(1)) / 8)
    assert cs_kd(toy, golden.zt, golden.zs, golden.y)["cs_kd"].item() != pytest.approx(term.item(), rel=1e-2)


def test_asks_for_partners_and_for_no_teacher():
    ref = MethodRef(name="cs_kd")
    assert methods.partners(ref)
    assert not methods.partners(MethodRef(name="kd"))
    assert methods.needs(ref) == frozenset()
    assert not methods.nesterov(ref)
    assert methods.params(ref) == {"alpha": 1.0, "tau": 4.0}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"alpha": -1}, r"^cs_kd\.alpha should be greater than or equal to 0, but got -1\.$"),
        ({"tau": 0}, r"^cs_kd\.tau should be greater than 0, but got 0\.$"),
    ],
)
def test_bad_parameters(toy, params, message):
    with pytest.raises(ConfigError, match=message):
        toy.method("cs_kd", params)

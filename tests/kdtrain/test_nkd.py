import math

import pytest
import torch

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods.dkd import decoupled_losses
from kdtrain.methods.nkd import others_loss, target_loss


def random_logits(b, k):
    """Two sets of logits, and labels that use several classes."""
    torch.manual_seed(0)
    z_s, z_t = 3 * torch.randn(2, b, k, dtype=torch.float64)
    return z_s, z_t, torch.randint(0, k, (b,))


def slow_nkd(z_s, z_t, labels, tau, slow):
    """Both losses, one sample at a time; the label's logit is taken out before the softmax."""
    target = others = 0.0
    for row_s, row_t, y in zip(z_s.tolist(), z_t.tolist(), labels.tolist(), strict=True):
        target -= math.exp(slow.log_softmax(row_t)[y]) * slow.log_softmax(row_s)[y]
        rest_s, rest_t = (slow.log_softmax(row[:y] + row[y + 1 :], tau) for row in (row_s, row_t))
        others -= sum(math.exp(t) * s for s, t in zip(rest_s, rest_t, strict=True))
    return target / len(labels), tau**2 * others / len(labels)


def test_golden_values(golden):
    assert target_loss(golden.zs, golden.zt, golden.y).item() == pytest.approx(0.40519694, rel=1e-7)
    assert 1.5 * others_loss(golden.zs, golden.zt, golden.y, 1.0).item() == pytest.approx(4.980331, rel=1e-7)


@pytest.mark.parametrize(("b", "k", "tau"), [(5, 7, 1.0), (1, 10, 3.0), (2, 100, 3.0), (3, 200, 1.5)])
def test_losses_equal_slow_loops(slow, b, k, tau):
    z_s, z_t, labels = random_logits(b, k)
    found = target_loss(z_s, z_t, labels).item(), others_loss(z_s, z_t, labels, tau).item()
    assert found == pytest.approx(slow_nkd(z_s, z_t, labels, tau, slow), rel=1e-10)


def test_the_label_does_not_count_for_the_others():
    z_s, z_t, labels = random_logits(4, 10)
    raised_s, raised_t = (z.scatter_add(1, labels[:, None], torch.full((4, 1), 2.0).double()) for z in (z_s, z_t))
    torch.testing.assert_close(others_loss(raised_s, raised_t, labels, 3.0), others_loss(z_s, z_t, labels, 3.0))


def test_uniform_others_have_the_entropy_of_all_but_one_class():
    z, labels = torch.zeros(3, 10, dtype=torch.float64), torch.tensor([0, 5, 9])
    assert others_loss(z, z, labels, 2.0).item() == pytest.approx(4 * math.log(9))


def test_constants_do_not_matter():
    z_s, z_t, labels = random_logits(4, 10)
    for loss in (target_loss, lambda s, t, y: others_loss(s, t, y, 3.0)):
        torch.testing.assert_close(loss(z_s + 7, z_t - 4, labels), loss(z_s, z_t, labels))


def test_the_gradient_of_the_others_is_that_of_nckd():
    # They differ by the entropy of the teacher.
    z_s, z_t, labels = random_logits(4, 10)
    z_s.requires_grad_()
    (expected,) = torch.autograd.grad(decoupled_losses(z_s, z_t, labels, 3.0)[1], z_s)
    (found,) = torch.autograd.grad(others_loss(z_s, z_t, labels, 3.0), z_s)
    torch.testing.assert_close(found, expected)


def test_sure_networks_in_float32():
    # p_t[0] = 1 and log p_s[0] = -1000. Among the others q_t = (1/2, 1/2) and log q_s = (0, -1000).
    z_s, z_t, labels = torch.tensor([[0.0, 1000.0, 0.0]]), torch.tensor([[1000.0, 0.0, 0.0]]), torch.tensor([0])
    z_s.requires_grad_()
    losses = target_loss(z_s, z_t, labels), others_loss(z_s, z_t, labels, 1.0)
    assert [loss.item() for loss in losses] == [1000, 500]
    sum(losses).backward()
    assert torch.isfinite(z_s.grad).all()


@pytest.mark.parametrize(("params", "beta", "tau"), [({}, 3.5, 3.0), ({"beta": 1.5, "tau": 1.0}, 1.5, 1.0)])
def test_terms(golden, slow, toy, params, beta, tau):
    terms = toy.method("nkd", params).loss(toy.batch(golden.y), toy.outputs(golden.zs), toy.outputs(golden.zt))
    target, others = slow_nkd(golden.zs, golden.zt, golden.y, tau, slow)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {
            "ce": slow.mean(slow.cross_entropies(golden.zs, golden.y)),
            "nkd_target": target,
            "nkd_others": beta * others,
        }
    )


def test_gradients_reach_the_student(golden, toy):
    z_s = golden.zs.clone().requires_grad_()
    method = toy.method("nkd")
    for name, term in method.loss(toy.batch(golden.y), toy.outputs(z_s), toy.outputs(golden.zt)).items():
        (gradient,) = torch.autograd.grad(term, z_s, retain_graph=True)
        assert gradient.abs().sum() > 0, name
    assert not list(method.parameters())


@pytest.mark.parametrize(
    ("params", "trains"), [({}, True), ({"teacher_bn": "train"}, True), ({"teacher_bn": "eval"}, False)]
)
def test_the_teacher_runs_in_train_mode_as_the_authors_did(toy, params, trains):
    assert toy.method("nkd", params).teacher_trains is trains


def test_needs():
    assert methods.needs(MethodRef(name="nkd")) == {"logits"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"tau": 0.0}, r"^nkd\.tau should be greater than 0, but got 0\.0\.$"),
        ({"gamma": 1.5}, r"^unknown key 'gamma' at nkd\.gamma\."),
        ({"teacher_bn": "off"}, r"^nkd\.teacher_bn should be 'eval' or 'train', but got 'off'\.$"),
    ],
)
def test_bad_parameters(toy, params, message):
    with pytest.raises(ConfigError, match=message):
        toy.method("nkd", params)

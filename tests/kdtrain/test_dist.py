import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import pearsonr

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods.dist import pearson, relation_losses


def random_logits(b, k):
    torch.manual_seed(0)
    return 3 * torch.randn(2, b, k, dtype=torch.float64)


def scipys_relations(z_s, z_t, tau):
    """tau^2 (1 - mean correlation) of the rows and of the columns."""
    p_s, p_t = (softmax(z.numpy() / tau, axis=1) for z in (z_s, z_t))
    rows = [pearsonr(s, t).statistic for s, t in zip(p_s, p_t, strict=True)]
    columns = [pearsonr(s, t).statistic for s, t in zip(p_s.T, p_t.T, strict=True)]
    return tau**2 * (1 - np.mean(rows)), tau**2 * (1 - np.mean(columns))


def numbers(losses):
    return [loss.item() for loss in losses]


@pytest.mark.parametrize(("tau", "inter", "intra"), [(1.0, 1.029354, 1.0649076), (4.0, 16.365543, 16.570851)])
def test_golden_values(golden, tau, inter, intra):
    assert numbers(relation_losses(golden.zs, golden.zt, tau)) == pytest.approx([inter, intra], rel=1e-7)


@pytest.mark.parametrize(("b", "k", "tau"), [(5, 7, 1.0), (12, 10, 4.0), (2, 10, 4.0), (9, 100, 4.0), (6, 200, 4.0)])
def test_losses_equal_scipys_correlations(b, k, tau):
    z_s, z_t = random_logits(b, k)
    # 1e-8 beside a product of norms of 1e-3 and more, for 200 classes.
    assert numbers(relation_losses(z_s, z_t, tau)) == pytest.approx(scipys_relations(z_s, z_t, tau), rel=1e-4)


def test_correlations_by_hand():
    # Centred (-1, 0, 1) and (-1, 2, -1): orthogonal. (-1, 0, 1) and (-3, 1, 2): 5 / sqrt(2 * 14).
    a = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    b = torch.tensor([[0.0, 3.0, 0.0], [0.0, 4.0, 5.0]])
    torch.testing.assert_close(pearson(a, b, 1), torch.tensor([0, 5 / 28**0.5]))
    torch.testing.assert_close(pearson(a.T, b.T, 0), torch.tensor([0, 5 / 28**0.5]))


def test_correlations_do_not_see_scale_and_offset():
    a, b = random_logits(4, 6)
    torch.testing.assert_close(pearson(3 * a - 1, 0.5 * b + 2, 1), pearson(a, b, 1))
    torch.testing.assert_close(pearson(a, -a, 1), -torch.ones(4, dtype=torch.float64))


def test_zero_for_equal_logits():
    z, _ = random_logits(6, 10) / 3
    assert numbers(relation_losses(z, z + 3, 1.0)) == pytest.approx([0, 0], abs=1e-5)


def test_rows_of_the_batch_count_for_themselves_columns_do_not():
    z_s, z_t = random_logits(6, 10)
    halves = [relation_losses(z_s[rows], z_t[rows], 4.0) for rows in (slice(3), slice(3, 6))]
    inter, intra = relation_losses(z_s, z_t, 4.0)
    assert inter.item() == pytest.approx(sum(half[0].item() for half in halves) / 2)
    assert abs(intra.item() - sum(half[1].item() for half in halves) / 2) > 0.1


@pytest.mark.parametrize("b", [1, 2])
def test_uniform_predictions_and_small_batches(b):
    # Without variation the correlation counts as 0.
    z_s, z_t = torch.zeros(b, 10, requires_grad=True), torch.randn(b, 10, generator=torch.Generator().manual_seed(0))
    losses = relation_losses(z_s, z_t, 4.0)
    assert numbers(losses) == [16, 16]
    sum(losses).backward()
    assert torch.isfinite(z_s.grad).all()


def test_one_sample_has_no_relations_within_classes():
    z_s, z_t = random_logits(1, 10)
    inter, intra = relation_losses(z_s, z_t, 4.0)
    assert intra.item() == 16
    assert inter.item() == pytest.approx(16 * (1 - pearsonr(*(softmax(z[0].numpy() / 4) for z in (z_s, z_t)))[0]))


@pytest.mark.parametrize(
    ("params", "inter", "intra"),
    [({}, 2 * 16.365543, 2 * 16.570851), ({"inter": 0.5, "intra": 3.0, "tau": 1.0}, 0.5 * 1.029354, 3 * 1.0649076)],
)
def test_terms(golden, slow, toy, params, inter, intra):
    terms = toy.method("dist", params).loss(toy.batch(golden.y), toy.outputs(golden.zs), toy.outputs(golden.zt))
    ce = slow.mean(slow.cross_entropies(golden.zs, golden.y))
    expected = {"ce": ce, "inter_class": inter, "intra_class": intra}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-6)


def test_gradients_reach_the_student(golden, toy):
    z_s = golden.zs.clone().requires_grad_()
    method = toy.method("dist")
    for name, term in method.loss(toy.batch(golden.y), toy.outputs(z_s), toy.outputs(golden.zt)).items():
        (gradient,) = torch.autograd.grad(term, z_s, retain_graph=True)
        assert gradient.abs().sum() > 0, name
    assert not list(method.parameters())


def test_needs():
    assert methods.needs(MethodRef(name="dist")) == {"logits"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"tau": 0.0}, r"^dist\.tau should be greater than 0, but got 0\.0\.$"),
        ({"intra": -1.0}, r"^dist\.intra should be greater than or equal to 0, but got -1\.0\.$"),
    ],
)
def test_bad_parameters(toy, params, message):
    with pytest.raises(ConfigError, match=message):
        toy.method("dist", params)

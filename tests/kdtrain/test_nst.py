import math

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from kdtrain.methods.nst import Gram, mean_kernel, nst_loss


def slow_nst(f_s, f_t):
    def channels(sample):
        rows = [[x for line in channel for x in line] for channel in sample]
        return [[x / math.hypot(*row) for x in row] for row in rows]

    def kernel(a, b):
        values = [sum(x * y for x, y in zip(p, q, strict=True)) ** 2 for p in a for q in b]
        return sum(values) / len(values)

    total = 0.0
    for sample_s, sample_t in zip(f_s.tolist(), f_t.tolist(), strict=True):
        s, t = channels(sample_s), channels(sample_t)
        total += kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)
    return total / len(f_s)


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def test_golden_values(golden):
    assert nst_loss(golden.fs, golden.ft).item() == pytest.approx(0.030330182, rel=1e-7)
    assert nst_loss(golden.fs, golden.ftb).item() == pytest.approx(0.052324952, rel=1e-7)


def test_kernel_by_hand():
    # Products 6, 0 and 4, 2 of channels of lengths 2 and 1, which divide the rows, then the columns: 3, 0, 4, 2 and
    # 3, 0, 2, 2.
    gram, ones = torch.tensor([[[6.0, 0.0], [4.0, 2.0]]]), torch.ones(1, 2)
    assert mean_kernel(gram, torch.tensor([[0.25, 1.0]]), ones).item() == (9 + 0 + 16 + 4) / 4
    assert mean_kernel(gram, ones, torch.tensor([[0.25, 1.0]])).item() == (9 + 0 + 4 + 4) / 4


def test_gradient_of_the_gram_matrix():
    x = noise(2, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(Gram.apply, (x,))


def test_loss_by_hand():
    # One channel each, orthogonal: 1 + 1 - 0; in the second sample parallel: 1 + 1 - 2.
    f_s, f_t = torch.tensor([[[[3.0, 0.0]]], [[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]]], [[[-4.0, 0.0]]]])
    assert nst_loss(f_s, f_t).item() == 1


# Fewer pixels than channels, as many, more, and more than one network has.
@pytest.mark.parametrize(
    ("shape_s", "shape_t"),
    [((3, 6, 2, 2), (3, 9, 2, 2)), ((2, 4, 2, 2), (2, 4, 2, 2)), ((2, 3, 3, 3), (2, 5, 3, 3)),
     ((2, 3, 2, 2), (2, 7, 2, 2)), ((2, 7, 2, 2), (2, 3, 2, 2)), ((1, 5, 1, 1), (1, 2, 1, 1))],
)  # fmt: skip
def test_equals_slow_loops(shape_s, shape_t):
    f_s, f_t = noise(*shape_s), 2 + noise(*shape_t)
    assert nst_loss(f_s, f_t).item() == pytest.approx(slow_nst(f_s, f_t), rel=1e-9, abs=1e-14)


def test_the_higher_map_is_pooled(golden):
    pooled = adaptive_avg_pool2d(golden.ftb, 4)
    assert nst_loss(golden.fs, golden.ftb).item() == pytest.approx(slow_nst(golden.fs, pooled))
    assert nst_loss(golden.ftb, golden.fs).item() == pytest.approx(slow_nst(pooled, golden.fs))


@pytest.mark.parametrize("size", [4, 2])  # more and fewer pixels than channels
class TestProperties:
    def test_zero_for_equal_maps(self, golden, size):
        f = golden.fs[:, :, :size, :size]
        assert nst_loss(f, f).item() == pytest.approx(0, abs=1e-15)

    def test_order_scale_and_sign_of_channels_do_not_matter(self, golden, size):
        f_s, f_t = golden.fs[:, :, :size, :size], golden.ft[:, :, :size, :size]
        scales = torch.tensor([1.0, -2.0, 3.0, 0.5, -1.0, 7.0], dtype=torch.float64)[:, None, None]
        torch.testing.assert_close(nst_loss((f_s * scales)[:, [4, 1, 5, 0, 2, 3]], f_t), nst_loss(f_s, f_t))

    def test_repeated_channels_do_not_matter(self, golden, size):
        f_s, f_t = golden.fs[:, :, :size, :size], golden.ft[:, :, :size, :size]
        torch.testing.assert_close(nst_loss(torch.cat([f_s, f_s], dim=1), f_t), nst_loss(f_s, f_t))

    def test_gradient_is_that_of_finite_differences(self, golden, size):
        f_s = golden.fs[:2, :, :size, :size].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda f: nst_loss(f, golden.ft[:2, :, :size, :size]), f_s)

    def test_finite_for_channels_that_are_zero(self, golden, size):
        f_s = golden.fs[:, :, :size, :size].float()
        f_s[:, 2] = 0
        f_s.requires_grad_()
        loss = nst_loss(f_s, golden.ft[:, :, :size, :size].float())
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(f_s.grad).all()


@pytest.mark.parametrize(("params", "beta"), [({}, 50.0), ({"beta": 2.0}, 2.0)])
def test_terms_sum_the_stages_that_both_have(golden, slow, toy, params, beta):
    student = toy.outputs(golden.zs, stages=[golden.fs, golden.ft, golden.ftb])
    teacher = toy.outputs(golden.zt, stages=[golden.ft, 0.5 + golden.fs])
    terms = toy.method("nst", params).loss(toy.batch(golden.y), student, teacher)
    layers = slow_nst(golden.fs, golden.ft) + slow_nst(golden.ft, 0.5 + golden.fs)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"ce": slow.mean(slow.cross_entropies(golden.zs, golden.y)), "nst": beta * layers}
    )


def test_nothing_but_the_student_trains(golden, toy):
    method, f_s = toy.method("nst"), golden.fs.clone().requires_grad_()
    student, teacher = (toy.outputs(golden.zs, stages=[f]) for f in (f_s, golden.ft))
    method.loss(toy.batch(golden.y), student, teacher)["nst"].backward()
    assert f_s.grad.abs().sum() > 0
    assert method.param_groups() == []

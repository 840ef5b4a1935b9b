import math

import pytest
import torch

from kdtrain.config import ConfigError
from kdtrain.methods.cc import kernel_loss, neighbour_loss, taylor_kernel


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_neighbours(e_s, e_t):
    deltas = [
        [abs(s - t) for s, t in zip(row_s, row_t, strict=True)]
        for row_s, row_t in zip(e_s.tolist(), e_t.tolist(), strict=True)
    ]
    products = [dot(deltas[i], deltas[i + 1]) for i in range(len(deltas) - 1)]
    return sum(products) / len(products)


def slow_kernels(e_s, e_t, gamma=0.4):
    def kernel(a, b):
        return math.exp(-2 * gamma) * sum((2 * gamma * dot(a, b)) ** p / math.factorial(p) for p in range(3))

    rows_s, rows_t = e_s.tolist(), e_t.tolist()
    n = range(len(rows_s))
    total = sum((kernel(rows_s[i], rows_s[j]) - kernel(rows_t[i], rows_t[j])) ** 2 for i in n for j in n)
    return math.sqrt(total) / len(rows_s) ** 2


LOSSES = {"code": slow_neighbours, "paper": slow_kernels}


def embedded(method, v_s, v_t):
    """x W^T + b, one number at a time."""

    def linear(layer, rows):
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        return torch.tensor(
            [[dot(row, w) + b for w, b in zip(weight, bias, strict=True)] for row in rows.tolist()], dtype=rows.dtype
        )

    return linear(method.embed_s, v_s), linear(method.embed_t, v_t)


def test_golden_value(golden):
    assert neighbour_loss(golden.vs, golden.vt).item() == pytest.approx(9.7759594, rel=1e-8)


def test_neighbours_by_hand():
    # Differences (1, 2), (3, 0), (1, 5): products 3 and 3.
    e_s = torch.tensor([[1.0, -2.0], [-3.0, 0.0], [1.0, 5.0]])
    assert neighbour_loss(e_s, torch.zeros(3, 2)).item() == 3


def test_kernel_by_hand():
    # gamma 0.5: e^-1 (1 + x + x^2 / 2) with x = 4, 0, 1.
    e = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(taylor_kernel(e, 0.5), torch.tensor([[13.0, 1.0], [1.0, 2.5]]) / math.e)


def test_kernel_approximates_the_gaussian_of_unit_vectors():
    # The rest of the series is below x^3 / 6 e^x for |x| <= 2 gamma.
    e = torch.nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64), dim=1)
    gaussian = torch.exp(-0.05 * torch.cdist(e, e) ** 2)
    torch.testing.assert_close(taylor_kernel(e, 0.05), gaussian, rtol=0, atol=2e-4)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_losses_equal_slow_loops(golden, n):
    for e_s, e_t in ((golden.vs[:n], golden.vt[:n]), (golden.zs[:n], golden.zt[:n])):
        assert neighbour_loss(e_s, e_t).item() == pytest.approx(slow_neighbours(e_s, e_t))
        assert kernel_loss(e_s, e_t, 0.4).item() == pytest.approx(slow_kernels(e_s, e_t))


def test_the_kernel_knows_no_order_but_neighbours_do(golden):
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    e_s, e_t = golden.vs[order], golden.vt[order]
    torch.testing.assert_close(kernel_loss(e_s, e_t, 0.4), kernel_loss(golden.vs, golden.vt, 0.4))
    assert neighbour_loss(e_s, e_t).item() != pytest.approx(neighbour_loss(golden.vs, golden.vt).item(), rel=1e-3)


def test_zero_for_equal_embeddings_with_finite_gradients(golden):
    e_s = golden.vs.clone().requires_grad_()
    losses = neighbour_loss(e_s, golden.vs), kernel_loss(e_s, golden.vs, 0.4)
    sum(losses).backward()
    assert [loss.item() for loss in losses] == [0, 0]
    assert torch.isfinite(e_s.grad).all()


def test_one_sample(golden):
    assert neighbour_loss(golden.vs[:1], golden.vt[:1]).item() == 0
    assert kernel_loss(golden.vs[:1], golden.vt[:1], 0.4).item() == pytest.approx(
        slow_kernels(golden.vs[:1], golden.vt[:1])
    )


@pytest.mark.parametrize(
    ("params", "beta", "variant"),
    [
        ({}, 0.02, "code"),
        ({"variant": "code", "beta": 3.0}, 3.0, "code"),
        ({"variant": "paper"}, 0.003, "paper"),
        ({"variant": "paper", "beta": 0.0}, 0.0, "paper"),
        ({"variant": "paper", "beta": 2.0}, 2.0, "paper"),
    ],
)
def test_terms_equal_slow_loops(golden, slow, toy, params, beta, variant):
    v_s = golden.vs[:, :12]
    method = toy.method("cc", params, toy.setting(d_s=12, d_t=16))
    terms = method.loss(toy.batch(golden.y), toy.outputs(golden.zs, v_s), toy.outputs(golden.zt, golden.vt))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {
            "ce": slow.mean(slow.cross_entropies(golden.zs, golden.y)),
            "cc": beta * LOSSES[variant](*embedded(method, v_s, golden.vt)),
        }
    )


def test_gamma_of_the_kernel(golden, toy):
    method = toy.method("cc", {"variant": "paper", "gamma_rbf": 0.1, "beta": 1.0})
    outputs = [toy.outputs(golden.zs, v) for v in (golden.vs, golden.vt)]
    expected = slow_kernels(*embedded(method, golden.vs, golden.vt), gamma=0.1)
    assert method.loss(toy.batch(golden.y), *outputs)["cc"].item() == pytest.approx(expected)


@pytest.mark.parametrize(("params", "width"), [({}, 128), ({"dimension": 5}, 5)])
def test_embeddings(toy, params, width):
    method = toy.method("cc", params, toy.setting(d_s=12, d_t=20))
    assert [tuple(layer.weight.shape) for layer in (method.embed_s, method.embed_t)] == [(width, 12), (width, 20)]
    assert all(layer.bias is not None for layer in (method.embed_s, method.embed_t))


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_both_embeddings_train_and_the_teacher_does_not(golden, toy, variant):
    method = toy.method("cc", {"variant": variant})
    v_s = golden.vs.clone().requires_grad_()
    student, teacher = toy.outputs(golden.zs, v_s), toy.outputs(golden.zt, golden.vt)
    method.loss(toy.batch(golden.y), student, teacher)["cc"].backward()
    (group,) = method.param_groups()
    assert set(group) == {"params"}
    assert len(group["params"]) == 4
    assert all(tensor.grad.abs().sum() > 0 for tensor in [v_s, *group["params"]])
    assert golden.vt.grad is None


def test_negative_weight(toy):
    with pytest.raises(ConfigError, match=r"^cc\.beta should be greater than or equal to 0, but got -1\.0\.$"):
        toy.method("cc", {"beta": -1.0})

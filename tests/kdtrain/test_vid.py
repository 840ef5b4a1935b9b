import math

import pytest
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from kdtrain.config import ConfigError
from kdtrain.methods.vid import Variational, gaussian_nll


def slow_mu(layer, f_s):
    """Three 1 x 1 convolutions with ReLU between them, pixel by pixel."""
    convs = [module.weight[:, :, 0, 0].tolist() for module in layer.regressor if isinstance(module, nn.Conv2d)]
    out = []
    for pixel in f_s.permute(0, 2, 3, 1).flatten(0, 2).tolist():
        for depth, weight in enumerate(convs):
            pixel = [max(0.0, x) for x in pixel] if depth else pixel
            pixel = [sum(w * x for w, x in zip(row, pixel, strict=True)) for row in weight]
        out.append(pixel)
    return out


def slow_vid(layer, f_s, f_t):
    variances = [math.log(1 + math.exp(rho)) + 1e-5 for rho in layer.rho.tolist()]
    targets = f_t.permute(0, 2, 3, 1).flatten(0, 2).tolist()
    terms = [
        0.5 * ((m - t) ** 2 / v + math.log(v))
        for mu, target in zip(slow_mu(layer, f_s), targets, strict=True)
        for m, t, v in zip(mu, target, variances, strict=True)
    ]
    return sum(terms) / len(terms)


def layer_of(c_s, c_t):
    torch.manual_seed(0)
    layer = Variational(c_s, c_t, 5.0).double()
    with torch.no_grad():
        layer.rho.copy_(torch.linspace(-2, 6, c_t))
    return layer


def test_golden_value(golden):
    layer = Variational(6, 6, 5.0).double()
    with torch.no_grad():
        layer.rho.fill_(math.log(math.exp(5 - 1e-5) - 1))  # in float64
        for conv in layer.regressor[::2]:
            conv.weight.copy_(torch.eye(6)[:, :, None, None])
    assert layer(golden.fs, golden.ft).item() == pytest.approx(0.82345375, rel=1e-7)


def test_nll_by_hand():
    # Errors 1 and 3 over a variance of 2, and 2 and 0 over 1: (9 + 1) / 2 / 4 + 4 / 4 and logs (ln 2) / 2, halved.
    mu = torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]])
    expected = ((10 / 2 + 4) / 4 + math.log(2) / 2) / 2
    assert gaussian_nll(mu, torch.zeros_like(mu), torch.tensor([2.0, 1.0])).item() == pytest.approx(expected)


def test_nll_is_the_densitys_but_for_its_constant(golden):
    variance = torch.linspace(0.3, 4, 6, dtype=torch.float64)
    density = torch.distributions.Normal(golden.fs, variance.sqrt()[:, None, None]).log_prob(golden.ft)
    expected = -density.mean() - math.log(2 * math.pi) / 2
    torch.testing.assert_close(gaussian_nll(golden.fs, golden.ft, variance), expected)


def test_layer_equals_slow_loops(golden):
    layer, pooled = layer_of(6, 12), adaptive_avg_pool2d(golden.ftb, 4)
    assert layer(golden.fs, golden.ftb).item() == pytest.approx(slow_vid(layer, golden.fs, pooled))
    layer = layer_of(12, 6)
    assert layer(golden.ftb, golden.ft).item() == pytest.approx(slow_vid(layer, pooled, golden.ft))


@pytest.mark.parametrize("variance", [5.0, 0.5, 0.01])
def test_variances_at_the_start(variance):
    layer = Variational(3, 7, variance)
    torch.testing.assert_close(layer.variance(), torch.full((7,), variance))


def test_rho_at_the_start_is_that_of_the_reference(toy):
    method = toy.method("vid", {}, toy.setting(maps_s=[(6, 4)], maps_t=[(6, 4)]))
    assert method.layers[0].rho.tolist() == pytest.approx([4.99323] * 6, rel=1e-6)


def test_regressors_of_each_stage_that_both_have(toy):
    method = toy.method("vid", {}, toy.setting(maps_s=[(6, 8), (8, 4)], maps_t=[(12, 8), (6, 4), (24, 2)]))
    convs = [[module for module in layer.regressor if isinstance(module, nn.Conv2d)] for layer in method.layers]
    shapes = [[tuple(conv.weight.shape) for conv in stack] for stack in convs]
    assert shapes == [[(12, 6, 1, 1), (12, 12, 1, 1), (12, 12, 1, 1)], [(6, 8, 1, 1), (6, 6, 1, 1), (6, 6, 1, 1)]]
    assert all(conv.bias is None for stack in convs for conv in stack)
    assert [[type(module) for module in layer.regressor[1::2]] for layer in method.layers] == [[nn.ReLU, nn.ReLU]] * 2


@pytest.mark.parametrize(("params", "beta"), [({}, 1.0), ({"beta": 3.0}, 3.0)])
def test_terms_equal_slow_loops(golden, slow, toy, params, beta):
    method = toy.method("vid", params, toy.setting(maps_s=[(6, 4), (12, 8)], maps_t=[(6, 4), (6, 4), (6, 4)]))
    student = toy.outputs(golden.zs, stages=[golden.fs, golden.ftb])
    teacher = toy.outputs(golden.zt, stages=[golden.ft, golden.fs, golden.fs])
    terms = method.loss(toy.batch(golden.y), student, teacher)
    first, second = method.layers
    layers = slow_vid(first, golden.fs, golden.ft) + slow_vid(second, adaptive_avg_pool2d(golden.ftb, 4), golden.fs)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"ce": slow.mean(slow.cross_entropies(golden.zs, golden.y)), "vid": beta * layers}
    )


def test_the_optimizer_trains_variances_and_regressors(golden, toy):
    method = toy.method("vid", {}, toy.setting(maps_s=[(6, 4)], maps_t=[(6, 4)]))
    (group,) = method.param_groups()
    assert set(group) == {"params"}
    assert set(group["params"]) == {method.layers[0].rho, *method.layers[0].regressor.parameters()}
    f_s = golden.fs.clone().requires_grad_()
    student, teacher = toy.outputs(golden.zs, stages=[f_s]), toy.outputs(golden.zt, stages=[golden.ft])
    optimizer = torch.optim.SGD(method.param_groups(), lr=10.0)
    before = method.layers[0].variance().detach()
    method.loss(toy.batch(golden.y), student, teacher)["vid"].backward()
    optimizer.step()
    # Maps in [0, 1] and regressors that give about 0: the errors are below 5, so the variances fall.
    assert (method.layers[0].variance() < before).all()
    assert f_s.grad.abs().sum() > 0
    assert golden.ft.grad is None


def test_the_best_variances_are_the_mean_squared_errors(golden):
    # At the minimum of e / v + log v is v = e, where the value is 1 + log e.
    errors = (golden.fs - golden.ft).square().mean((0, 2, 3)).requires_grad_()
    loss = gaussian_nll(golden.fs, golden.ft, errors)
    loss.backward()
    torch.testing.assert_close(loss, (1 + errors.log()).mean() / 2)
    torch.testing.assert_close(errors.grad, torch.zeros_like(errors), rtol=0, atol=1e-12)


def test_one_sample(golden):
    layer = layer_of(6, 6)
    expected = slow_vid(layer, golden.fs[:1], golden.ft[:1])
    assert layer(golden.fs[:1], golden.ft[:1]).item() == pytest.approx(expected)


def test_variance_too_small(toy):
    with pytest.raises(
        ConfigError, match=r"^vid\.variance should be greater than or equal to 0\.001, but got 1e-05\.$"
    ):
        toy.method("vid", {"variance": 1e-5})

import math

import pytest
import torch

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods.srrl import Connector, feature_matching, softmax_regression

LABELS = [0, 1, 2, 3, 0, 1, 2, 3]


def srrl(toy, setting=None, **params):
    setting = setting or toy.setting(d_s=16, d_t=12, maps_s=[(5, 8), (6, 4)], maps_t=[(5, 8), (12, 2)])
    setting.teacher.requires_grad_(False)
    return toy.method("srrl", params, setting), setting


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outputs(toy, n=8, num_classes=10):
    student = toy.outputs(random(n, num_classes), random(n, 16, seed=1), [random(n, 5, 8, 8), random(n, 6, 4, 4)])
    return student, toy.outputs(random(n, num_classes, seed=2), random(n, 12, seed=3))


def slow_connected(f_s, connector):
    """The mean over space of relu(bn(conv(f_s))) with batch statistics: [B][C] as lists."""
    weight, f = connector.conv.weight[:, :, 0, 0].tolist(), f_s.flatten(2).tolist()
    pixels = [(b, p) for b in range(len(f)) for p in range(len(f[0][0]))]
    means = [[0.0] * len(weight) for _ in f]
    for c, row in enumerate(weight):
        values = [sum(w * f[b][k][p] for k, w in enumerate(row)) for b, p in pixels]
        mean = sum(values) / len(values)
        scale = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + 1e-5)
        for value, (b, _) in zip(values, pixels, strict=True):
            means[b][c] += max(0.0, (value - mean) / scale) / len(f[0][0])
    return means


def slow_mse(a, b):
    squares = [(x - y) ** 2 for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)]
    return sum(squares) / len(squares)


def slow_head(v, head):
    weight, bias = head.weight.tolist(), head.bias.tolist()
    return [[bias[k] + sum(w * x for w, x in zip(weight[k], row, strict=True)) for k in range(len(bias))] for row in v]


def test_golden_values(golden):
    v_s, v_t = golden.fs.mean((2, 3)), golden.ft.mean((2, 3))
    assert feature_matching(v_s, v_t).item() == pytest.approx(0.030883721, rel=1e-7)
    assert softmax_regression(golden.zs, golden.zt).item() == pytest.approx(17.532816, rel=1e-7)


@pytest.mark.parametrize("on", ["map", "pooled"])
@pytest.mark.parametrize(
    ("params", "gamma", "alpha", "beta"),
    [({}, 1.0, 1.0, 1.0), ({"gamma": 0.1, "alpha_fm": 2.0, "beta_sr": 5.0}, 0.1, 2.0, 5.0)],
)
def test_terms_equal_slow_loops(toy, slow, on, params, gamma, alpha, beta):
    method, setting = srrl(toy, on=on, **params)
    student, teacher = outputs(toy)
    y = torch.tensor(LABELS)
    v = slow_connected(student.stages[-1] if on == "map" else student.pooled[:, :, None, None], method.connector)
    terms = method.loss(toy.batch(y), student, teacher)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {
            "ce": gamma * slow.mean(slow.cross_entropies(student.logits, y)),
            "srrl_fm": alpha * slow_mse(v, teacher.pooled.tolist()),
            "srrl_sr": beta * slow_mse(slow_head(v, setting.teacher.head), teacher.logits.tolist()),
        }
    )


def test_a_student_that_connects_to_the_teachers_features_costs_nothing(toy):
    # With the teacher's pooled vector and logits made of the connected features themselves.
    method, setting = srrl(toy)
    student, _ = outputs(toy)
    v = torch.tensor(slow_connected(student.pooled[:, :, None, None], method.connector), dtype=torch.float64)
    teacher = toy.outputs(setting.teacher.head(v), v)
    terms = method.loss(toy.batch(torch.tensor(LABELS)), student, teacher)
    assert terms["srrl_fm"].item() == pytest.approx(0, abs=1e-24)
    assert terms["srrl_sr"].item() == pytest.approx(0, abs=1e-24)


def test_the_pooled_vector_is_connected_by_default_and_needs_no_maps():
    assert methods.needs(MethodRef(name="srrl")) == {"logits", "pooled"}
    assert methods.needs(MethodRef(name="srrl", params={"on": "map"})) == {"logits", "pooled"}
    assert methods.maps(MethodRef(name="srrl", params={"on": "map"})) == {"stages"}


@pytest.mark.parametrize(("on", "c_s"), [("map", 6), ("pooled", 16)])
def test_connector_leads_to_the_width_of_the_teachers_classifier(toy, on, c_s):
    method, _ = srrl(toy, on=on)
    assert method.connector.conv.weight.shape == (12, c_s, 1, 1)
    assert method.connector.conv.bias is None


def test_convolution_is_drawn_for_the_output_channels():
    # N(0, 2 / C_out): 0.125 for 128 channels.
    torch.manual_seed(0)
    weight = Connector(512, 128).conv.weight
    assert weight.std().item() == pytest.approx(0.125, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("on", ["map", "pooled"])
def test_gradients_reach_student_and_connector_only(toy, on):
    method, setting = srrl(toy, on=on)
    student, teacher = outputs(toy)
    f_s = (student.stages[-1] if on == "map" else student.pooled).requires_grad_()
    for tensor in (teacher.pooled, teacher.logits):
        tensor.requires_grad_(False)
    terms = method.loss(toy.batch(torch.tensor(LABELS)), student, teacher)
    (terms["srrl_fm"] + terms["srrl_sr"]).backward()
    assert f_s.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.connector.parameters())
    assert all(parameter.grad is None for parameter in setting.teacher.parameters())


def test_only_the_connector_is_trained(toy):
    method, _ = srrl(toy)
    (group,) = method.param_groups()
    assert set(group) == {"params"}
    assert set(group["params"]) == set(method.connector.parameters())
    assert {name.split(".")[0] for name in method.state_dict()} == {"connector"}


def test_one_row_is_normalised_with_the_running_statistics():
    connector = Connector(3, 2).double()
    connector.norm.running_mean.copy_(torch.tensor([1.0, -2.0]))
    connector.norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    x = random(1, 3, 1, 1)
    conv = connector.conv.weight[:, :, 0, 0] @ x[0, :, 0, 0]
    expected = [
        (conv[0].item() - 1) / math.sqrt(4 + 1e-5),
        (conv[1].item() + 2) / math.sqrt(0.25 + 1e-5),
    ]
    assert connector(x).flatten().tolist() == pytest.approx(expected)
    assert connector.norm.running_mean.tolist() == [1, -2]


def test_one_row_of_a_larger_map_is_normalised_with_its_own_statistics():
    out = Connector(3, 2).double()(random(1, 3, 4, 4))
    assert out.mean((0, 2, 3)).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert out.var((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1], rel=1e-3)


@pytest.mark.parametrize("on", ["map", "pooled"])
@pytest.mark.parametrize(("n", "num_classes"), [(1, 10), (2, 100), (3, 200)])
def test_small_batches_and_many_classes(toy, on, n, num_classes):
    maps = {"maps_s": [(5, 8), (6, 4)], "maps_t": [(12, 2)]}
    method, _ = srrl(toy, toy.setting(d_t=12, num_classes=num_classes, **maps), on=on)
    terms = method.loss(toy.batch(torch.arange(n)), *outputs(toy, n, num_classes))
    assert all(torch.isfinite(term) for term in terms.values())


def test_other_places_to_connect_are_refused(toy):
    with pytest.raises(ConfigError, match=r"^srrl\.on should be 'map' or 'pooled', but got 'stem'\.$"):
        srrl(toy, on="stem")

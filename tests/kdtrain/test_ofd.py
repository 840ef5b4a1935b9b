import math
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch import nn

from kdtrain import methods, models
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods.base import Setting
from kdtrain.methods.ofd import margins, partial_l2

GAMMA = torch.tensor([0.5, 1, 1.5, -1, 0.2, 1], dtype=torch.float64)
BETA = torch.tensor([-0.3, 0, 0.4, 0.1, 2, -2], dtype=torch.float64)
MARGINS = [-0.52957356, -0.79788458, -1.062559, -0.76261747, -0.6, -2.0552478]


def wave(shape, a, b):
    n = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(a * n + b).view(shape)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ofd(toy, maps_s, maps_t, **params):
    """The method for a teacher whose BatchNorms have drawn scales and shifts."""
    setting = toy.setting(maps_s=maps_s, maps_t=maps_t)
    torch.manual_seed(1)
    norms = tuple(nn.BatchNorm2d(channels).double() for channels, _ in maps_t)
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return toy.method("ofd", params, setting._replace(teacher=SimpleNamespace(preact_norms=norms))), norms


def maps(sizes, n, seed):
    return [random(n, channels, height, height, seed=seed + i) for i, (channels, height) in enumerate(sizes)]


def slow_margin(gamma, beta):
    """E[x | x < 0] of a normal distribution, by scipy; -3 s where x < 0 is rarer than 0.001."""
    s = abs(gamma)
    if stats.norm.cdf(-beta / s) > 0.001:
        return stats.truncnorm.mean(-math.inf, -beta / s, loc=beta, scale=s)
    return -3 * s


def slow_partial_l2(f_s, f_t, margin):
    """The three cases of the paper: positive targets, negative ones, and those below the margin."""
    total = 0.0
    for rows_s, rows_t in zip(f_s.flatten(2).tolist(), f_t.flatten(2).tolist(), strict=True):
        for row_s, row_t, m in zip(rows_s, rows_t, margin, strict=True):
            for s, t in zip(row_s, row_t, strict=True):
                if t > 0:
                    total += (s - t) ** 2
                elif t > m:
                    total += (s - t) ** 2 if s > t else 0.0
                else:
                    total += (s - m) ** 2 if s > m else 0.0
    return total


def slow_connected(f_s, connector):
    """bn(conv(f_s)) with batch statistics."""
    mixed = torch.einsum("oc,bchw->bohw", connector.conv.weight[:, :, 0, 0], f_s)
    mean = mixed.mean((0, 2, 3), keepdim=True)
    return (mixed - mean) / ((mixed - mean).square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


class TestMargins:
    def test_golden_values(self):
        assert margins(GAMMA, BETA).tolist() == pytest.approx(MARGINS, rel=1e-7)

    def test_equal_the_mean_of_scipys_truncated_normal(self):
        gamma, beta = random(300), random(300, seed=1)
        expected = [slow_margin(g, b) for g, b in zip(gamma.tolist(), beta.tolist(), strict=True)]
        assert margins(gamma, beta).tolist() == pytest.approx(expected, rel=1e-7)
        rare = sum(m == -3 * abs(g) for m, g in zip(expected, gamma.tolist(), strict=True))
        assert 0 < rare < 300  # both cases are there

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_extreme_channels(self, dtype):
        # Far below 0 all x count: E = beta. Far above 0: -3 s. Without spread: beta below 0, else 0.
        gamma = torch.tensor([1e-3, -0.1, 1e-3, 1e-30, 0.0, 0.0, 0.0], dtype=dtype)
        beta = torch.tensor([-5.0, -30.0, 5.0, 1.0, -2.0, 2.0, 0.0], dtype=dtype)
        expected = [-5.0, -30.0, -3e-3, -3e-30, -2.0, 0.0, 0.0]
        assert margins(gamma, beta).tolist() == pytest.approx(expected, rel=1e-6)

    def test_float32_agrees_on_both_sides_of_the_threshold(self):
        # P(x < 0) = 0.001 at beta / s = 3.0902.
        beta = torch.linspace(-10, 4, 141, dtype=torch.float64)
        double, single = margins(torch.ones_like(beta), beta), margins(torch.ones(141), beta.float())
        torch.testing.assert_close(single.double(), double, rtol=2e-4, atol=0)
        assert (double <= 0).all()
        assert (double[beta > 3.0903] == -3).all()
        assert (double[beta < 3.0901] > -20).all()
        assert (double[(beta < 3.0901) & (beta > 2.9)] > -0.4).all()

    def test_no_gradient_to_the_teachers_scale(self):
        assert not margins(GAMMA.clone().requires_grad_(), BETA).requires_grad


class TestPartialL2:
    def test_golden_value(self):
        g1, g2 = 2 * wave((8, 6, 4, 4), 0.11, 0.2), 2 * wave((8, 6, 4, 4), 0.23, 0.4)
        margin = margins(GAMMA, BETA)[None, :, None, None]
        assert partial_l2(g1, g2, margin).item() == pytest.approx(2461.764, rel=1e-6)

    def test_by_hand(self):
        # Margin -1. Target 2: student 3 and 0 cost 1 and 4. Target -0.5: 0.5 costs 1, -0.7 nothing.
        # Target -4, below the margin: 1 costs (1 - -1)^2 = 4, -2 nothing. Target 0: 1 costs 1, -1 nothing.
        f_s = torch.tensor([3.0, 0.0, 0.5, -0.7, 1.0, -2.0, 1.0, -1.0])
        f_t = torch.tensor([2.0, 2.0, -0.5, -0.5, -4.0, -4.0, 0.0, 0.0])
        cost = partial_l2(f_s.view(1, 1, 2, 4), f_t.view(1, 1, 2, 4), torch.full((1, 1, 1, 1), -1.0))
        assert cost.item() == 1 + 4 + 1 + 0 + 4 + 0 + 1 + 0

    def test_equals_a_slow_loop(self):
        f_s, f_t, margin = random(3, 5, 4, 2), random(3, 5, 4, 2, seed=1), -random(5, seed=2).abs()
        expected = slow_partial_l2(f_s, f_t, margin.tolist())
        assert partial_l2(f_s, f_t, margin[None, :, None, None]).item() == pytest.approx(expected)

    def test_gradient_is_only_where_the_student_has_to_change(self):
        f_s = torch.tensor([[[[3.0, -2.0, 1.0]]]], requires_grad=True)
        partial_l2(f_s, torch.tensor([[[[3.0, -0.5, -4.0]]]]), torch.full((1, 1, 1, 1), -1.0)).backward()
        assert f_s.grad.flatten().tolist() == [0, 0, 4]  # 2 (1 - -1)


MAPS_S, MAPS_T = [(3, 8), (4, 4), (5, 2)], [(6, 8), (7, 4), (8, 2)]


@pytest.mark.parametrize(("params", "beta"), [({}, 1e-3), ({"beta": 0.5, "teacher_bn": "eval"}, 0.5)])
def test_terms_equal_slow_loops(toy, slow, params, beta):
    method, norms = ofd(toy, MAPS_S, MAPS_T, **params)
    z_s, y = random(6, 10), torch.arange(6)
    preact_s, preact_t = maps(MAPS_S, 6, seed=3), maps(MAPS_T, 6, seed=7)
    expected = 0.0
    for level, norm, weight, f_s, f_t in zip(method.levels, norms, (1 / 4, 1 / 2, 1), preact_s, preact_t, strict=True):
        margin = [slow_margin(g, b) for g, b in zip(norm.weight.tolist(), norm.bias.tolist(), strict=True)]
        expected += weight * slow_partial_l2(slow_connected(f_s, level.connector), f_t, margin)
    student, teacher = toy.outputs(z_s, preact=preact_s), toy.outputs(z_s, preact=preact_t)
    terms = method.loss(toy.batch(y), student, teacher)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"ce": slow.mean(slow.cross_entropies(z_s, y)), "ofd": beta * expected / 6}
    )


@pytest.mark.parametrize(
    ("maps_s", "maps_t", "widths"),
    [
        (MAPS_S, [(9, 16), *MAPS_T], [(3, 6), (4, 7), (5, 8)]),
        ([(9, 16), *MAPS_S], MAPS_T[1:], [(4, 7), (5, 8)]),
    ],
)
def test_the_last_levels_that_both_have_are_compared(toy, maps_s, maps_t, widths):
    method, norms = ofd(toy, maps_s, maps_t)
    assert [tuple(level.connector.conv.weight.shape[1::-1]) for level in method.levels] == widths
    for level, norm in zip(method.levels, norms[-len(widths) :], strict=True):
        torch.testing.assert_close(level.margin.flatten(), margins(norm.weight, norm.bias))
    student = toy.outputs(random(2, 10), preact=maps(maps_s, 2, seed=3))
    teacher = toy.outputs(preact=maps(maps_t, 2, seed=7))
    whole = method.loss(toy.batch(torch.arange(2)), student, teacher)["ofd"]
    cut_s = student._replace(preact=student.preact[-len(widths) :])
    cut_t = teacher._replace(preact=teacher.preact[-len(widths) :])
    assert method.loss(toy.batch(torch.arange(2)), cut_s, cut_t)["ofd"].item() == whole.item()


def test_the_last_level_has_full_weight(toy):
    # Where the teacher's map is the connected map itself, a level costs nothing: one level is left.
    method, _ = ofd(toy, MAPS_S, MAPS_T, beta=1.0)
    preact_s = maps(MAPS_S, 2, seed=3)
    connected = [slow_connected(f, level.connector).detach() for f, level in zip(preact_s, method.levels, strict=True)]
    student = toy.outputs(random(2, 10), preact=preact_s)
    # A target 20 above the student, positive everywhere, costs 400 an element; there are 2 samples.
    for i, (weight, elements) in enumerate([(1 / 4, 6 * 64), (1 / 2, 7 * 16), (1, 8 * 4)]):
        above = [f + 20 if j == i else f for j, f in enumerate(connected)]
        terms = method.loss(toy.batch(torch.arange(2)), student, toy.outputs(preact=above))
        assert terms["ofd"].item() == pytest.approx(weight * 400 * elements)


def test_the_teachers_map_is_pooled_to_the_students_size(toy):
    method, _ = ofd(toy, [(5, 2)], [(8, 4)])
    f_s, f_t = random(2, 5, 2, 2), random(2, 8, 4, 4, seed=1)
    windows = f_t.reshape(2, 8, 2, 2, 2, 2).mean((3, 5))
    student, batch = toy.outputs(random(2, 10), preact=[f_s]), toy.batch(torch.arange(2))
    large, small = (method.loss(batch, student, toy.outputs(preact=[f]))["ofd"].item() for f in (f_t, windows))
    assert large == pytest.approx(small)


def test_a_smaller_map_of_the_teacher_is_repeated(toy):
    method, _ = ofd(toy, [(5, 4)], [(8, 2)])
    f_s, f_t = random(2, 5, 4, 4), random(2, 8, 2, 2, seed=1)
    repeated = f_t.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    student, batch = toy.outputs(random(2, 10), preact=[f_s]), toy.batch(torch.arange(2))
    small, large = (method.loss(batch, student, toy.outputs(preact=[f]))["ofd"].item() for f in (f_t, repeated))
    assert small == pytest.approx(large)


def test_gradients_reach_the_student_and_the_connectors(toy):
    method, norms = ofd(toy, MAPS_S, MAPS_T)
    preact_s = [f.requires_grad_() for f in maps(MAPS_S, 4, seed=3)]
    student, teacher = toy.outputs(random(4, 10), preact=preact_s), toy.outputs(preact=maps(MAPS_T, 4, seed=7))
    method.loss(toy.batch(torch.arange(4)), student, teacher)["ofd"].backward()
    trained = [*preact_s, *method.parameters()]
    assert len(trained) == 3 + 3 * 3  # conv, scale and shift of each level
    assert all(tensor.grad.abs().sum() > 0 for tensor in trained)
    assert all(parameter.grad is None for norm in norms for parameter in norm.parameters())


def test_margins_are_state_and_are_not_trained(toy):
    method, _ = ofd(toy, MAPS_S, MAPS_T)
    assert {f"levels.{i}.margin" for i in range(3)} <= set(method.state_dict())
    other, _ = ofd(toy, MAPS_S, MAPS_T)
    other.levels[1].margin.zero_()
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.levels[1].margin, method.levels[1].margin)
    (group,) = method.param_groups()
    assert len(group["params"]) == 9


@pytest.mark.parametrize("n", [1, 2])
def test_small_batches(toy, n):
    sizes_s, sizes_t = [(3, 4), (4, 1)], [(6, 4), (7, 1)]
    method, _ = ofd(toy, sizes_s, sizes_t)
    student, teacher = toy.outputs(random(n, 100), preact=maps(sizes_s, n, 3)), toy.outputs(preact=maps(sizes_t, n, 7))
    assert all(torch.isfinite(term) for term in method.loss(toy.batch(torch.arange(n)), student, teacher).values())


def test_the_teacher_trains_as_in_the_authors_code(toy):
    assert ofd(toy, MAPS_S, MAPS_T)[0].teacher_trains
    assert not ofd(toy, MAPS_S, MAPS_T, teacher_bn="eval")[0].teacher_trains
    assert methods.nesterov(MethodRef(name="ofd"))
    assert methods.needs(MethodRef(name="ofd")) == {"preact"}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("student", "teacher"), [("resnet8", "wrn_16_1"), ("wrn_16_1", "resnet14"), ("vgg8", "vgg11")])
def test_builds_on_real_networks(device, student, teacher):
    with torch.device(device):
        networks = [models.build(name, 100, 3) for name in (student, teacher)]
        with torch.no_grad():
            shapes = [network.eval()(torch.zeros(1, 3, 32, 32)) for network in networks]
            setting = Setting(networks[0], shapes[0], networks[1], shapes[1], 100, 240)
            method = methods.build(MethodRef(name="ofd"), setting)
            terms = method.loss(_batch(device), *(network(torch.zeros(2, 3, 32, 32)) for network in networks))
    assert [level.margin.shape[1] for level in method.levels] == [f.shape[1] for f in shapes[1].preact]
    assert all(term.shape == () for term in terms.values())
    if device == "cpu":  # fresh BatchNorms: gamma 1, beta 0, E = -sqrt(2 / pi)
        for level in method.levels:
            torch.testing.assert_close(level.margin, torch.full_like(level.margin, -math.sqrt(2 / math.pi)))


def _batch(device):
    labels = torch.zeros(2, dtype=torch.int64, device=device)
    return methods.base.Batch(torch.zeros(2, 3, 32, 32, device=device), labels, labels, 1)


def test_other_modes_of_the_teacher_are_refused(toy):
    with pytest.raises(ConfigError, match=r"^ofd\.teacher_bn should be 'train' or 'eval', but got 'frozen'\.$"):
        ofd(toy, MAPS_S, MAPS_T, teacher_bn="frozen")

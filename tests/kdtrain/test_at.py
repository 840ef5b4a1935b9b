import math

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from kdtrain.config import ConfigError
from kdtrain.methods.at import AT, at_loss, attention


def slow_maps(f):
    """Sums over the channels of f^2, each sample's divided by its Euclidean norm."""
    maps = []
    for sample in f.tolist():
        size = range(len(sample[0]))
        sums = [sum(channel[y][x] ** 2 for channel in sample) for y in size for x in size]
        length = math.sqrt(sum(v * v for v in sums))
        maps.append([v / length for v in sums])
    return maps


def slow_at(f_s, f_t, variant="code"):
    pairs = zip(slow_maps(f_s), slow_maps(f_t), strict=True)
    squares = [[(s - t) ** 2 for s, t in zip(a, b, strict=True)] for a, b in pairs]
    size = len(squares) * len(squares[0])
    if variant == "code":
        return sum(map(sum, squares)) / size
    return sum(math.sqrt(sum(row)) for row in squares) / 2 / size


def loss(f_s, f_t, variant="code"):
    """The loss of one layer from its maps, of which the higher one is pooled."""
    height = min(f_s.shape[2], f_t.shape[2])
    return at_loss(attention(f_s, height), attention(f_t, height), variant)


def test_golden_values(golden):
    assert loss(golden.fs, golden.ft).item() == pytest.approx(5.4662431e-4, rel=1e-7)
    assert loss(golden.fs, golden.ftb).item() == pytest.approx(5.7778899e-4, rel=1e-7)


def test_attention_by_hand():
    # Means of squares 8 and 6, of length 10.
    f = torch.tensor([[[[4.0, 2.0]], [[0.0, 8.0**0.5]]]])
    torch.testing.assert_close(attention(f, 2), torch.tensor([[0.8, 0.6]]))


def test_losses_by_hand():
    # Attention (1, 0) against (0, 1): squares 1 and 1; and (1, 0) against itself.
    f_s, f_t = torch.tensor([[[[3.0, 0.0]]], [[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 5.0]]], [[[2.0, 0.0]]]])
    torch.testing.assert_close(loss(f_s, f_t), torch.tensor(2 / 4))
    torch.testing.assert_close(loss(f_s, f_t, "paper"), torch.tensor(math.sqrt(2) / 8))


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_equals_slow_loops(golden, variant):
    pooled = adaptive_avg_pool2d(golden.ftb, 4)
    for f_s, f_t, low_s, low_t in (
        (golden.fs, golden.ft, golden.fs, golden.ft),
        (golden.fs, golden.ftb, golden.fs, pooled),
        (golden.ftb, golden.ft, pooled, golden.ft),
    ):
        expected = slow_at(low_s, low_t, variant)
        assert loss(f_s, f_t, variant).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("variant", ["code", "paper"])
class TestProperties:
    def test_zero_for_equal_maps_with_finite_gradients(self, golden, variant):
        f_s = golden.fs.clone().requires_grad_()
        value = loss(f_s, golden.fs, variant)
        value.backward()
        assert value.item() == 0
        assert torch.isfinite(f_s.grad).all()

    def test_scale_sign_and_order_of_channels_do_not_matter(self, golden, variant):
        changed = -7 * golden.fs[:, [4, 1, 5, 0, 2, 3]]
        torch.testing.assert_close(loss(changed, golden.ft, variant), loss(golden.fs, golden.ft, variant))

    def test_repeated_channels_do_not_matter(self, golden, variant):
        wide = torch.cat([golden.fs, golden.fs], dim=1)
        torch.testing.assert_close(loss(wide, golden.ft, variant), loss(golden.fs, golden.ft, variant))

    def test_finite_for_maps_that_are_all_zero(self, golden, variant):
        f_s = torch.zeros_like(golden.fs, requires_grad=True)
        loss(f_s, golden.ft, variant).backward()
        assert torch.isfinite(f_s.grad).all()

    def test_one_sample(self, golden, variant):
        expected = slow_at(golden.fs[:1], golden.ft[:1], variant)
        assert loss(golden.fs[:1], golden.ft[:1], variant).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("params", "beta", "variant"),
    [({}, 1000.0, "code"), ({"beta": 2.0}, 2.0, "code"), ({"variant": "paper"}, 1000.0, "paper")],
)
def test_terms_sum_the_stages_that_both_have(golden, slow, toy, params, beta, variant):
    setting = toy.setting(maps_s=((6, 4), (6, 4)), maps_t=((12, 8), (6, 4), (12, 8)))
    method = toy.method("at", params, setting)
    student = toy.outputs(golden.zs, stages=[golden.fs, golden.ft])
    teacher = toy.taught(method, golden.zt, stages=[golden.ftb, 0.5 + golden.fs, golden.ftb])
    terms = method.loss(toy.batch(golden.y), student, teacher)
    layers = slow_at(golden.fs, adaptive_avg_pool2d(golden.ftb, 4), variant)
    layers += slow_at(golden.ft, 0.5 + golden.fs, variant)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"ce": slow.mean(slow.cross_entropies(golden.zs, golden.y)), "at": beta * layers}
    )


def test_nothing_but_the_student_trains(golden, toy):
    method = toy.method("at", setting=toy.setting(maps_s=((6, 4),), maps_t=((6, 4),)))
    f_s = golden.fs.clone().requires_grad_()
    student, teacher = toy.outputs(golden.zs, stages=[f_s]), toy.taught(method, golden.zt, stages=[golden.ft])
    method.loss(toy.batch(golden.y), student, teacher)["at"].backward()
    assert f_s.grad.abs().sum() > 0
    assert method.param_groups() == []


def test_digests_say_their_stage_and_height(golden, toy):
    method = toy.method("at", setting=toy.setting(maps_s=((6, 8), (6, 4)), maps_t=((12, 4), (12, 8), (6, 4))))
    assert method.digests() == ("at:0:4", "at:1:4")
    teacher = toy.outputs(stages=[golden.ft, golden.ftb])
    torch.testing.assert_close(AT.digest("at:0:4", teacher), torch.tensor(slow_maps(golden.ft), dtype=torch.float64))
    low = adaptive_avg_pool2d(golden.ftb, 4)
    torch.testing.assert_close(AT.digest("at:1:4", teacher), torch.tensor(slow_maps(low), dtype=torch.float64))


def test_unknown_variant(toy):
    with pytest.raises(ConfigError, match=r"^at\.variant should be 'code' or 'paper', but got 'td'\.$"):
        toy.method("at", {"variant": "td"})

import math
from itertools import pairwise

import pytest
import torch

from kdtrain import build, methods
from kdtrain.config import ConfigError, DataConfig, MethodRef, Recipe, TeacherRef, TrialConfig
from kdtrain.methods.base import Batch
from kdtrain.methods.fsp import flow, fsp_loss


def wave(shape, a, b):
    """sin(a n + b) for n = 0, 1, ... in row-major order, float64."""
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).view(shape)


def pooled(f, h):
    """Means over squares, for a map whose height is a multiple of h."""
    k = len(f[0]) // h
    return [
        [[sum(c[k * i + p][k * j + q] for p in range(k) for q in range(k)) / k**2 for j in range(h)] for i in range(h)]
        for c in f
    ]


def slow_flow(bottom, top):
    """G of one image: maps as lists [channels][rows][columns]."""
    h = min(len(bottom[0]), len(top[0]))
    bottom, top = pooled(bottom, h), pooled(top, h)
    return [
        [sum(t[i][j] * b[i][j] for i in range(h) for j in range(h)) / h**2 for b in bottom] for t in top
    ]  # fmt: skip


def slow_fsp(maps_s, maps_t):
    total = 0.0
    for i in range(len(maps_s) - 1):
        squares = []
        for n in range(len(maps_s[0])):
            g_s, g_t = (slow_flow(maps[i][n].tolist(), maps[i + 1][n].tolist()) for maps in (maps_s, maps_t))
            squares += [(a - b) ** 2 for p, q in zip(g_s, g_t, strict=True) for a, b in zip(p, q, strict=True)]
        total += sum(squares) / len(squares)
    return total


def maps(shift, batch=3):
    """A stem and three stages, of other channels and heights each."""
    sizes = [(2, 8), (5, 8), (3, 4), (4, 2)]
    return tuple(wave((batch, c, h, h), 0.31 + shift, 0.2 * i) for i, (c, h) in enumerate(sizes))


def loss(maps_s, maps_t):
    """The loss from the maps of both networks."""
    return fsp_loss(*([flow(*pair) for pair in pairwise(maps)] for maps in (maps_s, maps_t)))


def test_golden_value_of_one_pair(golden):
    maps_s = golden.fs, wave((8, 6, 2, 2), 0.29, 0.5).abs()
    maps_t = golden.ft, wave((8, 6, 2, 2), 0.43, 0.7).abs()
    assert loss(maps_s, maps_t).item() == pytest.approx(0.054459175, rel=1e-7)


def test_flow_by_hand():
    # The bottom map is averaged to 2.5; times 3 and -1.
    bottom, top = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[[[3.0]], [[-1.0]]]])
    assert flow(bottom, top).tolist() == [[[7.5], [-2.5]]]
    # Equal heights: (1*2 + 2*0 + 3*1 + 4*0) / 4.
    top = torch.tensor([[[[2.0, 0.0], [1.0, 0.0]]]])
    assert flow(bottom, top).tolist() == [[[1.25]]]


def test_flow_averages_a_higher_top_down():
    bottom, top = maps(0)[2], maps(0)[1]
    expected = [slow_flow(b, t) for b, t in zip(bottom.tolist(), top.tolist(), strict=True)]
    torch.testing.assert_close(flow(bottom, top), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("batch", [1, 3])
def test_equals_slow_loops(batch):
    expected = slow_fsp(maps(0, batch), maps(0.4, batch))
    assert loss(maps(0, batch), maps(0.4, batch)).item() == pytest.approx(expected, rel=1e-10)


def test_maps_of_other_heights_than_the_teachers_are_compared_by_their_channels():
    maps_t = tuple(torch.nn.functional.interpolate(f, scale_factor=2) for f in maps(0.4))
    torch.testing.assert_close(loss(maps(0), maps_t), loss(maps(0), maps(0.4)))


def test_zero_for_equal_maps():
    assert loss(maps(0.1), maps(0.1)).item() == 0


def test_where_things_are_does_not_matter():
    # Matrices are means over pixels, so maps of one height that move together have the same.
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    moved = tuple(f.flatten(2)[:, :, order].view_as(f) for f in maps(0)[:2])
    torch.testing.assert_close(loss(moved, maps(0.4)[:2]), loss(maps(0)[:2], maps(0.4)[:2]))


def fsp(toy, stem_t=(2, 8), maps_t=((5, 8), (3, 4), (4, 2)), **params):
    setting = toy.setting(maps_s=((5, 8), (3, 4), (4, 2)), maps_t=maps_t, stem_s=(2, 8), stem_t=stem_t)
    return toy.method("fsp", params, setting)


@pytest.mark.parametrize(("params", "beta"), [({}, 1.0), ({"beta": 2.5}, 2.5)])
def test_first_stage_compares_stem_and_stages(toy, params, beta):
    method, (stem, *stages) = fsp(toy, **params), maps(0.4)
    student = toy.outputs(stem=maps(0)[0], stages=maps(0)[1:])
    terms = method.pretrain_loss(toy.batch(torch.arange(3)), student, toy.taught(method, stem=stem, stages=stages))
    expected = {"fsp": beta * slow_fsp(maps(0), maps(0.4))}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)


def test_second_stage_is_cross_entropy_alone(golden, slow, toy):
    terms = fsp(toy).loss(toy.batch(golden.y), toy.outputs(golden.zs), toy.outputs())
    expected = slow.mean(slow.cross_entropies(golden.zs, golden.y))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx({"ce": expected})


@pytest.mark.parametrize(
    ("different", "got"),
    [
        ({"stem_t": (3, 8)}, r"\[3, 5, 3, 4\]"),
        ({"maps_t": ((5, 8), (6, 4), (4, 2))}, r"\[2, 5, 6, 4\]"),
        ({"maps_t": ((5, 8), (3, 4))}, r"\[2, 5, 3\]"),
    ],
)
def test_other_channels_are_refused(toy, different, got):
    message = rf"^fsp needs equal channels of the stem and of every stage, but got \[2, 5, 3, 4\] and {got}\.$"
    with pytest.raises(ConfigError, match=message):
        fsp(toy, **different)


def networks(student, teacher):
    """Real networks and the method, for fashion_mini."""
    trial = TrialConfig(
        data=DataConfig(dataset="fashion_mini"), train=Recipe(epochs=240), student=student,
        teacher=TeacherRef(model=teacher, id="0" * 16), method=MethodRef(name="fsp"), seed=0,
    )  # fmt: skip
    return build.networks(trial, torch.device("cpu"), lambda model, ref: None)


def test_published_pair_that_does_not_fit():
    with pytest.raises(ConfigError, match=r"but got \[16, 16, 32, 64\] and \[16, 32, 64, 128\]\.$"):
        networks("wrn_40_1", "wrn_40_2")


@pytest.mark.parametrize("key", ["beta", "pretrain_epochs"])
def test_zeros_are_refused(toy, key):
    with pytest.raises(ConfigError, match=rf"^fsp\.{key} should be greater than 0, but got 0\.$"):
        fsp(toy, **{key: 0})


def test_first_stage_trains_stem_and_stages_for_an_eighth_of_the_epochs(toy):
    setting, method = networks("wrn_16_1", "wrn_40_1")
    stage, student = method.pretraining(), setting.student
    assert (stage.epochs, stage.lr, stage.milestones, stage.student) == (30, None, (), True)
    trained = [parameter for module in stage.modules for parameter in module.parameters()]
    after = {*student.bn1.parameters(), *student.fc.parameters()}
    assert len(trained) == len(set(trained))
    assert set(trained) == set(student.parameters()) - after
    assert method.param_groups() == []
    assert fsp(toy, pretrain_epochs=2).pretraining().epochs == 2


def test_gradients_of_the_first_stage_reach_stem_and_stages_only():
    setting, method = networks("resnet8", "resnet14")
    images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        taught = methods.digested(method.digests(), setting.teacher(images))
    batch = Batch(images, torch.arange(2), torch.arange(2), 1)
    method.pretrain_loss(batch, setting.student(images), taught)["fsp"].backward()
    with_gradient = {key for key, parameter in setting.student.named_parameters() if parameter.grad is not None}
    assert with_gradient == {key for key, _ in setting.student.named_parameters()} - {"fc.weight", "fc.bias"}
    assert all(parameter.grad is None for parameter in setting.teacher.parameters())

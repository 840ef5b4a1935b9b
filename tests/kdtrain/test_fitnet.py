import math

import pytest
import torch
from torch import nn

from kdtrain import build
from kdtrain.config import ConfigError, DataConfig, MethodRef, Recipe, TeacherRef, TrialConfig
from kdtrain.methods.base import Batch
from kdtrain.methods.fitnet import conv_regressor, hint_loss

MAPS = [(6, 8), (6, 4), (12, 2)]


def fitnet(toy, maps_s=MAPS, maps_t=MAPS, **params):
    return toy.method("fitnet", params, toy.setting(maps_s=maps_s, maps_t=maps_t))


def test_hint_loss_by_hand():
    # Squares 0, 1, 4 and 9 over four elements.
    assert hint_loss(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.ones(1, 1, 2, 2)).item() == 3.5


def test_hint_loss_is_zero_for_equal_maps(golden):
    assert hint_loss(golden.ft, golden.ft).item() == 0


@pytest.mark.parametrize(
    ("student", "teacher", "layer", "kernel", "stride", "padding"),
    [
        ((8, 16), (12, 8), nn.Conv2d, 3, 2, 1),  # s = 2t
        ((8, 2), (12, 1), nn.Conv2d, 3, 2, 1),
        ((8, 8), (12, 16), nn.ConvTranspose2d, 4, 2, 1),  # 2s = t
        ((8, 8), (12, 8), nn.Conv2d, 1, 1, 0),  # equal
        ((8, 9), (12, 8), nn.Conv2d, 2, 1, 0),  # s > t otherwise: 1 + s - t
        ((8, 32), (12, 8), nn.Conv2d, 25, 1, 0),
    ],
)
def test_regressor_for_each_pair_of_sizes(student, teacher, layer, kernel, stride, padding):
    regressor = conv_regressor(student, teacher)
    conv, norm, relu = regressor
    assert type(conv) is layer
    assert (conv.kernel_size, conv.stride, conv.padding) == ((kernel,) * 2, (stride,) * 2, (padding,) * 2)
    assert (conv.in_channels, conv.out_channels, norm.num_features) == (8, 12, 12)
    assert conv.bias is not None
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(relu, nn.ReLU)
    assert regressor(torch.randn(2, 8, student[1], student[1])).shape == (2, 12, teacher[1], teacher[1])


def test_regressor_without_relu_may_be_negative():
    regressor = conv_regressor((8, 4), (12, 4), relu=False)
    assert [type(layer) for layer in regressor] == [nn.Conv2d, nn.BatchNorm2d]
    assert regressor(torch.randn(4, 8, 4, 4)).min() < 0


# Channels and height of the second stage of the pairs that papers use, at 32 x 32; conv and its weight's shape.
@pytest.mark.parametrize(
    ("student", "teacher", "layer", "shape"),
    [
        ((64, 16), (64, 16), nn.Conv2d, (64, 64, 1, 1)),  # wrn_40_2 -> wrn_16_2
        ((32, 16), (64, 16), nn.Conv2d, (64, 32, 1, 1)),  # wrn_40_2 -> wrn_40_1
        ((16, 16), (256, 16), nn.Conv2d, (256, 16, 1, 1)),  # vgg13 -> MobileNetV2
        ((480, 8), (64, 16), nn.ConvTranspose2d, (480, 64, 4, 4)),  # wrn_40_2 -> ShuffleV1
    ],
)
def test_regressor_of_published_pairs(student, teacher, layer, shape):
    conv = conv_regressor(student, teacher)[0]
    assert type(conv) is layer
    assert tuple(conv.weight.shape) == shape


@pytest.mark.parametrize(("s", "t"), [(3, 8), (5, 8), (7, 8), (1, 8)])
def test_sizes_that_no_convolution_fits(s, t):
    message = rf"^fitnet needs a student map at least half as high as the teacher's, but got {s} and {t}\.$"
    with pytest.raises(ConfigError, match=message):
        conv_regressor((8, s), (12, t))


def test_the_error_names_the_method():
    with pytest.raises(ConfigError, match=r"^ab needs a student map at least half as high as"):
        conv_regressor((8, 1), (12, 8), "ab")


@pytest.mark.parametrize("hint", [1, 2, 3])
def test_hint_chooses_the_stage(toy, hint):
    maps_t = [(16, 8), (32, 4), (64, 2)]
    conv = fitnet(toy, maps_t=maps_t, hint=hint).regressor[0]
    assert (conv.in_channels, conv.out_channels) == (MAPS[hint - 1][0], maps_t[hint - 1][0])


def test_the_default_hint_is_the_second_stage(toy):
    assert fitnet(toy, maps_t=[(16, 8), (32, 4), (64, 2)]).regressor[0].out_channels == 32


@pytest.mark.parametrize(("maps_s", "maps_t"), [(MAPS[:2], MAPS), (MAPS, MAPS[:2])])
def test_hint_beyond_the_stages_of_one_network(toy, maps_s, maps_t):
    with pytest.raises(ConfigError, match=r"^fitnet\.hint must be a stage of both networks, but got 3 of 2\.$"):
        fitnet(toy, maps_s, maps_t, hint=3)


def test_stages_are_counted_from_one(toy):
    with pytest.raises(ConfigError, match=r"^fitnet\.hint should be greater than or equal to 1, but got 0\.$"):
        fitnet(toy, hint=0)


def test_maps_that_do_not_fit(toy):
    with pytest.raises(ConfigError, match=r"at least half as high as the teacher's, but got 4 and 16\.$"):
        fitnet(toy, maps_t=[(6, 32), (6, 16), (6, 8)])


def slow_hint(fs, ft, conv):
    """mean((relu(bn(conv(f_s))) - f_t)^2), conv 1 x 1, batch statistics."""
    weight, bias = conv.weight[:, :, 0, 0].tolist(), conv.bias.tolist()
    pixels = [(b, h, w) for b in range(8) for h in range(4) for w in range(4)]
    fs, ft, total = fs.tolist(), ft.tolist(), 0.0
    for c in range(6):
        values = [bias[c] + sum(weight[c][k] * fs[b][k][h][w] for k in range(6)) for b, h, w in pixels]
        mean = sum(values) / len(values)
        scale = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + 1e-5)
        for value, (b, h, w) in zip(values, pixels, strict=True):
            total += (max(0.0, (value - mean) / scale) - ft[b][c][h][w]) ** 2
    return total / (6 * len(pixels))


@pytest.mark.parametrize(("params", "beta"), [({}, 100.0), ({"beta": 3.0}, 3.0)])
def test_terms_equal_slow_loops(golden, slow, toy, params, beta):
    method = fitnet(toy, **params)
    student = toy.outputs(golden.zs, stages=[golden.ftb, golden.fs, golden.ftb])
    teacher = toy.outputs(golden.zt, stages=[golden.ftb, golden.ft, golden.ftb])
    terms = method.loss(toy.batch(golden.y), student, teacher)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {
            "ce": slow.mean(slow.cross_entropies(golden.zs, golden.y)),
            "hint": beta * slow_hint(golden.fs, golden.ft, method.regressor[0]),
        }
    )


def test_regressor_trains_with_the_students_settings(toy):
    method = fitnet(toy)
    (group,) = method.param_groups()
    assert set(group) == {"params"}
    assert set(group["params"]) == set(method.regressor.parameters())


def networks(student="wrn_16_1", teacher="wrn_16_2", name="fitnet", epochs=240, **params):
    """Real networks and the method, for fashion_mini."""
    trial = TrialConfig(
        data=DataConfig(dataset="fashion_mini"), train=Recipe(epochs=epochs), student=student,
        teacher=TeacherRef(model=teacher, id="0" * 16), method=MethodRef(name=name, params=params), seed=0,
    )  # fmt: skip
    return build.networks(trial, torch.device("cpu"), lambda model, ref: None)


class TestVariants:
    def test_the_code_is_the_default_and_has_one_stage(self, toy):
        assert fitnet(toy).config.variant == "code"
        assert fitnet(toy).pretraining() is None

    @pytest.mark.parametrize(("variant", "looks"), [("code", True), ("paper", False)])
    def test_the_teacher_is_looked_at_while_the_hint_is_trained(self, toy, variant, looks):
        assert fitnet(toy, variant=variant).teacher_in_loss is looks

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"variant": "two"}, r"^fitnet\.variant should be 'code' or 'paper', but got 'two'\.$"),
            ({"variant": "paper", "pretrain_epochs": 0}, r"^fitnet\.pretrain_epochs should be greater than 0"),
        ],
    )
    def test_wrong_parameters(self, toy, params, message):
        with pytest.raises(ConfigError, match=message):
            fitnet(toy, **params)

    @pytest.mark.parametrize(
        ("params", "total", "expected"),
        [({}, 240, 30), ({}, 4, 1), ({"pretrain_epochs": 0.25}, 240, 60), ({"pretrain_epochs": 7}, 240, 7)],
    )
    def test_epochs_of_the_first_stage(self, toy, params, total, expected):
        setting = toy.setting(maps_s=MAPS, maps_t=MAPS, epochs=total)
        stage = toy.method("fitnet", {"variant": "paper", **params}, setting).pretraining()
        assert (stage.epochs, stage.lr, stage.milestones, stage.student) == (expected, None, (), True)

    @pytest.mark.parametrize(("hint", "trained"), [(1, ("block1",)), (2, ("block1", "block2"))])
    def test_first_stage_trains_the_regressor_and_the_student_up_to_the_hint(self, hint, trained):
        setting, method = networks(variant="paper", hint=hint)
        got = [parameter for module in method.pretraining().modules for parameter in module.parameters()]
        up_to = {
            parameter
            for key, parameter in setting.student.named_parameters()
            if key.startswith(("conv1.", *(f"{block}." for block in trained)))
        }
        assert len(got) == len(set(got))
        assert set(got) == up_to | set(method.regressor.parameters())

    def test_gradients_of_the_first_stage_reach_what_it_trains(self):
        setting, method = networks("resnet8", "resnet14", variant="paper")
        images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            taught = setting.teacher(images)
        batch = Batch(images, torch.arange(3), torch.arange(3), 1)
        method.pretrain_loss(batch, setting.student(images), taught)["hint"].backward()
        trained = {parameter for module in method.pretraining().modules for parameter in module.parameters()}
        for parameter in setting.student.parameters():
            assert (parameter.grad is not None) == (parameter in trained)
        assert all(parameter.grad.abs().sum() > 0 for parameter in trained)
        assert all(parameter.grad is None for parameter in setting.teacher.parameters())

    @pytest.mark.parametrize(("params", "beta"), [({}, 100.0), ({"beta": 3.0}, 3.0)])
    def test_terms_of_the_two_stages(self, golden, slow, toy, params, beta):
        method = fitnet(toy, variant="paper", **params)
        student = toy.outputs(golden.zs, stages=[golden.ftb, golden.fs, golden.ftb])
        teacher = toy.outputs(golden.zt, stages=[golden.ftb, golden.ft, golden.ftb])
        batch = toy.batch(golden.y)
        hint = beta * slow_hint(golden.fs, golden.ft, method.regressor[0])
        first, second = method.pretrain_loss(batch, student, teacher), method.loss(batch, student, teacher)
        assert {name: term.item() for name, term in first.items()} == pytest.approx({"hint": hint})
        ce = slow.mean(slow.cross_entropies(golden.zs, golden.y))
        assert {name: term.item() for name, term in second.items()} == pytest.approx({"ce": ce})
        assert method.param_groups() == []

    def test_with_kd_the_second_stage_distils_the_logits(self, golden, slow, toy):
        setting = toy.setting(maps_s=MAPS, maps_t=MAPS)
        method = toy.method("fitnet+kd", {"fitnet": {"variant": "paper"}}, setting)
        student = toy.outputs(golden.zs, stages=[golden.ftb, golden.fs, golden.ftb])
        teacher = toy.outputs(golden.zt, stages=[golden.ftb, golden.ft, golden.ftb])
        batch = toy.batch(golden.y)
        assert set(method.pretrain_loss(batch, student, teacher)) == {"hint"}
        terms = method.loss(batch, student, teacher)
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(
            {
                "ce": slow.mean(slow.cross_entropies(golden.zs, golden.y)),
                "kd": slow.mean(slow.kls(golden.zs, golden.zt, 4.0)),
            }
        )

import math

import pytest
import torch
from torch import nn

from kdtrain import build
from kdtrain.config import ConfigError, DataConfig, MethodRef, Recipe, TeacherRef, TrialConfig
from kdtrain.methods.ab import boundary_loss
from kdtrain.methods.base import Batch


def wave(shape, a, b):
    """sin(a n + b) for n = 0, 1, ... in row-major order, float64."""
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).view(shape)


G1 = 2 * wave((8, 6, 4, 4), 0.11, 0.2)
G2 = 2 * wave((8, 6, 4, 4), 0.23, 0.4)


def slow_boundary(s, t, m=1.0):
    total = 0.0
    for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True):
        if b <= 0 and a > -m:
            total += (a + m) ** 2
        elif b > 0 and a <= m:
            total += (a - m) ** 2
    return total


def networks(student="wrn_16_1", teacher="wrn_16_2", name="ab", **params):
    """Real networks and the method, for fashion_mini."""
    trial = TrialConfig(
        data=DataConfig(dataset="fashion_mini"), train=Recipe(epochs=240), student=student,
        teacher=TeacherRef(model=teacher, id="0" * 16), method=MethodRef(name=name, params=params), seed=0,
    )  # fmt: skip
    return build.networks(trial, torch.device("cpu"), lambda model, ref: None)


class TestBoundaryLoss:
    def test_golden_value(self):
        assert boundary_loss(G1, G2).item() / 8 * 3 / 1000 == pytest.approx(0.82790721, rel=1e-7)

    # An active neuron must be above 1, an inactive one below -1; zero of the teacher is inactive.
    @pytest.mark.parametrize(
        ("s", "t", "expected"),
        [
            (0.5, 3.0, 0.25),
            (-2.0, 0.1, 9.0),
            (1.0, 1.0, 0.0),
            (1.5, 1.0, 0.0),
            (0.5, -3.0, 2.25),
            (2.0, 0.0, 9.0),
            (-1.0, -1.0, 0.0),
            (-1.5, 0.0, 0.0),
        ],
    )
    def test_one_neuron_by_hand(self, s, t, expected):
        assert boundary_loss(torch.tensor([s]), torch.tensor([t])).item() == pytest.approx(expected)

    @pytest.mark.parametrize("margin", [0.3, 1.0, 2.5])
    def test_equals_a_slow_loop(self, margin):
        s, t = 3 * wave((3, 5, 2, 7), 0.7, 0.3), wave((3, 5, 2, 7), 1.3, 0.1)
        assert boundary_loss(s, t, margin).item() == pytest.approx(slow_boundary(s, t, margin), rel=1e-12)

    def test_only_the_side_of_the_teacher_matters(self):
        torch.testing.assert_close(boundary_loss(G1, 100 * G2), boundary_loss(G1, G2))

    def test_zero_beyond_the_margin(self):
        assert boundary_loss(G2.sign() * (1 + G1.abs()), G2).item() == 0


def ab(toy, maps_s, maps_t, **params):
    return toy.method("ab", params, toy.setting(maps_s=maps_s, maps_t=maps_t))


class TestTerms:
    MAPS = ((6, 4), (6, 4))

    @pytest.mark.parametrize(
        ("params", "beta", "margin"), [({}, 0.003, 1.0), ({"beta": 2.0}, 2.0, 1.0), ({"margin": 0.5}, 0.003, 0.5)]
    )
    def test_first_stage_halves_the_weight_of_each_earlier_map(self, toy, params, beta, margin):
        method = ab(toy, self.MAPS, self.MAPS, **params)
        student, teacher = toy.outputs(preact=[G1, 2 * G1]), toy.outputs(preact=[G2, -G2])
        terms = method.pretrain_loss(toy.batch(torch.arange(8)), student, teacher)
        total = 0.5 * slow_boundary(G1, G2, margin) + slow_boundary(2 * G1, -G2, margin)
        assert {name: term.item() for name, term in terms.items()} == pytest.approx({"ab": beta * total / 8})

    def test_golden_value_of_two_maps(self, toy):
        method = ab(toy, self.MAPS, self.MAPS)
        student, teacher = toy.outputs(preact=[G1, G1]), toy.outputs(preact=[G2, G2])
        term = method.pretrain_loss(toy.batch(torch.arange(8)), student, teacher)["ab"]
        assert term.item() == pytest.approx(0.4139536 + 0.82790721, rel=1e-7)

    @pytest.mark.parametrize("n", [1, 2])
    def test_last_partial_batch_is_divided_by_its_own_size(self, toy, n):
        method = ab(toy, self.MAPS, self.MAPS)
        student, teacher = toy.outputs(preact=[G1[:n], G1[:n]]), toy.outputs(preact=[G2[:n], G2[:n]])
        term = method.pretrain_loss(toy.batch(torch.arange(n)), student, teacher)["ab"]
        assert term.item() == pytest.approx(0.003 * 1.5 * slow_boundary(G1[:n], G2[:n]) / n)

    def test_second_stage_is_cross_entropy_alone(self, golden, slow, toy):
        terms = ab(toy, self.MAPS, self.MAPS).loss(toy.batch(golden.y), toy.outputs(golden.zs), toy.outputs())
        expected = slow.mean(slow.cross_entropies(golden.zs, golden.y))
        assert {name: term.item() for name, term in terms.items()} == pytest.approx({"ce": expected})

    @pytest.mark.parametrize("key", ["beta", "margin", "pretrain_epochs"])
    def test_zeros_are_refused(self, toy, key):
        with pytest.raises(ConfigError, match=rf"^ab\.{key} should be greater than 0, but got 0\.$"):
            ab(toy, self.MAPS, self.MAPS, **{key: 0})


class TestConnectors:
    def test_identity_where_the_shapes_agree_else_convolution_and_norm(self, toy):
        method = ab(toy, [(6, 8), (6, 8), (6, 8), (6, 4)], [(6, 8), (12, 8), (6, 4), (6, 8)])
        same, wider, lower, higher = method.connectors
        assert isinstance(same, nn.Identity)
        for connector, conv, width in (
            (wider, nn.Conv2d, 12),
            (lower, nn.Conv2d, 6),
            (higher, nn.ConvTranspose2d, 6),
        ):
            assert [type(layer) for layer in connector] == [conv, nn.BatchNorm2d]
            assert connector[1].num_features == width
        assert wider[0].kernel_size == (1, 1)
        assert lower[0].stride == (2, 2)

    def test_the_student_passes_through_the_connector(self, toy):
        method = ab(toy, [(6, 4)], [(12, 4)]).eval()
        student, teacher = toy.outputs(preact=[G1]), toy.outputs(preact=[wave((8, 12, 4, 4), 0.17, 0.6)])
        term = method.pretrain_loss(toy.batch(torch.arange(8)), student, teacher)["ab"]
        conv = method.connectors[0][0]
        mapped = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], G1) + conv.bias[:, None, None]
        # A new norm in eval mode has mean 0 and variance 1.
        expected = 0.003 * slow_boundary(mapped / (1 + 1e-5) ** 0.5, teacher.preact[0]) / 8
        assert term.item() == pytest.approx(expected, rel=1e-10)

    # 1 x 1 convolutions 16 -> 32, 32 -> 64, 64 -> 128 with 512 + 2048 + 8192 weights; a bias and a norm's weight and
    # bias for each of the 32 + 64 + 128 channels.
    @pytest.mark.parametrize(("student", "parameters"), [("wrn_16_2", 0), ("wrn_16_1", 10752 + 672)])
    def test_published_kinds_of_pairs(self, student, parameters):
        _, method = networks(student, "wrn_40_2")
        assert sum(p.numel() for p in method.parameters()) == parameters


class TestPairs:
    def test_unequal_numbers_of_stages(self):
        with pytest.raises(ConfigError, match=r"^ab needs networks with equal numbers of stages, but got 4 and 3\.$"):
            networks("vgg8", "wrn_16_2")

    def test_maps_that_no_convolution_fits(self, toy):
        message = r"^ab needs a student map at least half as high as the teacher's, but got 2 and 8\.$"
        with pytest.raises(ConfigError, match=message):
            ab(toy, [(6, 2)], [(6, 8)])


class TestStages:
    def test_connectors_stem_and_stages_train_for_an_eighth_of_the_epochs(self):
        setting, method = networks()
        stage = method.pretraining()
        assert (stage.epochs, stage.lr, stage.milestones, stage.student) == (30, None, (), True)
        student = setting.student
        trained = [parameter for module in stage.modules for parameter in module.parameters()]
        after = {*student.bn1.parameters(), *student.fc.parameters()}
        assert len(trained) == len(set(trained))
        assert set(trained) == {*method.parameters(), *student.parameters()} - after

    def test_the_number_of_epochs_may_be_set(self, toy):
        assert ab(toy, [(6, 4)], [(6, 4)], pretrain_epochs=7).pretraining().epochs == 7

    def test_no_module_is_trained_in_the_second_stage(self):
        assert networks()[1].param_groups() == []

    @pytest.mark.parametrize("name", ["ab", "ab+kd"])
    def test_connectors_run_in_train_mode_in_the_first_stage_only(self, name):
        _, method = networks(name=name)
        connectors = (method.host if name == "ab+kd" else method).connectors
        method.train(False)  # as the loop does for the first stage
        for module in method.pretraining().modules:
            module.train()
        assert all(module.training for module in connectors.modules() if isinstance(module, nn.BatchNorm2d))
        method.train()  # and for the second
        assert not any(module.training for module in connectors.modules())

    def test_first_stage_moves_what_it_trains_and_nothing_else(self):
        setting, method = networks()
        student, teacher, stage = setting.student.eval(), setting.teacher, method.pretraining()
        for module in stage.modules:
            module.train()
        before = {key: value.clone() for key, value in student.state_dict().items()}
        images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        parameters = [parameter for module in stage.modules for parameter in module.parameters()]
        with torch.no_grad():
            taught = teacher(images)
        batch = Batch(images, torch.arange(4), torch.arange(4), 1)
        method.pretrain_loss(batch, student(images), taught)["ab"].backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in method.parameters())
        assert all(parameter.grad is None for parameter in (*student.fc.parameters(), *teacher.parameters()))
        torch.optim.SGD(parameters, lr=0.1).step()
        same = {key for key, value in student.state_dict().items() if torch.equal(value, before[key])}
        assert same == {key for key in before if key.startswith(("bn1.", "fc."))}

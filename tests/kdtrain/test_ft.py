import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtrain import build
from kdtrain.config import ConfigError, DataConfig, MethodRef, Recipe, TeacherRef, TrialConfig
from kdtrain.methods.ft import factor_loss


def wave(shape, a, b):
    """sin(a n + b) for n = 0, 1, ... in row-major order, float64."""
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).view(shape)


def slow_factors(f, variant):
    """q of each image, as lists."""
    rows = []
    for image in f.flatten(2).tolist():
        if variant == "code":
            values = [sum(c[p] ** 2 for c in image) / len(image) for p in range(len(image[0]))]
        else:
            values = [value for c in image for value in c]
        norm = math.sqrt(sum(value**2 for value in values))
        rows.append([value / norm for value in values])
    return rows


def slow_loss(f_s, f_t, variant="code"):
    q_s, q_t = slow_factors(f_s, variant), slow_factors(f_t, variant)
    gaps = [abs(s - t) for row in zip(q_s, q_t, strict=True) for s, t in zip(*row, strict=True)]
    return sum(gaps) / len(gaps)


class TestFactorLoss:
    def test_golden_value(self, golden):
        assert factor_loss(golden.fs, golden.ft).item() == pytest.approx(0.019947238, rel=1e-7)

    def test_two_pixels_by_hand(self):
        # Mean squares (9, 0) -> (1, 0), and (12.5, 12.5) -> (1, 1) / sqrt 2.
        f_s, f_t = torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[3.0, 4.0]], [[4.0, 3.0]]]])
        expected = (1 - math.sqrt(0.5) + math.sqrt(0.5)) / 2
        assert factor_loss(f_s, f_t).item() == pytest.approx(expected)

    @pytest.mark.parametrize(("variant", "channels"), [("code", 9), ("paper", 5)])
    @pytest.mark.parametrize("batch", [1, 3])
    def test_equals_a_slow_loop(self, variant, channels, batch):
        f_s, f_t = wave((batch, 5, 4, 4), 0.7, 0.3), wave((batch, channels, 4, 4), 1.3, 0.1)
        assert factor_loss(f_s, f_t, variant).item() == pytest.approx(slow_loss(f_s, f_t, variant), rel=1e-10)

    @pytest.mark.parametrize("variant", ["code", "paper"])
    def test_the_higher_map_is_averaged_down(self, variant):
        f_s, high = wave((3, 5, 4, 4), 0.7, 0.3), wave((3, 5, 8, 8), 1.3, 0.1)
        low = high.view(3, 5, 4, 2, 4, 2).mean((3, 5))
        expected = pytest.approx(slow_loss(f_s, low, variant), rel=1e-10)
        assert factor_loss(f_s, high, variant).item() == expected
        assert factor_loss(high, f_s, variant).item() == expected

    @pytest.mark.parametrize("variant", ["code", "paper"])
    def test_scaled_maps_have_the_same_factors(self, golden, variant):
        scale = torch.linspace(0.5, 3, 8, dtype=torch.float64)[:, None, None, None]
        assert factor_loss(scale * golden.fs, golden.fs, variant).item() == pytest.approx(0, abs=1e-15)
        torch.testing.assert_close(
            factor_loss(golden.fs, scale * golden.ft, variant), factor_loss(golden.fs, golden.ft, variant)
        )

    def test_the_code_looks_at_no_sign_and_no_order_of_channels_but_the_paper_does(self, golden):
        for changed in (-golden.fs, golden.fs.flip(1)):
            assert factor_loss(changed, golden.fs).item() == pytest.approx(0, abs=1e-15)
            assert factor_loss(changed, golden.fs, "paper").item() > 0.01

    @pytest.mark.parametrize("variant", ["code", "paper"])
    def test_finite_for_maps_that_are_all_zero(self, golden, variant):
        f_s = torch.zeros_like(golden.fs, requires_grad=True)
        factor_loss(f_s, golden.ft, variant).backward()
        assert torch.isfinite(f_s.grad).all()


def ft(toy, maps_s=((5, 4),), maps_t=((6, 4),), **params):
    return toy.method("ft", params, toy.setting(maps_s=maps_s, maps_t=maps_t))


def encoded(weights, x, places, norms=()):
    """Convolutions with batch statistics where there is a norm, and leaky ReLU, written out."""
    for place in places:
        x = F.conv2d(x, weights[f"{place}.weight"], weights[f"{place}.bias"], padding=1)
        if place + 1 in norms:
            centred = x - x.mean((0, 2, 3), keepdim=True)
            x = centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        x = torch.maximum(x, 0.1 * x)
    return x


class TestModules:
    def test_shapes(self, toy):
        method = ft(toy, maps_s=[(9, 8), (5, 4)], maps_t=[(9, 8), (7, 4)])
        convolutions = {
            key: tuple(parameter.shape) for key, parameter in method.named_parameters() if parameter.dim() == 4
        }
        # int(7 / 2) = 3 factors. The weight of a transposed convolution has its inputs first.
        assert convolutions == {
            "paraphraser.encoder.0.weight": (7, 7, 3, 3),
            "paraphraser.encoder.2.weight": (3, 7, 3, 3),
            "paraphraser.encoder.4.weight": (3, 3, 3, 3),
            "paraphraser.decoder.0.weight": (3, 3, 3, 3),
            "paraphraser.decoder.2.weight": (3, 7, 3, 3),
            "paraphraser.decoder.4.weight": (7, 7, 3, 3),
            "translator.0.weight": (5, 5, 3, 3),
            "translator.3.weight": (3, 5, 3, 3),
            "translator.6.weight": (3, 3, 3, 3),
        }
        norms = {key for key, module in method.named_modules() if isinstance(module, nn.BatchNorm2d)}
        assert norms == {"translator.1", "translator.4", "translator.7"}

    def test_parameters_of_a_published_pair(self, toy):
        # resnet32x4 -> resnet8x4: 256 channels and 128 factors, all convolutions 3 x 3 with bias.
        method = ft(toy, maps_s=[(256, 8)], maps_t=[(256, 8)])
        encoder = 9 * (256 * 256 + 256 * 128 + 128 * 128) + 256 + 128 + 128
        decoder = 9 * (128 * 128 + 128 * 256 + 256 * 256) + 128 + 256 + 256
        assert sum(p.numel() for p in method.paraphraser.parameters()) == encoder + decoder
        assert sum(p.numel() for p in method.translator.parameters()) == encoder + 2 * (256 + 128 + 128)

    def test_paraphraser_reconstructs(self, toy):
        paraphraser, f = ft(toy).paraphraser, wave((2, 6, 4, 4), 0.23, 0.4)
        x = encoded(paraphraser.encoder.state_dict(), f, (0, 2, 4))
        weights = paraphraser.decoder.state_dict()
        for place in (0, 2, 4):
            x = F.conv_transpose2d(x, weights[f"{place}.weight"], weights[f"{place}.bias"], padding=1)
            x = torch.maximum(x, 0.1 * x)
        torch.testing.assert_close(paraphraser(f), x)
        assert x.shape == f.shape

    @pytest.mark.parametrize(("rate", "factors"), [(0.5, 3), (1.0, 6), (1.5, 9), (0.01, 1)])
    def test_rate_is_the_share_of_channels(self, toy, rate, factors):
        method = ft(toy, rate=rate)
        assert method.paraphraser.encoder(torch.zeros(1, 6, 4, 4).double()).shape[1] == factors
        assert method.translator(torch.zeros(2, 5, 4, 4).double()).shape[1] == factors


class TestTerms:
    @pytest.mark.parametrize(
        ("params", "beta", "variant"),
        [({}, 200.0, "code"), ({"beta": 3.0}, 3.0, "code"), ({"variant": "paper"}, 200.0, "paper")],
    )
    def test_second_stage_compares_the_last_maps(self, golden, slow, toy, params, beta, variant):
        method = ft(toy, maps_s=[(6, 8), (6, 4)], maps_t=[(6, 8), (6, 4)], **params)
        student = toy.outputs(golden.zs, stages=[golden.ftb, golden.fs])
        teacher = toy.outputs(golden.zt, stages=[golden.ftb, golden.ft])
        terms = method.loss(toy.batch(golden.y), student, teacher)
        with torch.no_grad():
            f_s = encoded(method.translator.state_dict(), golden.fs, (0, 3, 6), norms=(1, 4, 7))
            f_t = encoded(method.paraphraser.encoder.state_dict(), golden.ft, (0, 2, 4))
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(
            {
                "ce": slow.mean(slow.cross_entropies(golden.zs, golden.y)),
                "ft": beta * slow_loss(f_s, f_t, variant),
            }
        )

    def test_first_stage_is_the_error_of_the_reconstruction(self, golden, toy):
        method = ft(toy)
        teacher = toy.outputs(stages=[golden.ftb, golden.ft])
        terms = method.pretrain_loss(toy.batch(golden.y), None, teacher)
        gaps = (method.paraphraser(golden.ft) - golden.ft).flatten().tolist()
        expected = {"reconstruction": sum(gap**2 for gap in gaps) / len(gaps)}
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)

    @pytest.mark.parametrize(("height_s", "height_t"), [(4, 8), (8, 4)])
    def test_maps_of_other_heights(self, golden, toy, height_s, height_t):
        method = ft(toy, maps_s=[(5, height_s)], maps_t=[(6, height_t)])
        student = toy.outputs(golden.zs, stages=[wave((8, 5, height_s, height_s), 0.3, 0)])
        teacher = toy.outputs(golden.zt, stages=[wave((8, 6, height_t, height_t), 0.3, 0)])
        assert torch.isfinite(method.loss(toy.batch(golden.y), student, teacher)["ft"])

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"variant": "code2"}, r"^ft\.variant should be 'code' or 'paper', but got 'code2'\.$"),
            ({"rate": 0}, r"^ft\.rate should be greater than 0, but got 0\.$"),
            ({"pretrain_epochs": 0}, r"^ft\.pretrain_epochs should be greater than 0, but got 0\.$"),
            ({"pretrain_epochs": 1.5}, r"^ft\.pretrain_epochs must be a whole number of epochs or a fraction"),
        ],
    )
    def test_wrong_parameters(self, toy, params, message):
        with pytest.raises(ConfigError, match=message):
            ft(toy, **params)


def networks(student, teacher, name="ft", **params):
    """Real networks and the method, for fashion_mini."""
    trial = TrialConfig(
        data=DataConfig(dataset="fashion_mini"), train=Recipe(epochs=240), student=student,
        teacher=TeacherRef(model=teacher, id="0" * 16), method=MethodRef(name=name, params=params), seed=0,
    )  # fmt: skip
    with torch.device("meta"):
        return build.networks(trial, torch.device("meta"), lambda model, ref: None)


class TestStages:
    def test_paraphraser_trains_for_an_eighth_of_the_epochs_without_the_student(self, toy):
        method = ft(toy)
        stage = method.pretraining()
        assert (stage.epochs, stage.milestones, stage.student) == (30, (), False)
        assert stage.modules == [method.paraphraser]
        assert ft(toy, pretrain_epochs=4).pretraining().epochs == 4

    @pytest.mark.parametrize(
        ("student", "teacher", "params", "lr"),
        [
            ("resnet8", "resnet14", {}, 0.01),
            ("resnet8x4", "resnet14", {}, 0.01),
            ("wrn_16_1", "resnet14", {}, 0.01),
            ("vgg8", "resnet14", {}, None),
            ("resnet8", "vgg8", {"pretrain_lr": 0.2}, 0.2),
            ("vgg8", "vgg13", {"pretrain_lr": 0.2}, 0.2),
        ],
    )
    def test_learning_rate_of_the_first_stage(self, student, teacher, params, lr):
        assert networks(student, teacher, **params)[1].pretraining().lr == lr

    def test_only_the_translator_trains_in_the_second_stage(self, toy):
        method = ft(toy)
        (group,) = method.param_groups()
        assert set(group) == {"params"}
        assert len(group["params"]) == len(set(group["params"]))
        assert set(group["params"]) == set(method.translator.parameters())

    @pytest.mark.parametrize("name", ["ft", "ft+kd"])
    def test_paraphraser_is_in_train_mode_in_the_first_stage_only(self, name):
        _, method = networks("resnet8", "resnet14", name)
        part = method.host if name == "ft+kd" else method
        method.train(False)  # as the loop does for the first stage
        for module in method.pretraining().modules:
            module.train()
        assert all(module.training for module in part.paraphraser.modules())
        assert not any(module.training for module in part.translator.modules())
        method.train()  # and for the second
        assert not any(module.training for module in part.paraphraser.modules())
        assert all(module.training for module in part.translator.modules())

    def test_gradients_of_each_stage(self, golden, toy):
        method = ft(toy, maps_s=[(6, 4)])
        f_s, f_t = golden.fs.clone().requires_grad_(), golden.ft.clone().requires_grad_()
        student, teacher = toy.outputs(golden.zs, stages=[f_s]), toy.outputs(golden.zt, stages=[f_t])
        method.loss(toy.batch(golden.y), student, teacher)["ft"].backward()
        assert f_s.grad.abs().sum() > 0
        assert f_t.grad is None
        assert all(p.grad is None for p in method.paraphraser.parameters())
        # A norm takes a convolution's bias away again: its gradient is zero but for rounding.
        trained = {key: p.grad for key, p in method.translator.named_parameters()}
        assert all(grad is not None for grad in trained.values())
        assert all(grad.abs().sum() > 1e-6 for key, grad in trained.items() if key.endswith("weight"))

        method.zero_grad(set_to_none=True)
        method.pretrain_loss(toy.batch(golden.y), None, toy.outputs(stages=[golden.ft]))["reconstruction"].backward()
        assert all(p.grad.abs().sum() > 0 for p in method.paraphraser.parameters())
        assert all(p.grad is None for p in method.translator.parameters())

    def test_a_saved_paraphraser_gives_the_same_factors(self, golden, toy):
        old, new = ft(toy), ft(toy)
        with torch.no_grad():
            for parameter in old.paraphraser.parameters():
                parameter.add_(0.1)
        new.load_state_dict(old.state_dict())
        torch.testing.assert_close(new.paraphraser(golden.ft), old.paraphraser(golden.ft), rtol=0, atol=0)

import math

import pytest
import torch
import torch.nn.functional as F

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods.reviewkd import Fusion, hcl

MAPS_S = [(5, 8), (7, 4), (9, 2)]  # with the vector of 6: handed up 1 -> 4 -> 2 -> 8, the teacher's heights
MAPS_T = [(4, 8), (8, 2), (3, 4)]
D_S, D_T = 6, 10


def review(toy, epochs=240, maps_s=MAPS_S, maps_t=MAPS_T, d_s=D_S, d_t=D_T, **params):
    return toy.method("reviewkd", params, toy.setting(d_s, d_t, maps_s, maps_t, epochs=epochs))


def random_outputs(toy, b, d, maps, stages):
    """Outputs whose maps are their stages, or what comes before the last ReLU."""
    logits, pooled = torch.randn(b, 10, dtype=torch.float64), torch.randn(b, d, dtype=torch.float64)
    features = [torch.randn(b, c, h, h, dtype=torch.float64) for c, h in maps]
    return toy.outputs(logits, pooled, features if stages else (), () if stages else features)


def networks(toy, b=3):
    torch.manual_seed(1)
    return random_outputs(toy, b, D_S, MAPS_S, True), random_outputs(toy, b, D_T, MAPS_T, False)


def slow_pool(rows, size):
    """Adaptive average pooling of a list of rows: bin i reaches from floor(i h / n) to ceil((i + 1) h / n)."""
    h, w = len(rows), len(rows[0])
    bins = [[range(i * n // size, -(-(i + 1) * n // size)) for i in range(size)] for n in (h, w)]
    return [[sum(rows[i][j] for i in ys for j in xs) / (len(ys) * len(xs)) for xs in bins[1]] for ys in bins[0]]


def slow_hcl(f_s, f_t):
    def mse(size):
        squares = []
        for sample_s, sample_t in zip(f_s.tolist(), f_t.tolist(), strict=True):
            for map_s, map_t in zip(sample_s, sample_t, strict=True):
                pair = (map_s, map_t) if size is None else (slow_pool(map_s, size), slow_pool(map_t, size))
                squares += [(a - b) ** 2 for rows in zip(*pair, strict=True) for a, b in zip(*rows, strict=True)]
        return sum(squares) / len(squares)

    sizes = [None, *(size for size in (4, 2, 1) if size < f_s.shape[2])]
    weights = [0.5**i for i in range(len(sizes))]
    return sum(w * mse(size) for w, size in zip(weights, sizes, strict=True)) / sum(weights)


def slow_norm(x, norm):
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def slow_resize(x, size):
    """The nearest pixel, at floor(i h / size)."""
    h = x.shape[2]
    places = [i * h // size for i in range(size)]
    return x[:, :, places][:, :, :, places]


def slow_review(method, student, teacher):
    """The sum over levels of the HCL, level by level from the deepest, in the authors' order of operations."""
    total, handed = 0.0, None
    f_s = [student.pooled[:, :, None, None], *student.stages[::-1]]
    f_t = [teacher.pooled[:, :, None, None], *teacher.preact[::-1]]
    for fusion, s, t in zip(method.fusions, f_s, f_t, strict=True):
        x = slow_norm(torch.einsum("oc,bchw->bohw", fusion.inward[0].weight[:, :, 0, 0], s), fusion.inward[1])
        if handed is not None:
            y = slow_resize(handed, s.shape[2])
            z = torch.einsum("oc,bchw->bohw", fusion.gate.weight[:, :, 0, 0], torch.cat([x, y], 1))
            gates = 1 / (1 + torch.exp(-z - fusion.gate.bias[:, None, None]))
            x = x * gates[:, 0][:, None] + y * gates[:, 1][:, None]
        handed = slow_resize(x, t.shape[2])
        total += slow_hcl(slow_norm(F.conv2d(handed, fusion.outward[0].weight, padding=1), fusion.outward[1]), t)
    return total


class TestHcl:
    def test_golden_value(self, golden):
        vectors = (v[:, :, None, None] for v in (golden.vs, golden.vt))
        assert (hcl(golden.fs, golden.ft) + hcl(*vectors)).item() == pytest.approx(1.1889633, rel=1e-7)

    @pytest.mark.parametrize(
        "shape",
        [
            (2, 3, 8, 8),
            (1, 2, 7, 7),
            (2, 2, 6, 6),
            (1, 3, 4, 4),
            (2, 3, 2, 2),
            (2, 3, 1, 1),
            (1, 2, 8, 6),
            (1, 2, 12, 5),
        ],
    )
    def test_equals_slow_loops(self, shape):
        torch.manual_seed(0)
        f_s, f_t = torch.randn(2, *shape, dtype=torch.float64)
        assert hcl(f_s, f_t).item() == pytest.approx(slow_hcl(f_s, f_t), rel=1e-10)

    def test_by_hand(self):
        # Squares 1, 9, 1, 1 of the map (mean 3), and (1 + 3 - 1 - 1) / 4 = 1/2 of the mean: (3 + 1/2 * 1/4) / 1.5.
        f_s = torch.tensor([[[[1.0, 3.0], [-1.0, -1.0]]]])
        assert hcl(f_s, torch.zeros(1, 1, 2, 2)).item() == pytest.approx(3.125 / 1.5)

    def test_a_constant_difference_weighs_the_same_at_every_size(self):
        f = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        assert hcl(f + 2, f).item() == pytest.approx(4)
        assert hcl(f, f).item() == 0


class TestFusion:
    def test_convolutions_start_as_the_authors_do(self):
        torch.manual_seed(0)
        fusion = Fusion(32, 16, 8, deepest=False)
        # Kaiming uniform with a = 1: up to sqrt(3 / fan_in).
        for conv, fan_in in ((fusion.inward[0], 32), (fusion.outward[0], 16 * 9)):
            assert conv.bias is None
            assert conv.weight.abs().max().item() == pytest.approx(math.sqrt(3 / fan_in), rel=0.03)
            assert conv.weight.abs().max() <= math.sqrt(3 / fan_in)
        assert tuple(fusion.gate.weight.shape) == (2, 32, 1, 1)
        assert fusion.gate.bias is not None

    @pytest.mark.parametrize(("bias", "expected"), [((50.0, -50.0), "own"), ((-50.0, 50.0), "deeper")])
    def test_the_gates_choose_between_the_own_map_and_the_deeper_one(self, bias, expected):
        torch.manual_seed(0)
        fusion = Fusion(3, 4, 5, deepest=False).double()
        with torch.no_grad():
            fusion.gate.bias.copy_(torch.tensor(bias))
        f_s, deeper = torch.randn(2, 3, 6, 6).double(), torch.randn(2, 4, 3, 3).double()
        _, handed = fusion(f_s, deeper, (6, 6))
        maps = {"own": fusion.inward(f_s), "deeper": slow_resize(deeper, 6)}
        torch.testing.assert_close(handed, maps[expected])

    def test_batches_of_one_image(self):
        fusion = Fusion(3, 4, 5, deepest=True).train()
        before = {name: buffer.clone() for name, buffer in fusion.named_buffers()}
        f_s = torch.randn(1, 3, 1, 1, requires_grad=True)
        out, handed = fusion(f_s, None, (1, 1))
        # At 1 x 1 the normalisation is by the running mean 0 and variance 1, which stay.
        torch.testing.assert_close(handed, fusion.inward[0](f_s), atol=1e-4, rtol=1e-4)
        assert all(torch.equal(buffer, before[name]) for name, buffer in fusion.named_buffers())
        out.square().sum().backward()
        assert f_s.grad.abs().sum() > 0


class TestMethod:
    # Channels of student and teacher from deep to shallow, and the width within, as in the authors' tables.
    @pytest.mark.parametrize(
        ("d_s", "maps_s", "d_t", "maps_t", "c_s", "mid", "c_t"),
        [
            (  # wrn_40_2 -> ShuffleV1
                960, [(240, 16), (480, 8), (960, 4)], 128, [(32, 32), (64, 16), (128, 8)],
                [960, 960, 480, 240], 512, [128, 128, 64, 32],
            ),
            (  # resnet32x4 -> ShuffleV2
                1024, [(116, 16), (232, 8), (464, 4)], 256, [(64, 32), (128, 16), (256, 8)],
                [1024, 464, 232, 116], 512, [256, 256, 128, 64],
            ),
            (  # resnet56 -> resnet20
                64, [(16, 32), (32, 16), (64, 8)], 64, [(16, 32), (32, 16), (64, 8)],
                [64, 64, 32, 16], 64, [64, 64, 32, 16],
            ),
        ],
    )  # fmt: skip
    def test_channels_of_published_pairs(self, toy, d_s, maps_s, d_t, maps_t, c_s, mid, c_t):
        fusions = review(toy, maps_s=maps_s, maps_t=maps_t, d_s=d_s, d_t=d_t).fusions
        assert [fusion.inward[0].in_channels for fusion in fusions] == c_s
        assert [fusion.inward[0].out_channels for fusion in fusions] == [mid] * 4
        assert [fusion.outward[0].out_channels for fusion in fusions] == c_t
        assert [fusion.gate is None for fusion in fusions] == [True, False, False, False]

    @pytest.mark.parametrize(
        ("maps_s", "maps_t", "c_s", "c_t"),
        [(MAPS_S[1:], MAPS_T, [6, 9, 7], [10, 3, 8]), (MAPS_S, MAPS_T[2:], [6, 9], [10, 3])],
    )
    def test_shallow_levels_that_one_network_lacks_are_left_out(self, toy, maps_s, maps_t, c_s, c_t):
        method = review(toy, maps_s=maps_s, maps_t=maps_t)
        assert [fusion.inward[0].in_channels for fusion in method.fusions] == c_s
        assert [fusion.outward[0].out_channels for fusion in method.fusions] == c_t
        student, teacher = random_outputs(toy, 2, D_S, maps_s, True), random_outputs(toy, 2, D_T, maps_t, False)
        found = method.loss(toy.batch(torch.tensor([0, 1]), 21), student, teacher)["hcl"].item()
        levels = len(c_s) - 1
        student = student._replace(stages=student.stages[-levels:])
        teacher = teacher._replace(preact=teacher.preact[-levels:])
        assert found == pytest.approx(5 * slow_review(method, student, teacher))

    @pytest.mark.parametrize(("params", "beta"), [({}, 5.0), ({"beta": 0.6}, 0.6)])
    def test_terms_equal_the_levels_one_by_one(self, toy, slow, params, beta):
        method = review(toy, **params)
        student, teacher = networks(toy)
        labels = torch.tensor([1, 0, 2])
        terms = method.loss(toy.batch(labels, 21), student, teacher)
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(
            {
                "ce": slow.mean(slow.cross_entropies(student.logits, labels)),
                "hcl": beta * slow_review(method, student, teacher),
            }
        )

    @pytest.mark.parametrize(
        ("params", "epochs", "factors"),
        [
            ({}, 240, {1: 0.0, 2: 0.05, 11: 0.5, 21: 1.0, 240: 1.0}),  # 20 epochs, counted from 0
            ({}, 24, {1: 0.0, 2: 0.5, 3: 1.0}),  # 2 epochs
            ({"warmup": 4}, 24, {1: 0.0, 2: 0.25, 5: 1.0}),
            ({"warmup": 0}, 240, {1: 1.0, 2: 1.0}),
        ],
    )
    def test_the_weight_grows_in_the_warm_up(self, toy, params, epochs, factors):
        method = review(toy, epochs, **params)
        student, teacher = networks(toy)
        labels = torch.tensor([1, 0, 2])
        full = 5 * slow_review(method, student, teacher)
        for epoch, factor in factors.items():
            term = method.loss(toy.batch(labels, epoch), student, teacher)["hcl"]
            assert term.item() == pytest.approx(factor * full), epoch

    def test_gradients_reach_student_and_every_fusion(self, toy):
        method = review(toy)
        student, teacher = networks(toy)
        inputs = {"pooled": student.pooled} | {f"stage {i}": stage for i, stage in enumerate(student.stages)}
        for tensor in inputs.values():
            tensor.requires_grad_()
        parameters = dict(method.named_parameters())
        method.loss(toy.batch(torch.tensor([1, 0, 2]), 21), student, teacher)["hcl"].backward()
        for name, tensor in {**parameters, **inputs}.items():
            assert tensor.grad is not None, name
            assert tensor.grad.abs().sum() > 1e-9, name
        (group,) = method.param_groups()
        assert set(group) == {"params"}
        assert set(group["params"]) == set(parameters.values())

    @pytest.mark.parametrize("b", [1, 2])
    def test_small_last_batches(self, toy, b):
        student, teacher = networks(toy, b)
        term = review(toy).loss(toy.batch(torch.arange(b), 21), student, teacher)["hcl"]
        assert torch.isfinite(term)

    def test_running_statistics_are_saved(self, toy):
        method, fresh = review(toy), review(toy)
        student, teacher = networks(toy)
        method.loss(toy.batch(torch.tensor([1, 0, 2])), student, teacher)
        assert not torch.equal(method.fusions[3].outward[1].running_mean, fresh.fusions[3].outward[1].running_mean)
        fresh.load_state_dict(method.state_dict())
        assert torch.equal(method.fusions[3].outward[1].running_mean, fresh.fusions[3].outward[1].running_mean)

    def test_builds_without_storage(self, toy):
        with torch.device("meta"):
            method = review(toy)
        assert all(parameter.is_meta for parameter in method.parameters())

    @pytest.mark.parametrize(("params", "trains"), [({}, True), ({"teacher_bn": "eval"}, False)])
    def test_the_teacher_runs_in_train_mode_as_the_authors_did(self, toy, params, trains):
        assert review(toy, **params).teacher_trains is trains

    def test_needs_and_nesterov(self):
        ref = MethodRef(name="reviewkd")
        assert methods.needs(ref) == {"stages", "preact", "pooled"}
        assert methods.nesterov(ref)

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"beta": -1.0}, r"^reviewkd\.beta should be greater than or equal to 0, but got -1\.0\.$"),
            ({"warmup": 1.5}, r"^reviewkd\.warmup .*whole number of epochs or a fraction"),
            ({"teacher_bn": "off"}, r"^reviewkd\.teacher_bn should be 'eval' or 'train', but got 'off'\.$"),
        ],
    )
    def test_bad_parameters(self, toy, params, message):
        with pytest.raises(ConfigError, match=message):
            review(toy, **params)

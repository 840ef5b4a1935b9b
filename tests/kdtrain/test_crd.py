import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from kdtrain.config import ConfigError
from kdtrain.methods.crd import crd_loss, distinct_negatives, nce_loss, repeated_negatives, sum_log1p

DRAWN = torch.tensor([[2, 0, 1, 3, 4, 5], [7, 8, 9, 10, 12, 13], [11, 14, 15, 16, 17, 18]])
LABELS = torch.tensor([2] * 5 + [0] * 3 + [3] + [2] * 2 + [0] * 9)  # 20 images; there is no class 1
IN_ORDER, COUNTS = LABELS.sort().values, torch.bincount(LABELS, minlength=10)  # of the rows of the memories


def wave(shape, a, b):
    """sin(a n + b) for n = 0, 1, ... in row-major order."""
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).view(shape)


def unit(values):
    return values / values.square().sum(1, keepdim=True).sqrt()


@pytest.fixture
def memories():
    return 0.3 * wave((20, 4), 0.19, 0.7), 0.3 * wave((20, 4), 0.41, 0.2)


@pytest.fixture
def anchors():
    return unit(wave((3, 4), 0.31, 0.3)), unit(wave((3, 4), 0.53, 0.9))


def slow_nce(h, memory, drawn, z=0.0, tau=0.07):
    """The loss as written in the paper's code, one number at a time, and the constant."""
    h, memory, drawn = h.tolist(), memory.tolist(), drawn.tolist()
    n, m = len(memory), len(drawn[0]) - 1
    o = [
        [math.exp(sum(a * b for a, b in zip(memory[i], h[b], strict=True)) / tau) for i in row]
        for b, row in enumerate(drawn)
    ]
    if z == 0:
        z = n * sum(map(sum, o)) / (len(o) * (m + 1))
    noise, total = m / n, 0.0
    for row in o:
        total += math.log((row[0] / z) / (row[0] / z + noise + 1e-7))
        total += sum(math.log(noise / (x / z + noise + 1e-7)) for x in row[1:])
    return -total / len(o), z


def random_case(seed=0, n=30, batch=5, m=7, d=6):
    generator = torch.Generator().manual_seed(seed)
    h_s, h_t, m_s, m_t = (
        unit(torch.randn(rows, d, generator=generator, dtype=torch.float64)) for rows in (batch, batch, n, n)
    )
    drawn = torch.stack([torch.randperm(n, generator=generator)[: m + 1] for _ in range(batch)])
    return h_s, h_t, m_s, m_t, drawn


def crd(toy, labels=LABELS, indices=None, d_s=16, d_t=16, num_classes=10, **params):
    """The method with its memories, for training images with these labels."""
    torch.manual_seed(1)
    defaults = {"negatives": 5, "dim": 4}
    method = toy.method("crd", {**defaults, **params}, toy.setting(d_s=d_s, d_t=d_t, num_classes=num_classes))
    method.allocate(torch.arange(len(labels)) if indices is None else indices, labels)
    return method


def batch_of(toy, labels, indices, epoch=1):
    indices = torch.tensor(indices)
    return toy.batch(labels[indices], epoch)._replace(indices=indices)


def direct(method, memories=None):
    """A method whose h are the (normalised) pooled features, with these memories."""
    for embed in (method.embed_s, method.embed_t):
        torch.nn.init.eye_(embed.weight)
        torch.nn.init.zeros_(embed.bias)
    if memories is not None:
        method.memory_s.copy_(memories[0])
        method.memory_t.copy_(memories[1])
    return method


def sides(toy, golden, h_s, h_t):
    rows = slice(len(h_s))
    return toy.outputs(golden.zs[rows], h_s), toy.outputs(golden.zt[rows], h_t)


class TestLoss:
    def test_golden_values(self, memories, anchors):
        (m_s, m_t), (h_s, h_t) = memories, anchors
        of_student, z_s = nce_loss(h_s, m_t, DRAWN, torch.tensor(0.0), 0.07)
        of_teacher, z_t = nce_loss(h_t, m_s, DRAWN, torch.tensor(0.0), 0.07)
        values = [value.item() for value in (z_s, z_t, of_student, of_teacher)]
        assert values == pytest.approx([5924.4832, 6161.5235, 12.418123, 7.4697132], rel=1e-7)
        loss, z = crd_loss(h_s, h_t, m_s, m_t, DRAWN, torch.zeros(2), 0.07)
        assert loss.item() == pytest.approx(19.887837, rel=1e-7)
        assert z.tolist() == [z_s.item(), z_t.item()]

    @pytest.mark.parametrize("z", [(0.0, 0.0), (3.0, 500.0)])
    @pytest.mark.parametrize("shape", [{}, {"n": 11, "batch": 1, "m": 1}, {"n": 40, "batch": 9, "m": 39, "d": 3}])
    def test_equals_slow_loops(self, shape, z):
        h_s, h_t, m_s, m_t, drawn = random_case(**shape)
        loss, constants = crd_loss(h_s, h_t, m_s, m_t, drawn, torch.tensor(z, dtype=torch.float64), 0.07)
        of_student, z_s = slow_nce(h_s, m_t, drawn, z[0])
        of_teacher, z_t = slow_nce(h_t, m_s, drawn, z[1])
        assert loss.item() == pytest.approx(of_student + of_teacher, rel=1e-11)
        assert constants.tolist() == pytest.approx([z_s, z_t], rel=1e-12)

    def test_images_drawn_twice_count_twice(self):
        h_s, _, _, m_t, drawn = random_case()
        drawn[:, 3] = drawn[:, 2]
        loss, _ = nce_loss(h_s, m_t, drawn, torch.tensor(9.0), 0.2)
        assert loss.item() == pytest.approx(slow_nce(h_s, m_t, drawn, 9.0, 0.2)[0], rel=1e-12)

    def test_gradient_equals_that_of_gathered_rows(self):
        h, _, _, memory, drawn = random_case()
        h = (2 * h).requires_grad_()
        (gradient,) = torch.autograd.grad(nce_loss(h, memory, drawn, torch.tensor(50.0), 0.07)[0], h)
        o = torch.einsum("bkd,bd->bk", memory[drawn], h).div(0.07).exp() / 50
        noise = 7 / 30
        value = (o[:, 0] / (o[:, 0] + noise + 1e-7)).log() + (noise / (o[:, 1:] + noise + 1e-7)).log().sum(1)
        torch.testing.assert_close(gradient, torch.autograd.grad(-value.mean(), h)[0])

    def test_no_gradient_through_the_constants(self):
        # With z kept from the first call, finite differences see z as the constant that it is.
        h, _, _, memory, drawn = random_case(batch=2)
        _, z = nce_loss(h, memory, drawn, torch.tensor(0.0), 0.07)
        leaf = h.clone().requires_grad_()
        (first,) = torch.autograd.grad(nce_loss(leaf, memory, drawn, torch.tensor(0.0), 0.07)[0], leaf)
        assert torch.autograd.gradcheck(lambda h: nce_loss(h, memory, drawn, z, 0.07)[0], leaf)
        (later,) = torch.autograd.grad(nce_loss(leaf, memory, drawn, z, 0.07)[0], leaf)
        torch.testing.assert_close(first, later)

    def test_the_order_of_the_negatives_does_not_matter(self):
        h, _, _, memory, drawn = random_case()
        mixed = torch.cat([drawn[:, :1], drawn[:, 1:].flip(1)], 1)
        z = torch.tensor(7.0)
        torch.testing.assert_close(nce_loss(h, memory, drawn, z, 0.07), nce_loss(h, memory, mixed, z, 0.07))

    def test_falls_as_the_positive_comes_nearer_and_rises_with_a_negative(self):
        memory, drawn = torch.eye(3, dtype=torch.float64), torch.tensor([[0, 1, 2]])
        losses = [
            nce_loss(h[None], memory, drawn, torch.tensor(100.0), 0.5)[0].item()
            for h in torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 1.0, 0]], dtype=torch.float64)
        ]
        assert losses == sorted(losses)
        assert losses[0] < losses[-1]

    def test_float32_is_exact_for_many_negatives(self):
        # The usual size: 16384 terms near 0 would drown in log(m/n) if the logarithms were taken one by one.
        h_s, _, _, m_t, drawn = random_case(n=20_000, batch=2, m=16_384, d=8)
        exact, _ = nce_loss(h_s, m_t, drawn, torch.tensor(0.0), 0.07)
        single, _ = nce_loss(h_s.float(), m_t.float(), drawn, torch.tensor(0.0), 0.07)
        assert single.item() == pytest.approx(exact.item(), rel=3e-6)


class TestSumOfLogarithms:
    @pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 9, 16, 1001])
    @pytest.mark.parametrize("scale", [1e-7, 1.0, 1e6])
    def test_equals_a_loop(self, width, scale):
        x = scale * torch.rand(3, width, generator=torch.Generator().manual_seed(width), dtype=torch.float32)
        expected = [math.fsum(math.log1p(value) for value in row) for row in x.tolist()]
        assert sum_log1p(x).tolist() == pytest.approx(expected, rel=1e-8)

    def test_large_numbers_do_not_overflow(self):
        largest = torch.finfo(torch.float32).max
        assert sum_log1p(torch.full((1, 20), largest)).item() == pytest.approx(20 * math.log(largest), rel=1e-12)

    def test_argument_stays(self):
        x = torch.tensor([[0.5, 1.0, 3.0]], dtype=torch.float64)
        assert sum_log1p(x).item() == pytest.approx(math.log(1.5 * 2 * 4), rel=1e-14)
        assert x.tolist() == [[0.5, 1.0, 3.0]]


class TestNegatives:
    OWN = torch.tensor([0, 2, 3, 2, 0, 3, 3])

    def distinct(self, own, k):
        return distinct_negatives(own, COUNTS, 20, k)

    def repeated(self, own, k):
        return repeated_negatives(own, COUNTS, 20, k)

    def test_are_of_other_classes(self):
        torch.manual_seed(0)
        for negatives in (self.distinct(self.OWN, 8), self.repeated(self.OWN, 500)):
            assert negatives.shape[0] == len(self.OWN)
            assert not (IN_ORDER[negatives] == self.OWN[:, None]).any()
            assert negatives.min() >= 0

    def test_distinct_ones_are_distinct(self):
        torch.manual_seed(0)
        negatives = self.distinct(self.OWN, 8)  # class 0 has 12 of the 20 images
        assert [len(set(row)) for row in negatives.tolist()] == [8] * 7

    def test_published_number(self):
        torch.manual_seed(0)
        own, counts = torch.tensor([0, 57, 99, 57]), torch.full((100,), 500)
        for row, label in zip(distinct_negatives(own, counts, 50_000, 16_384), own, strict=True):
            assert len(row.unique()) == len(row) == 16_384
            assert not (row.div(500, rounding_mode="floor") == label).any()
            assert row.min() >= 0
            assert row.max() < 50_000

    def test_all_of_the_others_if_as_many_are_asked_for(self):
        torch.manual_seed(0)
        (row,) = self.distinct(torch.tensor([0]), 8).tolist()
        assert sorted(row) == (IN_ORDER != 0).nonzero()[:, 0].tolist()

    @pytest.mark.parametrize("label", [0, 2, 3])
    @pytest.mark.parametrize("kind", ["distinct", "repeated"])
    def test_all_images_of_other_classes_are_equally_likely(self, kind, label):
        torch.manual_seed(0)
        drawn = getattr(self, kind)(torch.full((8000,), label), 1)
        counts = torch.bincount(drawn.flatten(), minlength=20)[label != IN_ORDER]
        assert counts.sum() == 8000
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3

    # Of few rows all are candidates, of 140 not: then their number and their places are random, too.
    @pytest.mark.parametrize(("counts", "sets"), [((2, 2, 2), 6), ((5, 30, 15), 190)])
    def test_sets_are_equally_likely(self, counts, sets):
        # 2 of the 4 (20) images outside class 1.
        torch.manual_seed(0)
        own, n = torch.ones(100 * sets, dtype=torch.int64), sum(counts)
        pairs = distinct_negatives(own, torch.tensor(counts), n, 2).sort(1).values
        _, times = torch.unique(pairs, dim=0, return_counts=True)
        assert len(times) == sets
        assert stats.chisquare(times.numpy()).pvalue > 1e-3

    @pytest.mark.parametrize("k", [1, 3, 40])
    @pytest.mark.parametrize("part", [slice(0, 60), slice(1, None, 2), slice(110, 170), slice(250, None)])
    def test_number_in_any_part_is_hypergeometric(self, k, part):
        # Rows 120..159 are of the own class: 260 others.
        torch.manual_seed(0)
        own = torch.ones(20_000, dtype=torch.int64)
        drawn = distinct_negatives(own, torch.tensor([120, 40, 140]), 300, k)
        inside = torch.zeros(300, dtype=torch.bool)
        inside[part] = True
        members = int(inside.sum()) - int(inside[120:160].sum())
        times = torch.bincount(inside[drawn].sum(1), minlength=k + 1).numpy()
        expected = 20_000 * stats.hypergeom(260, members, k).pmf(range(k + 1))
        often = expected > 5
        observed, expected = (np.append(x[often][1:], x[often][0] + x[~often].sum()) for x in (times, expected))
        assert stats.chisquare(observed, expected).pvalue > 1e-3

    def test_samples_are_drawn_independently(self):
        torch.manual_seed(0)
        same = torch.zeros(2, dtype=torch.int64)
        for rows in (self.distinct(same, 4), self.repeated(same, 30)):
            assert rows[0].sort().values.tolist() != rows[1].sort().values.tolist()


class TestAllocation:
    @pytest.mark.parametrize(
        ("params", "repeats"),
        [
            ({"negatives": 8}, False),  # 12 of the 20 images are of class 0
            ({"negatives": 9}, True),
            ({"negatives": 8, "replacement": True}, True),
            ({"negatives": 9, "replacement": True}, True),
        ],
    )
    def test_negatives_repeat_only_where_they_must(self, toy, golden, params, repeats):
        method = crd(toy, **params)
        drawn = method._drawn(torch.tensor([5, 0]), torch.tensor([0, 2]))
        assert drawn.shape == (2, params["negatives"] + 1)
        seen = {len(set(method._drawn(torch.tensor([5]), torch.tensor([0]))[0].tolist())) for _ in range(40)}
        assert (seen != {params["negatives"] + 1}) is repeats

    @pytest.mark.parametrize("replacement", [True, False])
    def test_one_class_alone_has_no_negatives(self, toy, replacement):
        message = r"^crd needs training images of two classes or more, but got 6 of one\.$"
        with pytest.raises(ConfigError, match=message):
            crd(toy, torch.full((6,), 3), negatives=2, replacement=replacement)

    def test_memories_are_uniform_and_of_the_subsets_size(self, toy):
        method = crd(toy, torch.arange(500) % 10, dim=12)
        rows = torch.cat([method.memory_s.flatten(), method.memory_t.flatten()])
        assert method.memory_s.shape == method.memory_t.shape == (500, 12)
        # U(-a, a) with a = 1 / sqrt(12 / 3) = 1/2, for which the mean squared length of a row is 1.
        assert stats.kstest(rows.numpy(), stats.uniform(-0.5, 1).cdf).pvalue > 1e-3
        assert not torch.equal(method.memory_s, method.memory_t)

    def test_state_is_memories_and_constants(self, toy):
        names = set(crd(toy).state_dict())
        embeds = {f"embed_{side}.{name}" for side in "st" for name in ("weight", "bias")}
        assert names == embeds | {"z", "memory_s", "memory_t"}

    def test_published_size(self, toy):
        torch.manual_seed(0)
        decisions = []
        for n in (50_000, 10_000):  # CIFAR-100 whole, and 20 % of it, where 9,900 others are too few
            method = toy.method("crd", {}, toy.setting(num_classes=100))
            assert (method.config.negatives, method.config.dim, method.config.tau) == (16384, 128, 0.07)
            method.allocate(torch.arange(n), torch.arange(n) % 100)
            decisions.append(method.repeats)
        assert decisions == [False, True]


class TestMethod:
    def test_golden_step(self, toy, golden, memories, anchors, monkeypatch):
        method = direct(crd(toy, torch.arange(20) // 2, d_s=4, d_t=4), memories)  # rows in the images' order
        monkeypatch.setattr(method, "_drawn", lambda rows, labels: DRAWN)
        batch = toy.batch(golden.y[:3])._replace(indices=torch.tensor([2, 7, 11]))
        terms = method.loss(batch, *sides(toy, golden, *anchors))
        assert terms["crd"].item() == pytest.approx(0.8 * 19.887837, rel=1e-7)
        assert method.memory_s[2].tolist() == pytest.approx([0.344616, 0.467351, 0.554613, 0.596010], abs=1e-6)
        assert method.z.tolist() == pytest.approx([5924.4832, 6161.5235], rel=1e-7)

    @pytest.mark.parametrize(("params", "beta", "tau"), [({}, 0.8, 0.07), ({"beta": 3.0, "tau": 0.5}, 3.0, 0.5)])
    def test_terms_equal_slow_loops(self, toy, golden, slow, params, beta, tau):
        method = crd(toy, d_t=12, **params)
        memories = method.memory_s.clone(), method.memory_t.clone()
        vt = golden.vt[:, :12]
        batch = batch_of(toy, LABELS, [3, 17, 8, 0, 1, 2, 4, 5])
        torch.manual_seed(5)
        terms = method.loss(batch, toy.outputs(golden.zs, golden.vs), toy.outputs(golden.zt, vt))
        torch.manual_seed(5)
        drawn = method._drawn(method.rows[batch.indices], batch.labels)
        h_s = unit(golden.vs @ method.embed_s.weight.T + method.embed_s.bias)
        h_t = unit(vt @ method.embed_t.weight.T + method.embed_t.bias)
        value = slow_nce(h_s, memories[1], drawn, tau=tau)[0] + slow_nce(h_t, memories[0], drawn, tau=tau)[0]
        expected = {"ce": slow.mean(slow.cross_entropies(golden.zs, batch.labels)), "crd": beta * value}
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-9)

    def test_gradients_are_those_before_the_memories_change(self, toy, golden):
        method = crd(toy)
        memories = method.memory_s.clone(), method.memory_t.clone()
        batch = batch_of(toy, LABELS, [3, 17, 8, 0, 1, 2, 4, 5])
        vs, vt = golden.vs.clone().requires_grad_(), golden.vt.clone()
        torch.manual_seed(5)
        terms = method.loss(batch, toy.outputs(golden.zs, vs), toy.outputs(golden.zt, vt))
        parameters = [vs, *method.parameters()]
        got = torch.autograd.grad(terms["crd"], parameters)
        torch.manual_seed(5)
        drawn = method._drawn(method.rows[batch.indices], batch.labels)
        h_s, h_t = F.normalize(method.embed_s(vs)), F.normalize(method.embed_t(vt))
        loss, _ = crd_loss(h_s, h_t, *memories, drawn, torch.zeros(2), 0.07)
        for gradient, expected in zip(got, torch.autograd.grad(0.8 * loss, parameters), strict=True):
            assert expected.abs().max() > 1e-6
            torch.testing.assert_close(gradient, expected)

    def test_trained_are_both_embeddings(self, toy):
        method = crd(toy)
        (group,) = method.param_groups()
        assert set(group) == {"params"}
        assert set(group["params"]) == {*method.embed_s.parameters(), *method.embed_t.parameters()}

    def test_constants_are_those_of_the_first_batch(self, toy, golden):
        method = crd(toy)
        first = batch_of(toy, LABELS, [3, 17, 8])
        method.loss(first, *sides(toy, golden, golden.vs[:3], golden.vt[:3]))
        z = method.z.tolist()
        assert all(value > 0 for value in z)
        memories, second = (method.memory_s.clone(), method.memory_t.clone()), batch_of(toy, LABELS, [0, 1, 7, 9])
        torch.manual_seed(5)
        terms = method.loss(second, *sides(toy, golden, golden.vs[3:7], golden.vt[3:7]))
        assert method.z.tolist() == z
        torch.manual_seed(5)
        drawn = method._drawn(method.rows[second.indices], second.labels)
        h_s, h_t = F.normalize(method.embed_s(golden.vs[3:7])), F.normalize(method.embed_t(golden.vt[3:7]))
        value = slow_nce(h_s, memories[1], drawn, z[0])[0] + slow_nce(h_t, memories[0], drawn, z[1])[0]
        assert terms["crd"].item() == pytest.approx(0.8 * value)

    @pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
    def test_only_the_batchs_rows_of_the_memories_move(self, toy, golden, momentum):
        # The trial's images are every third of a full training set.
        indices = torch.arange(1, 61, 3)
        method = crd(toy, indices=indices, momentum=momentum)
        before = {"s": method.memory_s.tolist(), "t": method.memory_t.tolist()}
        batch = toy.batch(LABELS[[4, 19, 0]])._replace(indices=torch.tensor([13, 58, 1]))
        student, teacher = sides(toy, golden, golden.vs[:3], golden.vt[:3])
        method.loss(batch, student, teacher)
        for side, embed, features in (("s", method.embed_s, student.pooled), ("t", method.embed_t, teacher.pooled)):
            h = unit(embed(features)).tolist()
            expected = [list(row) for row in before[side]]
            for one, row in enumerate((16, 11, 12)):  # class 0 has rows 0..11, class 2 has 12..18
                mixed = [momentum * m + (1 - momentum) * v for m, v in zip(expected[row], h[one], strict=True)]
                length = math.sqrt(sum(v * v for v in mixed))
                expected[row] = [v / length for v in mixed]
            after = getattr(method, f"memory_{side}")
            torch.testing.assert_close(after, torch.tensor(expected, dtype=torch.float64))
            assert not after.requires_grad

    def test_the_positive_is_the_image_itself(self, toy):
        rows = torch.tensor([16, 11, 12])
        drawn = crd(toy)._drawn(rows, IN_ORDER[rows])
        assert drawn[:, 0].tolist() == [16, 11, 12]

    def test_relaxed_positives_are_any_of_the_class(self, toy):
        method = crd(toy, positives="relax")
        rows = torch.tensor([12, 19, 0]).repeat(2000)
        torch.manual_seed(0)
        first = method._drawn(rows, IN_ORDER[rows])[:, 0].view(2000, 3)
        for column, label in enumerate((2, 3, 0)):
            counts = torch.bincount(first[:, column], minlength=20)
            members = label == IN_ORDER
            assert counts[~members].sum() == 0
            assert members.sum() == 1 or stats.chisquare(counts[members].numpy()).pvalue > 1e-3

    def test_numbers_come_from_the_global_generator(self, toy, golden):
        def term(seed):
            method = crd(toy)
            torch.manual_seed(seed)
            batch = batch_of(toy, LABELS, [3, 17, 8])
            return method.loss(batch, *sides(toy, golden, golden.vs[:3], golden.vt[:3]))["crd"].item()

        assert term(1) == term(1)
        assert term(1) != term(2)

    def test_resumes_from_its_state(self, toy, golden):
        batches = [[3, 17, 8], [0, 1, 7]]

        def step(method, indices):
            torch.manual_seed(9)
            outputs = sides(toy, golden, golden.vs[:3], golden.vt[:3])
            return method.loss(batch_of(toy, LABELS, indices), *outputs)["crd"].item()

        method = crd(toy)
        step(method, batches[0])
        state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
        torch.manual_seed(77)
        fresh = toy.method("crd", {"negatives": 5, "dim": 4})
        fresh.allocate(torch.arange(20), LABELS)
        fresh.load_state_dict(state)
        assert step(fresh, batches[1]) == step(method, batches[1])
        assert torch.equal(fresh.memory_s, method.memory_s)

    @pytest.mark.parametrize("num_classes", [10, 100, 200])
    @pytest.mark.parametrize("size", [1, 2])
    def test_any_number_of_classes_and_small_batches(self, toy, num_classes, size):
        labels = torch.arange(2 * num_classes) % num_classes
        method = crd(toy, labels, num_classes=num_classes, negatives=4 * num_classes)
        z = torch.zeros(size, num_classes, dtype=torch.float64)
        pooled = torch.randn(size, 16, dtype=torch.float64)
        indices = list(range(num_classes - size, num_classes))
        term = method.loss(batch_of(toy, labels, indices), toy.outputs(z, pooled), toy.outputs(z, -pooled))["crd"]
        term.backward()
        assert torch.isfinite(term)
        assert all(torch.isfinite(parameter.grad).all() for parameter in method.parameters())

    def test_with_kd(self, toy, golden, slow):
        method = toy.method("crd+kd", {"crd": {"negatives": 5, "dim": 4}})
        method.allocate(torch.arange(20), LABELS)
        batch = batch_of(toy, LABELS, [3, 17, 8, 0, 1, 2, 4, 5])
        terms = method.loss(batch, toy.outputs(golden.zs, golden.vs), toy.outputs(golden.zt, golden.vt))
        assert list(terms) == ["ce", "crd", "kd"]
        assert terms["kd"].item() == pytest.approx(slow.mean(slow.kls(golden.zs, golden.zt, 4.0)))

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"negatives": 0}, r"^crd\.negatives should be greater than or equal to 1, but got 0\.$"),
            ({"tau": 0}, r"^crd\.tau should be greater than 0, but got 0\.$"),
            ({"momentum": 1.0}, r"^crd\.momentum should be less than 1, but got 1\.0\.$"),
            ({"positives": "all"}, r"^crd\.positives should be 'exact' or 'relax', but got 'all'\.$"),
        ],
    )
    def test_bad_parameters(self, toy, params, message):
        with pytest.raises(ConfigError, match=message):
            toy.method("crd", params)

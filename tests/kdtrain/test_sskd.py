import math

import pytest
import torch

from kdtrain.config import ConfigError
from kdtrain.methods.ipwd import ipw_weights, standardised
from kdtrain.methods.sskd import mean_of, ranks, selected, similarities

TERMS = ["ce", "upright", "turned", "similarity"]


def slow_selected(rank, ratio):
    """All rows of rank 0, then the wrong ones by rank, the earlier first, until int(ratio W) of W are taken."""
    right = [row for row, r in enumerate(rank) if r == 0]
    wrong = sorted((r, row) for row, r in enumerate(rank) if r > 0)
    return sorted(right + [row for _, row in wrong[: int(ratio * len(wrong))]])


def slow_rank(row, target):
    return sum(value > row[target] for value in row)


def slow_similarities(projected, n):
    """cos(row of the turned image, row of the upright one)."""
    rows = projected.tolist()

    def cosine(p, q):
        length = math.sqrt(sum(a * a for a in p) * sum(b * b for b in q))
        return sum(a * b for a, b in zip(p, q, strict=True)) / length

    cosines = [[cosine(turned, upright) for upright in rows[:n]] for turned in rows[n:]]
    return torch.tensor(cosines, dtype=torch.float64)


def project(layers, features):
    hidden = (features @ layers[0].weight.T + layers[0].bias).clamp(min=0)
    return (hidden @ layers[2].weight.T + layers[2].bias).detach()


def slow_terms(slow, method, case, tau=4.0, tau_similarity=0.5, keep=(1.0, 0.75)):
    """The four terms without their weights, row by row: row B k + i is image i turned k times."""
    labels, student, teacher = case
    b, y = len(labels), labels.tolist()
    kls = slow.kls(student.logits, teacher.logits, tau)
    turned = [(k, i) for k in (1, 2, 3) for i in range(b)]
    rank = [slow_rank(teacher.logits.tolist()[b * k + i], y[i]) for k, i in turned]
    sim_s, sim_t = (
        slow_similarities(project(layers, outputs.pooled), b)
        for layers, outputs in ((method.projection_s, student), (method.projection_t, teacher))
    )
    sim_kls = slow.kls(sim_s, sim_t, tau_similarity)
    sim_rank = [slow_rank(row, i) for row, (_, i) in zip(sim_t.tolist(), turned, strict=True)]
    return {
        "ce": slow.mean(slow.cross_entropies(student.logits[:b], labels)),
        "upright": slow.mean(kls[:b]),
        "turned": slow.mean([kls[b + row] for row in slow_selected(rank, keep[0])]),
        "similarity": slow.mean([sim_kls[row] for row in slow_selected(sim_rank, keep[1])]),
    }


def make_case(toy, b=6, k=10, d_s=16, d_t=12, seed=0):
    """Labels [b] and both networks' outputs [4b], the teacher's somewhat right."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.randint(k, (b,), generator=generator)
    z_t = 2 * randn(4 * b, k)
    z_t[torch.arange(4 * b), labels.repeat(4)] += 2
    upright = randn(b, d_t)
    v_t = upright.repeat(4, 1) + 0.9 * randn(4 * b, d_t)
    return labels, toy.outputs(2 * randn(4 * b, k), randn(4 * b, d_s)), toy.outputs(z_t, v_t)


def sskd(toy, name="sskd", d_s=16, d_t=12, num_classes=10, epochs=240, **params):
    return toy.method(name, params, toy.setting(d_s=d_s, d_t=d_t, num_classes=num_classes, epochs=epochs))


def values(terms):
    return {name: term.item() for name, term in terms.items()}


class TestSelection:
    @pytest.mark.parametrize(
        ("rank", "ratio", "rows"),
        [
            ([0, 3, 1, 0, 2, 1], 0.75, [0, 2, 3, 4, 5]),  # three of the four wrong ones: ranks 1, 1, 2
            ([0, 3, 1, 0, 2, 1], 0.5, [0, 2, 3, 5]),
            ([0, 3, 1, 0, 2, 1], 0.25, [0, 2, 3]),  # of the two with rank 1 the earlier
            ([0, 3, 1, 0, 2, 1], 0.2, [0, 3]),  # int(0.8) = 0
            ([0, 3, 1, 0, 2, 1], 1.0, [0, 1, 2, 3, 4, 5]),
            ([0, 0], 0.0, [0, 1]),
            ([4, 4, 4], 0.5, [0]),
            ([4, 4, 4], 0.0, []),
        ],
    )
    def test_by_hand(self, rank, ratio, rows):
        assert selected(torch.tensor(rank), ratio).nonzero()[:, 0].tolist() == rows
        assert slow_selected(rank, ratio) == rows

    @pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 0.5, 0.7, 0.75, 0.9, 1.0])
    @pytest.mark.parametrize("seed", range(5))
    def test_equals_slow_loops(self, seed, ratio):
        generator = torch.Generator().manual_seed(seed)
        for length in (1, 2, 3, 10, 48, 192):
            rank = torch.randint(0, 5, (length,), generator=generator)
            expected = slow_selected(rank.tolist(), ratio)
            assert selected(rank, ratio).nonzero()[:, 0].tolist() == expected

    def test_ranks_by_hand(self):
        scores = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
        assert ranks(scores, torch.tensor([0, 1, 2])).tolist() == [0, 2, 0]

    def test_mean_of_the_chosen(self):
        chosen = torch.tensor([True, False, True])
        assert mean_of(torch.tensor([1.0, 50.0, 4.0]), chosen).item() == 2.5
        assert mean_of(torch.tensor([1.0, 50.0, 4.0]), ~(chosen | True)).item() == 0


class TestSimilarities:
    def test_equal_slow_loops(self):
        projected = torch.randn(20, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        torch.testing.assert_close(similarities(projected, 5), slow_similarities(projected, 5))

    def test_each_rows_scale_cancels(self):
        projected = torch.randn(20, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        scales = torch.linspace(0.1, 9, 20, dtype=torch.float64)[:, None]
        torch.testing.assert_close(similarities(scales * projected, 5), similarities(projected, 5))


class TestTerms:
    @pytest.mark.parametrize(
        ("params", "weights"),
        [
            ({}, (0.1, 0.9, 2.7, 10.0)),
            ({"gamma": 1.0, "alpha": 2.0, "alpha_turned": 3.0, "beta": 4.0}, (1.0, 2.0, 3.0, 4.0)),
        ],
    )
    @pytest.mark.parametrize(("b", "k"), [(6, 10), (1, 10), (2, 100), (3, 200)])
    def test_equal_slow_loops(self, toy, slow, params, weights, b, k):
        method = sskd(toy, num_classes=k, **params)
        case = make_case(toy, b, k)
        terms = method.loss(toy.batch(case[0]), *case[1:])
        expected = slow_terms(slow, method, case)
        assert list(terms) == TERMS
        assert values(terms) == pytest.approx(
            {name: weight * expected[name] for name, weight in zip(TERMS, weights, strict=True)}, rel=1e-9, abs=1e-12
        )

    @pytest.mark.parametrize("keep", [(0.0, 0.0), (0.5, 0.25), (0.3, 0.6)])
    def test_rows_that_the_teacher_gets_most_wrong_are_left_out(self, toy, slow, keep):
        method = sskd(toy, keep_turned=keep[0], keep_similarity=keep[1])
        case = make_case(toy, b=8)
        terms = values(method.loss(toy.batch(case[0]), *case[1:]))
        expected = slow_terms(slow, method, case, keep=keep)
        everything = slow_terms(slow, method, case, keep=(1.0, 1.0))
        assert terms["turned"] == pytest.approx(2.7 * expected["turned"])
        assert terms["similarity"] == pytest.approx(10 * expected["similarity"], rel=1e-9)
        for name in ("turned", "similarity"):
            assert expected[name] != pytest.approx(everything[name])

    def test_temperatures(self, toy, slow):
        method = sskd(toy, tau=2.0, tau_similarity=0.1)
        case = make_case(toy)
        terms = values(method.loss(toy.batch(case[0]), *case[1:]))
        expected = slow_terms(slow, method, case, tau=2.0, tau_similarity=0.1)
        assert terms["upright"] == pytest.approx(0.9 * expected["upright"])
        assert terms["turned"] == pytest.approx(2.7 * expected["turned"])
        assert terms["similarity"] == pytest.approx(10 * expected["similarity"], rel=1e-9)

    def test_zero_for_a_student_that_is_the_teacher(self, toy):
        method = sskd(toy, d_s=12)
        method.projection_s.load_state_dict(method.projection_t.state_dict())
        labels, _, teacher = make_case(toy)
        terms = values(method.loss(toy.batch(labels), teacher, teacher))
        assert [terms[name] for name in TERMS[1:]] == pytest.approx([0, 0, 0], abs=1e-12)
        assert terms["ce"] > 0

    def test_the_order_of_the_images_does_not_matter(self, toy):
        method = sskd(toy, keep_similarity=1.0)
        labels, student, teacher = make_case(toy)
        order = torch.tensor([3, 1, 5, 0, 2, 4])
        rows = torch.cat([order + 6 * k for k in range(4)])
        mixed = (toy.outputs(o.logits[rows], o.pooled[rows]) for o in (student, teacher))
        terms = method.loss(toy.batch(labels), student, teacher)
        assert values(method.loss(toy.batch(labels[order]), *mixed)) == pytest.approx(values(terms))

    def test_per_sample_is_the_terms_of_logits_before_their_means(self, toy, slow):
        method = sskd(toy, alpha=2.0, alpha_turned=3.0, keep_turned=0.5)
        labels, student, teacher = make_case(toy)
        sample = method.per_sample(toy.batch(labels), student, teacher)
        assert list(sample) == ["upright", "turned"]
        kls = slow.kls(student.logits, teacher.logits, 4.0)
        assert sample["upright"].tolist() == pytest.approx([2 * kl for kl in kls[:6]])
        rank = [slow_rank(row, y) for row, y in zip(teacher.logits[6:].tolist(), 3 * labels.tolist(), strict=True)]
        chosen = slow_selected(rank, 0.5)
        assert 0 < len(chosen) < 18
        # Those not chosen are 0, and the mean over all 18 is the mean over the chosen.
        scaled = [3 * kl * (row in chosen) * 18 / len(chosen) for row, kl in enumerate(kls[6:])]
        assert sample["turned"].tolist() == pytest.approx(scaled)
        terms = method.loss(toy.batch(labels), student, teacher)
        for name, values in sample.items():
            assert terms[name].item() == pytest.approx(slow.mean(values.tolist()))


class TestGradients:
    def test_each_term_reaches_its_part_of_the_student(self, toy):
        method = sskd(toy)
        labels, student, teacher = make_case(toy)
        logits, pooled = student.logits.requires_grad_(), student.pooled.requires_grad_()
        terms = method.loss(toy.batch(labels), toy.outputs(logits, pooled), teacher)
        head, own = method.projection_s[0].weight, method.projection_t[0].weight
        reached = {}
        for name, term in terms.items():
            gradients = torch.autograd.grad(term, [logits, pooled, head, own], retain_graph=True, allow_unused=True)
            reached[name] = [None if g is None else g.reshape(len(g), -1).any(1).tolist() for g in gradients]
        upright, turned, every = [True] * 6 + [False] * 18, [False] * 6 + [True] * 18, [True] * 24
        assert reached["ce"] == reached["upright"] == [upright, None, None, None]
        assert reached["turned"] == [turned, None, None, None]
        assert reached["similarity"][0] is None
        assert reached["similarity"][1][:6] == every[:6]
        assert any(reached["similarity"][2])
        assert reached["similarity"][3] is None

    def test_the_students_projection_alone_is_trained_with_the_student(self, toy):
        method = sskd(toy)
        (group,) = method.param_groups()
        assert set(group) == {"params"}
        assert set(group["params"]) == set(method.projection_s.parameters())

    def test_projections_keep_the_width_of_their_network(self, toy):
        method = sskd(toy, d_s=5, d_t=7)
        for layers, width in ((method.projection_s, 5), (method.projection_t, 7)):
            assert [tuple(layer.weight.shape) for layer in (layers[0], layers[2])] == [(width, width)] * 2


class TestProjectionStage:
    @pytest.mark.parametrize(
        ("epochs", "params", "length", "milestones"),
        [
            (240, {}, 60, (30, 45)),
            (80, {}, 20, (10, 15)),
            (240, {"pretrain_epochs": 30}, 30, (15, 22)),
            (1, {}, 1, (1, 1)),
        ],
    )
    def test_its_length_and_learning_rates(self, toy, epochs, params, length, milestones):
        method = sskd(toy, epochs=epochs, **params)
        stage = method.pretraining()
        assert (stage.epochs, stage.milestones, stage.lr, stage.student) == (length, milestones, 0.05, False)
        assert [module is method.projection_t for module in stage.modules] == [True]

    def test_learning_rate(self, toy):
        assert sskd(toy, pretrain_lr=0.1).pretraining().lr == 0.1

    @pytest.mark.parametrize("b", [1, 2, 6])
    def test_loss_equals_slow_loops(self, toy, slow, b):
        # The upright image of row B k + i is i; cosines are the logits, without temperature.
        method = sskd(toy)
        labels, _, teacher = make_case(toy, b)
        terms = method.pretrain_loss(toy.batch(labels), None, teacher)
        scores = slow_similarities(project(method.projection_t, teacher.pooled), b)
        expected = slow.mean(slow.cross_entropies(scores, torch.tensor(list(range(b)) * 3)))
        assert values(terms) == pytest.approx({"projection": expected}, rel=1e-9, abs=1e-12)

    def test_trains_the_teachers_projection_alone(self, toy):
        method = sskd(toy)
        labels, _, teacher = make_case(toy)
        method.pretrain_loss(toy.batch(labels), None, teacher)["projection"].backward()
        assert all(parameter.grad is not None for parameter in method.projection_t.parameters())
        assert all(parameter.grad is None for parameter in method.projection_s.parameters())

    def test_descends_to_recognise_the_images(self, toy):
        method = sskd(toy)
        labels, _, teacher = make_case(toy)
        optimizer = torch.optim.SGD(method.pretraining().modules[0].parameters(), 0.1, momentum=0.9)
        losses = []
        for _ in range(100):
            optimizer.zero_grad()
            losses.append(method.pretrain_loss(toy.batch(labels), None, teacher)["projection"])
            losses[-1].backward()
            optimizer.step()
        assert losses[-1] < 0.8 * losses[0]


class TestInCompany:
    def test_ipwd_weights_the_upright_logits_and_nothing_else(self, toy, slow):
        torch.manual_seed(0)
        method = sskd(toy, "sskd+ipwd")
        labels, student, teacher = make_case(toy)
        terms = values(method.loss(toy.batch(labels), student, teacher))
        alone = values(method.host.loss(toy.batch(labels), student, teacher))
        head = method.parts[1].weights.head
        z_c = (student.pooled[:6] @ head.weight.T + head.bias).detach()
        h_kd, h_cls = (
            torch.tensor(slow.cross_entropies(standardised(z), labels), dtype=torch.float64)
            for z in (student.logits[:6], z_c)
        )
        kls = slow.kls(student.logits[:6], teacher.logits[:6], 4.0)
        weighted = [w * kl for w, kl in zip(ipw_weights(h_kd, h_cls).tolist(), kls, strict=True)]
        assert set(terms) == {*TERMS, "cls"}
        assert terms["upright"] == pytest.approx(0.9 * slow.mean(weighted), rel=1e-9)
        assert terms["cls"] == pytest.approx(slow.mean(slow.cross_entropies(z_c, labels)))
        assert {name: terms[name] for name in ("ce", "turned", "similarity")} == {
            name: alone[name] for name in ("ce", "turned", "similarity")
        }
        assert method.pretraining().epochs == 60

    def test_another_method_beside_it_sees_the_upright_images(self, toy, slow):
        method = sskd(toy, "sskd+kd")
        labels, student, teacher = make_case(toy)
        terms = values(method.loss(toy.batch(labels), student, teacher))
        assert terms["kd"] == pytest.approx(slow.mean(slow.kls(student.logits[:6], teacher.logits[:6], 4.0)))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"tau_similarity": 0}, r"^sskd\.tau_similarity should be greater than 0, but got 0\.$"),
        ({"keep_turned": 1.5}, r"^sskd\.keep_turned should be less than or equal to 1, but got 1\.5\.$"),
        ({"keep_similarity": -1}, r"^sskd\.keep_similarity should be greater than or equal to 0, but got -1\.$"),
        ({"pretrain_epochs": 0}, r"^sskd\.pretrain_epochs should be greater than 0, but got 0\.$"),
        ({"pretrain_epochs": 1.5}, r"^sskd\.pretrain_epochs must be a whole number of epochs or a fraction"),
    ],
)
def test_bad_parameters(toy, params, message):
    with pytest.raises(ConfigError, match=message):
        sskd(toy, **params)

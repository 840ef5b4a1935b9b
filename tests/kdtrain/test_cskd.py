import math

import pytest
import torch
import torch.nn.functional as F

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods.cskd import class_means, filtered_means, relation_loss, residual_loss, same_class

LABELS = torch.tensor([3, 0, 3, 7, 0, 3, 9])


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def right_for(labels, wrong, num_classes=10):
    """Logits that classify each sample right, but for the places `wrong`."""
    z = random(len(labels), num_classes, seed=5)
    return z + 20 * F.one_hot(
        (labels + torch.tensor([i in wrong for i in range(len(labels))])) % num_classes, num_classes
    )


def slow_mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def slow_means(f, labels, keep=None):
    """The mean over the samples kept of the same label; a sample's own row where there is none."""
    keep = keep or [True] * len(f)
    means = []
    for i, label in enumerate(labels):
        rows = [f[j] for j in range(len(f)) if labels[j] == label and keep[j]]
        means.append(slow_mean(rows) if rows else f[i])
    return means


def slow_residual(f_s, f_t, m_s, m_t):
    rows = zip(f_s, f_t, m_s, m_t, strict=True)
    squares = [((t - mt) - (s - ms)) ** 2 for row in rows for s, t, ms, mt in zip(*row, strict=True)]
    return sum(squares) / len(squares) / len(f_s[0])


def slow_cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def slow_relation(f_s, f_t, labels):
    present = sorted(set(labels))
    centres_s, centres_t = (
        [slow_mean([row for row, other in zip(f, labels, strict=True) if other == label]) for label in present]
        for f in (f_s, f_t)
    )
    squares = [
        (slow_cosine(centres_t[i], centres_t[j]) - slow_cosine(centres_s[i], centres_s[j])) ** 2
        for i in range(len(present))
        for j in range(len(present))
    ]
    return sum(squares) / len(squares) / len(present)


def slow_right(z, labels):
    return [max(range(len(row)), key=row.__getitem__) == label for row, label in zip(z, labels, strict=True)]


def slow_terms(z_s, z_t, f_s, f_t, labels):
    """(residuals, compact, relations, logit) without weights; f_*: the maps, projected and of one size."""
    z_s, z_t, f_s, f_t, labels = (
        x.flatten(1).tolist() if x.dim() > 1 else x.tolist() for x in (z_s, z_t, f_s, f_t, labels)
    )
    filtered = slow_means(f_s, labels, slow_right(z_s, labels)), slow_means(f_t, labels, slow_right(z_t, labels))
    means = slow_means(z_s, labels), slow_means(z_t, labels)
    residuals = slow_residual(f_s, f_t, *filtered) + slow_residual(z_s, z_t, *means)
    compact = [(z - m) ** 2 for row in zip(z_s, means[0], strict=True) for z, m in zip(*row, strict=True)]
    relations = slow_relation(f_s, f_t, labels) + slow_relation(z_s, z_t, labels)
    logit = [(s - t) ** 2 for row in zip(z_s, z_t, strict=True) for s, t in zip(*row, strict=True)]
    return residuals, sum(compact) / len(compact), relations, sum(logit) / len(logit)


def cskd(toy, map_s=(5, 4), map_t=(6, 4), num_classes=10, **params):
    return toy.method("cskd", params, toy.setting(maps_s=[(3, 8), map_s], maps_t=[map_t], num_classes=num_classes))


@pytest.mark.parametrize(
    ("params", "weights"),
    [
        ({}, (0.9, 0.002, 0.1, 0.04, 1e-6)),
        (
            {"gamma": 2.0, "beta_intra": 3.0, "beta_compact": 5.0, "beta_inter": 7.0, "beta_logit": 11.0},
            (2, 3, 5, 7, 11),
        ),
    ],
)
@pytest.mark.parametrize(("h_s", "h_t"), [(4, 4), (4, 2), (2, 4)])
def test_terms_equal_slow_loops(toy, slow, params, weights, h_s, h_t):
    method = cskd(toy, (5, h_s), (6, h_t), **params)
    z_s, z_t = right_for(LABELS, wrong={0, 3, 4}) / 9, right_for(LABELS, wrong={1, 4, 6}) / 7
    f_s, f_t = random(7, 5, h_s, h_s), random(7, 6, h_t, h_t, seed=1)
    projected = torch.einsum("oc,bchw->bohw", method.projection.weight[:, :, 0, 0], f_s)
    if h_s > h_t:
        projected = projected.reshape(7, 6, h_t, 2, h_t, 2).mean((3, 5))
    f_t_small = f_t.reshape(7, 6, h_s, 2, h_s, 2).mean((3, 5)) if h_t > h_s else f_t
    residuals, compact, relations, logit = slow_terms(z_s, z_t, projected, f_t_small, LABELS)
    gamma, intra, within, inter, delta = weights
    terms = method.loss(toy.batch(LABELS), toy.outputs(z_s, stages=[f_s[:, :3], f_s]), toy.outputs(z_t, stages=[f_t]))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {
            "ce": gamma * slow.mean(slow.cross_entropies(z_s, LABELS)),
            "cskd_intra": intra * residuals + within * compact,
            "cskd_inter": inter * relations,
            "cskd_logit": delta * logit,
        }
    )


class TestMeans:
    F = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 4.0], [7.0, 7.0]])
    Y = torch.tensor([0, 1, 0, 0])

    def test_by_hand(self):
        # Class 0: (1 + 5 + 7) / 3, (2 + 4 + 7) / 3.
        means = class_means(self.F, same_class(self.Y, torch.float32))
        torch.testing.assert_close(means, torch.tensor([[13 / 3] * 2, [3.0, 6.0], [13 / 3] * 2, [13 / 3] * 2]))

    def test_filtered_by_hand(self):
        # Of class 0 the first and the third are right, of class 1 none is.
        z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        means = filtered_means(self.F, z, self.Y, same_class(self.Y, torch.float32))
        torch.testing.assert_close(means, torch.tensor([[3.0, 3.0], [3.0, 6.0], [3.0, 3.0], [3.0, 3.0]]))


class TestResiduals:
    def test_by_hand(self):
        # Residuals (1, 0) and (0, -2) of the teacher, (0, 0) and (1, 0) of the student:
        # squares 1, 0, 1, 4; their mean 1.5; divided by D = 2.
        f_s, m_s = torch.tensor([[5.0, 5.0], [6.0, 5.0]]), torch.full((2, 2), 5.0)
        f_t, m_t = torch.tensor([[2.0, 1.0], [1.0, -1.0]]), torch.ones(2, 2)
        assert residual_loss(f_s, f_t, m_s, m_t).item() == 0.75

    def test_shifted_features_have_the_same_residuals(self):
        f, shift = random(6, 5), random(5, seed=1)
        same = same_class(torch.tensor([0, 1, 0, 1, 2, 2]), torch.float64)
        moved = f + shift
        assert residual_loss(moved, f, class_means(moved, same), class_means(f, same)).item() == pytest.approx(0)

    def test_the_means_and_the_teacher_carry_no_gradient(self):
        f_s, f_t = random(4, 3).requires_grad_(), random(4, 3, seed=1).requires_grad_()
        y, wrong = torch.tensor([0, 0, 1, 1]), {0, 2}  # else the gradients through the means cancel
        same = same_class(y, torch.float64)
        m_s, m_t = (filtered_means(f, right_for(y, wrong), y, same) for f in (f_s, f_t))
        residual_loss(f_s, f_t, m_s, m_t).backward()
        # d/df_s of the sum of squares over 4 x 3 x 3, the means fixed.
        expected = 2 * ((f_s - m_s) - (f_t - m_t)).detach() / 36
        torch.testing.assert_close(f_s.grad, expected)
        assert f_t.grad is None


class TestRelations:
    def test_by_hand(self):
        # Three samples of two classes. The student's centres (1, 0) and (0, 2) have the cosine 0, the teacher's
        # (1, 0) and (1, 1) 1/sqrt 2. Four entries, two of them differ by 1/2 squared: mean 1/4, divided by n = 2.
        same = same_class(torch.tensor([4, 8, 4]), torch.float64)
        c_s = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]], dtype=torch.float64)
        c_t = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        assert relation_loss(c_s, c_t, same).item() == pytest.approx(1 / 8)

    def test_rotated_and_scaled_features_have_the_same_relations(self):
        same = same_class(LABELS, torch.float64)
        f = random(7, 6)
        rotation = torch.linalg.qr(random(6, 6, seed=1)).Q
        assert relation_loss(class_means(3 * f @ rotation, same), class_means(f, same), same).item() == pytest.approx(0)

    def test_widths_may_differ(self):
        same = same_class(LABELS, torch.float64)
        c_s, c_t = class_means(random(7, 6), same), class_means(random(7, 9, seed=1), same)
        expected = slow_relation(random(7, 6).tolist(), random(7, 9, seed=1).tolist(), LABELS.tolist())
        assert relation_loss(c_s, c_t, same).item() == pytest.approx(expected)

    def test_gradient_to_the_student_alone(self):
        same = same_class(LABELS, torch.float64)
        f_s, f_t = random(7, 6).requires_grad_(), random(7, 6, seed=1).requires_grad_()
        relation_loss(class_means(f_s, same), class_means(f_t, same), same).backward()
        assert f_s.grad.abs().sum() > 0
        assert f_t.grad is None

    def test_finite_for_features_that_are_all_zero(self):
        same = same_class(LABELS, torch.float64)
        f_s = torch.zeros(7, 6, dtype=torch.float64, requires_grad=True)
        relation_loss(class_means(f_s, same), class_means(random(7, 6), same), same).backward()
        assert torch.isfinite(f_s.grad).all()


def test_all_but_the_cross_entropy_and_the_compactness_vanish_for_equal_networks(toy):
    method = cskd(toy, (6, 4), (6, 4), beta_compact=0.0)
    method.projection.weight.data.copy_(torch.eye(6)[:, :, None, None])
    outputs = toy.outputs(random(7, 10), stages=[random(7, 6, 4, 4)])
    terms = method.loss(toy.batch(LABELS), outputs, outputs)
    assert [terms[name].item() for name in ("cskd_intra", "cskd_inter", "cskd_logit")] == pytest.approx([0, 0, 0])


def test_the_order_of_the_samples_does_not_matter(toy):
    method, order = cskd(toy), torch.tensor([3, 1, 0, 2, 6, 5, 4])
    z_s, z_t, f_s, f_t = right_for(LABELS, {2}), random(7, 10, seed=2), random(7, 5, 4, 4), random(7, 6, 4, 4, seed=1)
    terms, permuted = (
        method.loss(toy.batch(LABELS[o]), toy.outputs(z_s[o], stages=[f_s[o]]), toy.outputs(z_t[o], stages=[f_t[o]]))
        for o in (torch.arange(7), order)
    )
    torch.testing.assert_close(permuted, terms)


def test_gradients_reach_the_student_and_the_projection(toy):
    method = cskd(toy)
    z_s, f_s = random(7, 10).requires_grad_(), random(7, 5, 4, 4).requires_grad_()
    z_t, f_t = random(7, 10, seed=1), random(7, 6, 4, 4, seed=1)
    sum(
        method.loss(toy.batch(LABELS), toy.outputs(z_s, stages=[f_s]), toy.outputs(z_t, stages=[f_t])).values()
    ).backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in (z_s, f_s, method.projection.weight))
    (group,) = method.param_groups()
    assert group == {"params": [method.projection.weight]}


def test_the_student_is_projected_to_the_width_of_the_teacher(toy):
    projection = cskd(toy).projection
    assert projection.weight.shape == (6, 5, 1, 1)
    assert projection.bias is None
    assert methods.needs(MethodRef(name="cskd")) == {"logits", "stages"}


@pytest.mark.parametrize(("labels", "num_classes"), [([4], 10), ([99, 99], 100), ([0, 199], 200)])
def test_small_batches_and_many_classes(toy, labels, num_classes):
    n, y = len(labels), torch.tensor(labels)
    student = toy.outputs(random(n, num_classes).requires_grad_(), stages=[random(n, 5, 4, 4).requires_grad_()])
    teacher = toy.outputs(random(n, num_classes, seed=1), stages=[random(n, 6, 4, 4, seed=1)])
    terms = cskd(toy, num_classes=num_classes).loss(toy.batch(y), student, teacher)
    sum(terms.values()).backward()
    assert all(
        torch.isfinite(tensor).all() for tensor in (*terms.values(), student.logits.grad, student.stages[0].grad)
    )
    if len(set(labels)) == 1:  # one centre has no relations
        assert terms["cskd_inter"].item() == pytest.approx(0)


def test_negative_weights_are_refused(toy):
    with pytest.raises(ConfigError, match=r"^cskd\.beta_inter should be greater than or equal to 0, but got -1\.$"):
        cskd(toy, beta_inter=-1)

import math

import pytest
import torch

from kdtrain.methods.sp import sp_loss


def slow_sp(f_s, f_t):
    def similarities(f):
        rows = f.flatten(1).tolist()
        gram = [[sum(a * b for a, b in zip(p, q, strict=True)) for q in rows] for p in rows]
        return [[g / math.sqrt(sum(h * h for h in row)) for g in row] for row in gram]

    g_s, g_t = similarities(f_s), similarities(f_t)
    total = sum((t - s) ** 2 for row in zip(g_s, g_t, strict=True) for s, t in zip(*row, strict=True))
    return total / len(f_s) ** 2


def rotation(n):
    torch.manual_seed(0)
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q


def test_golden_value(golden):
    assert sp_loss(golden.fs, golden.ft).item() == pytest.approx(0.0032416621, rel=1e-7)


def test_orthogonal_student_against_collapsed_teacher():
    # G_s = I; every entry of G_t is 1/sqrt(2): 2((1-1/sqrt2)^2 + 1/2)/4 = 1 - 1/sqrt2.
    f_s, f_t = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(sp_loss(f_s, f_t), torch.tensor(1 - 1 / math.sqrt(2)))


def test_equals_a_slow_loop(golden):
    assert sp_loss(golden.fs, golden.ft).item() == pytest.approx(slow_sp(golden.fs, golden.ft), rel=1e-10)
    assert sp_loss(golden.fs, golden.ftb).item() == pytest.approx(slow_sp(golden.fs, golden.ftb), rel=1e-10)


def test_zero_for_equal_features(golden):
    assert sp_loss(golden.fs, golden.fs).item() == 0


def test_rotated_and_scaled_features_have_the_same_similarities(golden):
    features = golden.fs.flatten(1)
    rotated = 3 * features @ rotation(features.shape[1])
    assert sp_loss(rotated, features).item() == pytest.approx(0, abs=1e-20)
    torch.testing.assert_close(sp_loss(rotated, golden.ft), sp_loss(golden.fs, golden.ft))


def test_the_order_of_the_samples_does_not_matter(golden):
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    torch.testing.assert_close(sp_loss(golden.fs[order], golden.ft[order]), sp_loss(golden.fs, golden.ft))


def test_symmetric_in_student_and_teacher(golden):
    torch.testing.assert_close(sp_loss(golden.ft, golden.fs), sp_loss(golden.fs, golden.ft))


def test_finite_for_features_that_are_all_zero(golden):
    f_s = torch.zeros_like(golden.fs, requires_grad=True)
    sp_loss(f_s, golden.ft).backward()
    assert torch.isfinite(f_s.grad).all()


def test_other_batch_size_raises(golden):
    with pytest.raises(ValueError, match=r"^sp_loss compares one batch, but got len\(f_s\)=8, len\(f_t\)=7\.$"):
        sp_loss(golden.fs, golden.ft[:7])


@pytest.mark.parametrize(("params", "beta"), [({}, 3000.0), ({"beta": 2.0}, 2.0)])
def test_terms_look_at_the_last_stage(golden, slow, toy, params, beta):
    student = toy.outputs(golden.zs, stages=[golden.ftb, golden.fs])
    teacher = toy.outputs(golden.zt, stages=[golden.fs, golden.ftb, golden.ft])
    terms = toy.method("sp", params).loss(toy.batch(golden.y), student, teacher)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {
            "ce": slow.mean(slow.cross_entropies(golden.zs, golden.y)),
            "sp": beta * slow_sp(golden.fs, golden.ft),
        }
    )

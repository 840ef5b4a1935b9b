import math

import pytest
import torch
from scipy.spatial.distance import cdist

from kdtrain.methods.pkt import affinities, pkt_loss


def slow_affinities(v):
    rows, out = v.tolist(), []
    lengths = [math.hypot(*row) + 1e-7 for row in rows]
    for a, n in zip(rows, lengths, strict=True):
        cosines = [sum(x * y for x, y in zip(a, b, strict=True)) / (n * m) for b, m in zip(rows, lengths, strict=True)]
        half = [(cosine + 1) / 2 for cosine in cosines]
        out.append([h / sum(half) for h in half])
    return out


def slow_pkt(v_s, v_t):
    p_s, p_t = ([p for row in slow_affinities(v) for p in row] for v in (v_s, v_t))
    terms = [t * math.log((t + 1e-7) / (s + 1e-7)) for s, t in zip(p_s, p_t, strict=True)]
    return sum(terms) / len(terms)


def test_golden_value(golden):
    assert pkt_loss(golden.vs, golden.vt).item() == pytest.approx(0.08497107, rel=1e-7)


def test_affinities_by_hand():
    # Cosines 1, 0, -1 become 1, 1/2, 0; rows sum to 3/2 and 2.
    v = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])
    expected = torch.tensor([[2 / 3, 1 / 3, 0.0], [0.25, 0.5, 0.25], [0.0, 1 / 3, 2 / 3]])
    torch.testing.assert_close(affinities(v), expected, rtol=0, atol=1e-6)


def test_loss_by_hand():
    # Two samples: rows (1, 1/2) / (3/2) of the teacher against (1/2, 1/2) of a student of equal vectors.
    v_t, v_s = torch.eye(2, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    expected = (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)) / 2
    assert pkt_loss(v_s, v_t).item() == pytest.approx(expected, rel=1e-5)


def test_affinities_agree_with_scipys_cosines(golden):
    similar = torch.from_numpy(1 - cdist(golden.vs, golden.vs, "cosine") / 2)
    torch.testing.assert_close(affinities(golden.vs), similar / similar.sum(1, keepdim=True), rtol=1e-6, atol=1e-8)


def test_equals_slow_loops(golden):
    for v_s, v_t in ((golden.vs, golden.vt), (golden.zs[:5], golden.vt[:5]), (golden.vs[:2, :3], golden.zt[:2])):
        assert pkt_loss(v_s, v_t).item() == pytest.approx(slow_pkt(v_s, v_t), rel=1e-9)


def test_zero_for_equal_vectors(golden):
    assert pkt_loss(golden.vs, golden.vs).item() == 0


def test_rotated_and_scaled_features_are_the_same(golden):
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    changed = 3 * golden.vs @ rotation
    assert pkt_loss(changed, golden.vt).item() == pytest.approx(slow_pkt(golden.vs, golden.vt), rel=1e-6)


def test_the_order_of_the_samples_does_not_matter(golden):
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    torch.testing.assert_close(pkt_loss(golden.vs[order], golden.vt[order]), pkt_loss(golden.vs, golden.vt))


def test_student_and_teacher_are_not_exchangeable(golden):
    assert pkt_loss(golden.vt, golden.vs).item() == pytest.approx(slow_pkt(golden.vt, golden.vs))
    assert pkt_loss(golden.vt, golden.vs).item() != pytest.approx(pkt_loss(golden.vs, golden.vt).item(), rel=1e-3)


@pytest.mark.parametrize("case", ["zero", "one zero", "opposite"])
def test_finite_for_vectors_without_direction_and_opposite_ones(golden, case):
    v_s = golden.vs.float()
    v_s = {"zero": 0 * v_s, "one zero": v_s * (torch.arange(8) > 0)[:, None], "opposite": torch.cat([v_s, -v_s])}[case]
    v_s = v_s.requires_grad_()
    loss = pkt_loss(v_s, torch.cat([golden.vt, golden.vt])[: len(v_s)].float())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(v_s.grad).all()


def test_one_sample_gives_zero(golden):
    assert pkt_loss(golden.vs[:1], golden.vt[:1]).item() == 0


@pytest.mark.parametrize(("params", "beta"), [({}, 30_000.0), ({"beta": 2.0}, 2.0)])
def test_terms_and_their_weights(golden, slow, toy, params, beta):
    v_s = golden.vs[:, :12]
    method = toy.method("pkt", params, toy.setting(d_s=12))
    terms = method.loss(toy.batch(golden.y), toy.outputs(golden.zs, v_s), toy.outputs(golden.zt, golden.vt))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {
            "ce": slow.mean(slow.cross_entropies(golden.zs, golden.y)),
            "pkt": beta * slow_pkt(v_s, golden.vt),
        }
    )


def test_nothing_but_the_student_trains(golden, toy):
    method, v_s = toy.method("pkt"), golden.vs.clone().requires_grad_()
    outputs = toy.outputs(golden.zs, v_s), toy.outputs(golden.zt, golden.vt)
    method.loss(toy.batch(golden.y), *outputs)["pkt"].backward()
    assert v_s.grad.abs().sum() > 0
    assert method.param_groups() == []

import math

import pytest
import torch

from kdtrain.config import ConfigError
from kdtrain.methods.rkd import angle_loss, angles, distance_loss, distances, scaled


def smooth_l1(a, b):
    error = abs(a - b)
    return error**2 / 2 if error < 1 else error - 0.5


def slow_distance(v_s, v_t):
    def relative(v):
        rows = v.tolist()
        d = [[math.dist(a, b) for b in rows] for a in rows]
        positive = [x for row in d for x in row if x > 0]
        return [x * len(positive) / sum(positive) for row in d for x in row]

    pairs = list(zip(relative(v_s), relative(v_t), strict=True))
    return sum(smooth_l1(s, t) for s, t in pairs) / len(pairs)


def slow_cosines(v):
    """(e_j - e_i) . (e_k - e_i) over both lengths; 0 where a length is."""
    rows, cosines = v.tolist(), []
    for i in rows:
        for j in rows:
            for k in rows:
                length = math.dist(i, j) * math.dist(i, k)
                dot = sum((b - a) * (c - a) for a, b, c in zip(i, j, k, strict=True))
                cosines.append(dot / length if length else 0.0)
    return cosines


def slow_angle(v_s, v_t):
    pairs = list(zip(slow_cosines(v_s), slow_cosines(v_t), strict=True))
    return sum(smooth_l1(s, t) for s, t in pairs) / len(pairs)


def distance_of(v_s, v_t):
    return distance_loss(distances(v_s), distances(v_t))


def angle_of(v_s, v_t):
    return angle_loss(distances(v_s), distances(v_t))


BOTH = pytest.mark.parametrize(("loss", "oracle"), [(distance_of, slow_distance), (angle_of, slow_angle)])


def test_golden_values(golden):
    distance, angle = distance_of(golden.vs, golden.vt).item(), angle_of(golden.vs, golden.vt).item()
    assert distance == pytest.approx(0.19160031, rel=1e-7)
    assert angle == pytest.approx(0.19683359, rel=1e-7)
    assert 25 * distance + 50 * angle == pytest.approx(14.631687, rel=1e-7)


def test_a_right_triangle_by_hand():
    # Sides 3, 4, 5; the mean over the pairs is 4. Cosines at the right angle 0, at the others 3/5 and 4/5.
    d = distances(torch.tensor([[1.0, 1.0], [4.0, 1.0], [1.0, 5.0]], dtype=torch.float64))
    sides = torch.tensor([[0.0, 3.0, 4.0], [3.0, 0.0, 5.0], [4.0, 5.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(d, sides)
    torch.testing.assert_close(scaled(d), sides / 4)
    cosines = torch.zeros(3, 3, 3, dtype=torch.float64)
    cosines[0, 1, 1] = cosines[0, 2, 2] = cosines[1, 0, 0] = cosines[1, 2, 2] = cosines[2, 0, 0] = cosines[2, 1, 1] = 1
    cosines[1, 0, 2] = cosines[1, 2, 0] = 0.6
    cosines[2, 0, 1] = cosines[2, 1, 0] = 0.8
    torch.testing.assert_close(angles(d), cosines)


@BOTH
def test_equals_slow_loops(golden, loss, oracle):
    for v_s, v_t in ((golden.vs, golden.vt), (5 * golden.vs[:5], golden.zt[:5]), (golden.zs[:2], golden.vt[:2])):
        assert loss(v_s, v_t).item() == pytest.approx(oracle(v_s, v_t), rel=1e-9)


@BOTH
def test_moved_rotated_and_scaled_features_are_the_same(golden, loss, oracle):
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    changed = 3 * golden.vs @ rotation + 2
    assert loss(changed, golden.vs).item() == pytest.approx(0, abs=1e-15)
    assert loss(changed, golden.vt).item() == pytest.approx(oracle(golden.vs, golden.vt))


@BOTH
def test_the_order_of_the_samples_does_not_matter(golden, loss, oracle):
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    assert loss(golden.vs[order], golden.vt[order]).item() == pytest.approx(oracle(golden.vs, golden.vt))


@BOTH
def test_float32_far_from_the_origin(golden, loss, oracle):
    v_s, v_t = (100 + v for v in (golden.vs, golden.vt))
    assert loss(v_s.float(), v_t.float()).item() == pytest.approx(oracle(v_s, v_t), rel=1e-3)


@BOTH
def test_gradient_is_that_of_finite_differences(golden, loss, oracle):
    v_s = golden.vs[:4, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: loss(v, golden.vt[:4]), v_s)


@BOTH
@pytest.mark.parametrize("case", ["zero", "equal pair", "constant"])
def test_finite_for_equal_vectors(golden, loss, oracle, case):
    v_s = {
        "zero": torch.zeros(8, 16),
        "equal pair": golden.vs[[0, 0, 1, 2, 3, 4, 5, 6]].float(),
        "constant": torch.full((8, 16), 0.1),
    }[case].requires_grad_()
    value = loss(v_s, golden.vt.float())
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(v_s.grad).all()


@BOTH
def test_one_sample_gives_zero(golden, loss, oracle):
    v_s = golden.vs[:1].clone().requires_grad_()
    value = loss(v_s, golden.vt[:1])
    value.backward()
    assert value.item() == 0
    assert v_s.grad.abs().sum() == 0


@pytest.mark.parametrize(
    ("params", "distance", "angle"),
    [({}, 25.0, 50.0), ({"beta": 0.1}, 2.5, 5.0), ({"distance": 3.0, "angle": 7.0, "beta": 2.0}, 6.0, 14.0)],
)
def test_terms_and_their_weights(golden, slow, toy, params, distance, angle):
    v_s = golden.vs[:, :12]
    method = toy.method("rkd", params, toy.setting(d_s=12))
    terms = method.loss(toy.batch(golden.y), toy.outputs(golden.zs, v_s), toy.outputs(golden.zt, golden.vt))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {
            "ce": slow.mean(slow.cross_entropies(golden.zs, golden.y)),
            "rkd_distance": distance * slow_distance(v_s, golden.vt),
            "rkd_angle": angle * slow_angle(v_s, golden.vt),
        }
    )


def test_no_gradient_reaches_the_teacher(golden, toy):
    v_s, v_t = golden.vs.clone().requires_grad_(), golden.vt.clone().requires_grad_()
    method = toy.method("rkd")
    terms = method.loss(toy.batch(golden.y), toy.outputs(golden.zs, v_s), toy.outputs(golden.zt, v_t))
    (terms["rkd_distance"] + terms["rkd_angle"]).backward()
    assert v_s.grad.abs().sum() > 0
    assert v_t.grad is None
    assert method.param_groups() == []


def test_negative_weight(toy):
    with pytest.raises(ConfigError, match=r"^rkd\.angle should be greater than or equal to 0, but got -1\.0\.$"):
        toy.method("rkd", {"angle": -1.0})

import math

import pytest
import torch
import torch.nn.functional as F

from kdtrain.config import ConfigError


def ce(toy, z, y):
    terms = toy.method("vanilla").loss(toy.batch(y), toy.outputs(z), None)
    assert list(terms) == ["ce"]
    return terms["ce"]


def test_golden_value(golden, toy):
    assert ce(toy, golden.zs, golden.y).item() == pytest.approx(3.3195046, rel=1e-7)


def test_equals_a_slow_loop(golden, slow, toy):
    expected = slow.mean(slow.cross_entropies(golden.zt, golden.y))
    assert ce(toy, golden.zt, golden.y).item() == pytest.approx(expected, rel=1e-12)


def test_equal_logits_know_nothing(toy):
    assert ce(toy, torch.zeros(3, 7), torch.tensor([0, 3, 6])).item() == pytest.approx(math.log(7))


def test_gradient_is_softmax_minus_one_hot(golden, toy):
    z = golden.zs.clone().requires_grad_()
    ce(toy, z, golden.y).backward()
    torch.testing.assert_close(z.grad, (golden.zs.softmax(1) - F.one_hot(golden.y, 10)) / 8)


def test_prediction_is_the_students(golden, toy):
    assert toy.method("vanilla").predict(toy.outputs(golden.zs)) is golden.zs


def test_nothing_to_configure(toy):
    with pytest.raises(ConfigError, match=r"^unknown key 'alpha' at vanilla\.alpha\. Known: \.$"):
        toy.method("vanilla", {"alpha": 1.0})

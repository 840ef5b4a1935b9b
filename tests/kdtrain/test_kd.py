import math

import pytest
import torch

from kdtrain.config import ConfigError
from kdtrain.methods.kd import kd_loss, kl_per_sample


@pytest.mark.parametrize(("tau", "expected"), [(4.0, 6.3772363), (10.0, 7.6126878)])
def test_golden_values(golden, tau, expected):
    assert kd_loss(golden.zs, golden.zt, tau).item() == pytest.approx(expected, rel=1e-7)


def test_two_classes_by_hand():
    # p_t = (3/4, 1/4), p_s = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2).
    z_t = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kd_loss(torch.zeros_like(z_t), z_t, 1.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("tau", [1.0, 4.0, 7.5])
def test_equals_a_slow_loop(golden, slow, tau):
    expected = slow.kls(golden.zs, golden.zt, tau)
    assert kl_per_sample(golden.zs, golden.zt, tau).tolist() == pytest.approx(expected, rel=1e-12)
    assert kd_loss(golden.zs, golden.zt, tau).item() == pytest.approx(slow.mean(expected), rel=1e-12)


def test_zero_for_equal_logits(golden):
    assert kl_per_sample(golden.zt, golden.zt, 4.0).abs().max() == 0


def test_not_negative(golden):
    assert (kl_per_sample(golden.zs, golden.zt, 4.0) > 0).all()


def test_a_constant_added_to_a_samples_logits_changes_nothing(golden):
    shifts = torch.linspace(-5, 5, 8, dtype=torch.float64)[:, None]
    shifted = kl_per_sample(golden.zs + shifts, golden.zt - 2 * shifts, 4.0)
    torch.testing.assert_close(shifted, kl_per_sample(golden.zs, golden.zt, 4.0))


def test_logits_and_temperature_scale_together(golden):
    # KL depends on z / tau only, and tau^2 stands in front.
    scaled = kl_per_sample(3 * golden.zs, 3 * golden.zt, 12.0)
    torch.testing.assert_close(scaled, 9 * kl_per_sample(golden.zs, golden.zt, 4.0))


def test_high_temperature_matches_centred_logits(golden):
    # Hinton et al., section 2.1: in the limit, half the mean squared difference of centred logits.
    difference = golden.zs - golden.zt
    limit = (difference - difference.mean(1, keepdim=True)).square().mean(1) / 2
    torch.testing.assert_close(kl_per_sample(golden.zs, golden.zt, 1e4), limit, rtol=1e-3, atol=0)


def test_gradient_is_tau_times_the_difference_of_probabilities(golden):
    z_s = golden.zs.clone().requires_grad_()
    kd_loss(z_s, golden.zt, 4.0).backward()
    torch.testing.assert_close(z_s.grad, 4 * ((golden.zs / 4).softmax(1) - (golden.zt / 4).softmax(1)) / 8)


def test_finite_where_a_probability_underflows():
    z_s, z_t = torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.0, 1000.0]])
    assert kd_loss(z_s, z_t, 1.0).item() == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("params", "gamma", "alpha", "tau"),
    [({}, 0.1, 0.9, 4.0), ({"gamma": 0.5, "alpha": 2.0, "tau": 10.0}, 0.5, 2.0, 10.0)],
)
def test_terms(golden, slow, toy, params, gamma, alpha, tau):
    terms = toy.method("kd", params).loss(toy.batch(golden.y), toy.outputs(golden.zs), toy.outputs(golden.zt))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {
            "ce": gamma * slow.mean(slow.cross_entropies(golden.zs, golden.y)),
            "kd": alpha * slow.mean(slow.kls(golden.zs, golden.zt, tau)),
        }
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"tau": 0}, r"^kd\.tau should be greater than 0, but got 0\.$"),
        ({"alpha": -0.5}, r"^kd\.alpha should be greater than or equal to 0, but got -0\.5\.$"),
        ({"gamma": -1}, r"^kd\.gamma should be greater than or equal to 0, but got -1\.$"),
        ({"taw": 4.0}, r"^unknown key 'taw' at kd\.taw\. Did you mean 'tau'\? Known: alpha, gamma, tau\.$"),
    ],
)
def test_bad_parameters(toy, params, message):
    with pytest.raises(ConfigError, match=message):
        toy.method("kd", params)

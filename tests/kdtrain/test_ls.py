import pytest
import torch

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef


def ls(toy, labels, z, **params):
    method = toy.method("ls", params, toy.setting(num_classes=z.shape[1]))
    terms = method.loss(toy.batch(labels), toy.outputs(z), None)
    assert list(terms) == ["ce"]
    return terms["ce"]


def slow_ls(slow, z, y, epsilon):
    """mean_b sum_c -q_c log p_c, q = (1 - epsilon) onehot + epsilon / K."""
    losses = []
    for row, label in zip(z.tolist(), y.tolist(), strict=True):
        q = [(1 - epsilon) * (c == label) + epsilon / len(row) for c in range(len(row))]
        losses.append(-sum(a * b for a, b in zip(q, slow.log_softmax(row), strict=True)))
    return slow.mean(losses)


def test_golden_value(golden, toy):
    assert ls(toy, golden.y, golden.zs).item() == pytest.approx(3.336453, rel=1e-6)


def test_golden_value_of_the_other_form(golden, toy):
    # 0.9 for the true class and 0.1 / (K - 1) for each other is epsilon = 0.1 K / (K - 1) spread over all classes.
    assert ls(toy, golden.y, golden.zs, epsilon=1 / 9).item() == pytest.approx(3.3383362, rel=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(("b", "k"), [(1, 10), (5, 100), (3, 200)])
def test_equals_a_slow_loop(slow, toy, b, k, epsilon):
    torch.manual_seed(0)
    z, y = 4 * torch.randn(b, k, dtype=torch.float64), torch.randint(k, (b,))
    assert ls(toy, y, z, epsilon=epsilon).item() == pytest.approx(slow_ls(slow, z, y, epsilon), rel=1e-12)


def test_two_classes_by_hand(toy):
    # Equal logits: -log(1/2) whatever the target.
    assert ls(toy, torch.tensor([1]), torch.zeros(1, 2)).item() == pytest.approx(0.6931472)


def test_gradient_vanishes_at_the_smoothed_target(toy):
    # p = 0.91 for the true class of ten and 0.01 for the others.
    p = torch.full((1, 10), 0.01, dtype=torch.float64)
    p[0, 3] = 0.91
    z = p.log().requires_grad_()
    ls(toy, torch.tensor([3]), z).backward()
    torch.testing.assert_close(z.grad, torch.zeros_like(z))


def test_without_smoothing_it_is_vanilla(golden, toy):
    vanilla = toy.method("vanilla").loss(toy.batch(golden.y), toy.outputs(golden.zs), None)["ce"]
    torch.testing.assert_close(ls(toy, golden.y, golden.zs, epsilon=0.0), vanilla)


def test_no_teacher_and_no_modules(toy):
    ref = MethodRef(name="ls")
    assert methods.needs(ref) == frozenset()
    assert not methods.nesterov(ref)
    assert methods.params(ref) == {"epsilon": 0.1}
    without = toy.setting()._replace(teacher=None, teacher_shapes=None)
    assert list(toy.method("ls", setting=without).parameters()) == []


@pytest.mark.parametrize(
    ("epsilon", "message"),
    [
        (-0.1, r"^ls\.epsilon should be greater than or equal to 0, but got -0\.1\.$"),
        (1.0, r"^ls\.epsilon should be less than 1, but got 1\.0\.$"),
    ],
)
def test_bad_parameters(toy, epsilon, message):
    with pytest.raises(ConfigError, match=message):
        toy.method("ls", {"epsilon": epsilon})

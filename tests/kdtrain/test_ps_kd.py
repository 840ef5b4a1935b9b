import pytest
import torch

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods.ps_kd import softened

TRAIN = torch.tensor([3, 4, 8, 11, 20, 21, 30, 50])  # places of the golden samples in the full training set


def ps_kd(toy, labels, epochs=4, num_classes=10, **params):
    without = toy.setting(epochs=epochs, num_classes=num_classes)._replace(teacher=None, teacher_shapes=None)
    method = toy.method("ps_kd", params, without)
    method.allocate(TRAIN[: len(labels)], labels)
    return method


def step(toy, method, golden, z, epoch, rows=slice(None)):
    batch = toy.batch(golden.y[rows], epoch)._replace(indices=TRAIN[rows])
    return method.loss(batch, toy.outputs(z[rows]), None)


def values(terms):
    return {name: term.item() for name, term in terms.items()}


def slow_past(slow, z, p, tau=1.0):
    """tau^2 mean_b sum_c -q_c log softmax(z / tau)_c, q the probabilities p at temperature tau."""
    losses = []
    for row, probabilities in zip(z.tolist(), p.tolist(), strict=True):
        q = [value ** (1 / tau) for value in probabilities]
        logs = slow.log_softmax(row, tau)
        losses.append(-(tau**2) * sum(a / sum(q) * b for a, b in zip(q, logs, strict=True)))
    return slow.mean(losses)


class TestTerms:
    def test_golden_value(self, toy, golden):
        # a = 0.8 * 2 / 4 = 0.4; the first epoch's predictions are softmax(zt).
        method = ps_kd(toy, golden.y)
        step(toy, method, golden, golden.zt, epoch=1)
        terms = step(toy, method, golden, golden.zs, epoch=2)
        assert sum(values(terms).values()) == pytest.approx(3.4421474, rel=1e-7)

    @pytest.mark.parametrize(
        ("params", "epoch", "a", "tau"),
        [
            ({}, 2, 0.4, 1.0),
            ({}, 3, 0.6, 1.0),
            ({}, 4, 0.8, 1.0),
            ({"alpha": 0.5}, 4, 0.5, 1.0),
            ({"tau": 3.0}, 4, 0.8, 3.0),
        ],
    )
    def test_equal_slow_loops(self, toy, golden, slow, params, epoch, a, tau):
        method = ps_kd(toy, golden.y, **params)
        step(toy, method, golden, golden.zt, epoch - 1)
        assert values(step(toy, method, golden, golden.zs, epoch)) == pytest.approx(
            {
                "ce": (1 - a) * slow.mean(slow.cross_entropies(golden.zs, golden.y)),
                "past": a * slow_past(slow, golden.zs, golden.zt.softmax(1), tau),
            },
            rel=1e-10,
        )

    def test_the_first_epoch_is_the_cross_entropy(self, toy, golden):
        terms = values(step(toy, ps_kd(toy, golden.y), golden, golden.zs, epoch=1))
        assert terms == pytest.approx({"ce": 0.8 * 3.3195046, "past": 0.2 * 3.3195046}, rel=1e-7)

    @pytest.mark.parametrize(("b", "k"), [(1, 10), (2, 100), (3, 200)])
    def test_other_sizes(self, toy, slow, b, k):
        torch.manual_seed(0)
        z, before = 3 * torch.randn(2, b, k, dtype=torch.float64)
        y = torch.randint(k, (b,))
        method = ps_kd(toy, y, epochs=2, num_classes=k)
        for epoch, logits in ((1, before), (2, z)):
            batch = toy.batch(y, epoch)._replace(indices=TRAIN[:b])
            terms = method.loss(batch, toy.outputs(logits), None)
        assert terms["past"].item() == pytest.approx(0.8 * slow_past(slow, z, before.softmax(1)), rel=1e-10)

    def test_the_gradient_pulls_towards_labels_and_past(self, toy, golden):
        # d/dz of (1 - a) CE + a CE(P) is (p - (1 - a) onehot - a P) / B.
        method = ps_kd(toy, golden.y)
        step(toy, method, golden, golden.zt, epoch=1)
        z = golden.zs.clone().requires_grad_()
        sum(step(toy, method, golden, z, epoch=2).values()).backward()
        target = 0.6 * torch.eye(10, dtype=torch.float64)[golden.y] + 0.4 * golden.zt.softmax(1)
        torch.testing.assert_close(z.grad, (golden.zs.softmax(1) - target) / 8)


class TestSoftened:
    def test_one_hot_stays(self):
        one_hot = torch.eye(3)
        for tau in (0.5, 1.0, 4.0):
            assert torch.equal(softened(one_hot, tau), one_hot)

    def test_is_the_softmax_at_that_temperature(self, golden):
        torch.testing.assert_close(softened(golden.zt.softmax(1), 4.0), (golden.zt / 4).softmax(1))


class TestMemory:
    def test_holds_the_labels_at_first(self, toy, golden):
        assert torch.equal(ps_kd(toy, golden.y).past, torch.eye(10, dtype=torch.float64)[golden.y])

    def test_is_read_before_it_is_written(self, toy, golden, slow):
        method = ps_kd(toy, golden.y)
        step(toy, method, golden, golden.zt, epoch=3)
        found = [step(toy, method, golden, z, epoch=4)["past"].item() for z in (golden.zs, golden.zs)]
        past = [0.8 * slow_past(slow, golden.zs, p.softmax(1)) for p in (golden.zt, golden.zs)]
        assert found == pytest.approx(past)

    def test_goes_by_the_images_places_whatever_their_order(self, toy, golden):
        method = ps_kd(toy, golden.y)
        for rows in ([6, 0, 3], [7, 2], [1]):
            step(toy, method, golden, golden.zt, epoch=1, rows=rows)
        expected = torch.eye(10, dtype=torch.float64)[golden.y]
        expected[[0, 1, 2, 3, 6, 7]] = golden.zt.softmax(1)[[0, 1, 2, 3, 6, 7]]
        torch.testing.assert_close(method.past, expected)  # images 4 and 5 were not seen

    def test_carries_no_gradient(self, toy, golden):
        method = ps_kd(toy, golden.y)
        step(toy, method, golden, golden.zs.clone().requires_grad_(), epoch=1)
        assert not method.past.requires_grad

    def test_a_fresh_instance_goes_on_from_the_saved_state(self, toy, golden):
        method, fresh = ps_kd(toy, golden.y), ps_kd(toy, golden.y)
        step(toy, method, golden, golden.zt, epoch=1)
        assert set(method.state_dict()) == {"past"}
        fresh.load_state_dict(method.state_dict())
        assert values(step(toy, fresh, golden, golden.zs, 2)) == values(step(toy, method, golden, golden.zs, 2))

    def test_is_of_float32_in_a_trial(self, golden, toy):
        method = methods.build(MethodRef(name="ps_kd"), toy.setting())
        method.allocate(TRAIN, golden.y)
        terms = step(toy, method, golden, golden.zs.float(), epoch=1)
        assert method.past.dtype == terms["past"].dtype == torch.float32


class TestPerSample:
    @pytest.mark.parametrize("tau", [1.0, 3.0])
    def test_is_the_divergence_of_each_sample(self, toy, golden, slow, tau):
        method = ps_kd(toy, golden.y, tau=tau)
        step(toy, method, golden, golden.zt, epoch=1)
        batch = toy.batch(golden.y, 2)._replace(indices=TRAIN)
        (term,) = method.per_sample(batch, toy.outputs(golden.zs), None).items()
        assert term[0] == "past"
        assert term[1].tolist() == pytest.approx([0.4 * kl for kl in slow.kls(golden.zs, golden.zt, tau)])

    def test_of_labels_is_the_cross_entropy(self, toy, golden, slow):
        # The entropy of a one-hot target is 0.
        method = ps_kd(toy, golden.y)
        batch = toy.batch(golden.y, 1)._replace(indices=TRAIN)
        terms = method.per_sample(batch, toy.outputs(golden.zs), None)["past"]
        assert terms.tolist() == pytest.approx([0.2 * ce for ce in slow.cross_entropies(golden.zs, golden.y)])

    def test_has_the_gradient_of_the_term(self, toy, golden):
        method, z = ps_kd(toy, golden.y, tau=2.0), golden.zs.clone().requires_grad_()
        step(toy, method, golden, golden.zt, epoch=1)
        batch = toy.batch(golden.y, 3)._replace(indices=TRAIN)
        mean = method.per_sample(batch, toy.outputs(z), None)["past"].mean()
        term = method.loss(batch, toy.outputs(z), None)["past"]
        torch.testing.assert_close(*(torch.autograd.grad(value, z)[0] for value in (mean, term)))

    def test_stores_nothing(self, toy, golden):
        method = ps_kd(toy, golden.y)
        before = method.past.clone()
        method.per_sample(toy.batch(golden.y)._replace(indices=TRAIN), toy.outputs(golden.zs), None)
        assert torch.equal(method.past, before)


def test_asks_for_no_teacher_and_for_nesterov():
    ref = MethodRef(name="ps_kd")
    assert methods.needs(ref) == frozenset()
    assert methods.nesterov(ref)
    assert methods.params(ref) == {"alpha": 0.8, "tau": 1.0}


def test_finite_for_probabilities_that_underflow(toy):
    y, method = torch.tensor([0]), ps_kd(toy, torch.tensor([0]), num_classes=2).float()
    batch = toy.batch(y, 2)._replace(indices=TRAIN[:1])
    method.loss(batch, toy.outputs(torch.tensor([[1000.0, 0.0]])), None)
    assert method.past.tolist() == [[1.0, 0.0]]
    z = torch.tensor([[0.0, 1000.0]], requires_grad=True)
    for term in (method.per_sample(batch, toy.outputs(z), None), method.loss(batch, toy.outputs(z), None)):
        assert term["past"].sum().item() == pytest.approx(0.4 * 1000)
        gradient = torch.autograd.grad(term["past"].sum(), z)[0]
        torch.testing.assert_close(gradient, torch.tensor([[-0.4, 0.4]]))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"alpha": 1.5}, r"^ps_kd\.alpha should be less than or equal to 1, but got 1\.5\.$"),
        ({"tau": 0}, r"^ps_kd\.tau should be greater than 0, but got 0\.$"),
    ],
)
def test_bad_parameters(toy, golden, params, message):
    with pytest.raises(ConfigError, match=message):
        ps_kd(toy, golden.y, **params)

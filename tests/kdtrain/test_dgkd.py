import pytest
import torch

from kdtrain import methods
from kdtrain.config import ConfigError, MethodRef
from kdtrain.methods.dgkd import kept

NAMES = ["resnet44", "resnet32", "resnet26"]


def random(*shape, seed=0):
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(toy, params, z_s, members, y):
    """The terms for logits of the student and of the members: the teacher, then the assistants."""
    batch = toy.batch(y)._replace(assistants=tuple(map(toy.outputs, members[1:])))
    return toy.method("dgkd", params).loss(batch, toy.outputs(z_s), toy.outputs(members[0]))


@pytest.mark.parametrize(("tau", "value"), [(4.0, 6.3772363), (10.0, 7.6126878)])
def test_golden_value_of_the_teacher_alone(golden, toy, tau, value):
    terms = run(toy, {"pupil": True, "tau": tau}, golden.zs, [golden.zt], golden.y)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx({"dgkd": value}, rel=1e-7)


@pytest.mark.parametrize(("n", "num_classes"), [(1, 10), (2, 100), (5, 200)])
@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_all_members_count_where_none_is_dropped(toy, slow, n, num_classes, reduction):
    z_s, y = random(n, num_classes), torch.arange(n)
    members = [random(n, num_classes, seed=seed) for seed in (1, 2, 3)]
    total = sum(slow.mean(slow.kls(z_s, z_m, 5.0)) for z_m in members)
    expected = total / (num_classes if reduction == "mean" else 1)
    terms = run(toy, {"assistants": NAMES[:2], "drop": 0, "reduction": reduction}, z_s, members, y)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx({"dgkd": expected})


@pytest.mark.parametrize(("lam", "ce", "dgkd"), [(0.5, 0.5, 0.5), (0.25, 0.75, 0.25), (0.0, 1.0, 0.0)])
def test_lam_shares_between_the_terms(golden, toy, slow, lam, ce, dgkd):
    params = {"assistants": NAMES[:1], "lam": lam, "tau": 3.0, "drop": 0}
    terms = run(toy, params, golden.zs, [golden.zt, golden.zc], golden.y)
    total = sum(slow.mean(slow.kls(golden.zs, z_m, 3.0)) for z_m in (golden.zt, golden.zc))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"ce": ce * slow.mean(slow.cross_entropies(golden.zs, golden.y)), "dgkd": dgkd * total}
    )


def test_one_member_is_dropped_by_default(golden, toy, slow):
    # Three members that differ: what is left is one of the three sums of two.
    members = [golden.zt, golden.zc, golden.zs.flip(1)]
    values = [slow.mean(slow.kls(golden.zs, z_m, 5.0)) for z_m in members]
    method = toy.method("dgkd", {"assistants": NAMES[:2]})
    batch = toy.batch(golden.y)._replace(assistants=tuple(map(toy.outputs, members[1:])))
    student, teacher = toy.outputs(golden.zs), toy.outputs(members[0])
    torch.manual_seed(0)
    found = [method.loss(batch, student, teacher)["dgkd"].item() for _ in range(40)]
    sums = [sum(values) - value for value in values]
    hits = [sum(term == pytest.approx(total) for term in found) for total in sums]
    assert sum(hits) == 40
    assert min(hits) > 0


class TestKept:
    def test_members_are_dropped_equally_often(self):
        torch.manual_seed(0)
        draws = [kept(4, 1) for _ in range(4000)]
        assert all(len(draw) == 3 and draw == sorted(set(draw)) for draw in draws)
        # Each is dropped in a quarter of 4000 draws; the standard deviation is 27.
        for member in range(4):
            assert sum(member not in draw for draw in draws) == pytest.approx(1000, abs=140)

    @pytest.mark.parametrize(("members", "drop", "left"), [(4, 2, 2), (4, 3, 1), (4, 4, 1), (4, 9, 1), (2, 1, 1)])
    def test_one_member_is_always_left(self, members, drop, left):
        assert len(kept(members, drop)) == left

    @pytest.mark.parametrize(("members", "drop"), [(3, 0), (1, 0), (1, 1)])
    def test_nothing_is_drawn_where_nothing_can_be_dropped(self, members, drop):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        assert kept(members, drop) == list(range(members))
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_seed_decides(self):
        torch.manual_seed(3)
        first = [kept(5, 2) for _ in range(10)]
        torch.manual_seed(3)
        assert [kept(5, 2) for _ in range(10)] == first
        assert len({tuple(draw) for draw in first}) > 1


def test_gradient_reaches_the_student_alone(golden, toy):
    z_s = golden.zs.clone().requires_grad_()
    terms = run(toy, {"assistants": NAMES[:1], "drop": 0}, z_s, [golden.zt, golden.zc], golden.y)
    terms["dgkd"].backward()
    # d/dz of tau^2 KL, the mean of 8 samples: tau (p_s - p_m) / 8.
    p_s, p_t, p_c = (torch.softmax(z / 5, dim=1) for z in (golden.zs, golden.zt, golden.zc))
    torch.testing.assert_close(z_s.grad, 5 * (2 * p_s - p_t - p_c) / 8)


def test_zero_for_members_that_agree(golden, toy):
    terms = run(toy, {"assistants": NAMES[:2]}, golden.zs, [golden.zs, golden.zs + 2, golden.zs - 1], golden.y)
    assert terms["dgkd"].item() == pytest.approx(0, abs=1e-12)


class TestAssistants:
    def test_named_by_the_parameters(self):
        assert methods.assistants(MethodRef(name="dgkd", params={"assistants": NAMES})) == tuple(NAMES)
        assert methods.assistants(MethodRef(name="dgkd", params={"pupil": True})) == ()

    def test_each_is_trained_with_those_before_it(self, toy):
        ref = MethodRef(name="dgkd", params={"assistants": NAMES, "tau": 3.0})
        refs = [methods.for_assistant(ref, name) for name in NAMES]
        assert [methods.assistants(ref) for ref in refs] == [(), ("resnet44",), ("resnet44", "resnet32")]
        for trained in refs:
            method = methods.build(trained, toy.setting())
            assert method.config.tau == 3.0
            assert method.config.pupil is (trained is refs[0])

    def test_none_is_refused(self, toy):
        message = (
            r"^dgkd\.assistants must name at least one architecture between teacher and student, largest first, "
            r"e\.g\. \['resnet44', 'resnet32'\], but got none\.$"
        )
        with pytest.raises(ConfigError, match=message):
            toy.method("dgkd")

    def test_a_pupil_has_none(self, toy):
        with pytest.raises(ConfigError, match=r"^dgkd pupil must be false where assistants are named, but got"):
            toy.method("dgkd", {"assistants": NAMES, "pupil": True})

    def test_each_is_named_once(self, toy):
        with pytest.raises(ConfigError, match=r"^dgkd assistants must name each architecture once, but got"):
            toy.method("dgkd", {"assistants": ["resnet44", "resnet32", "resnet44"]})


def test_the_teacher_does_not_train(toy):
    method = toy.method("dgkd", {"assistants": NAMES})
    assert not method.teacher_trains
    assert method.param_groups() == []


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"lam": 1.5}, r"^dgkd\.lam should be less than or equal to 1, but got 1\.5\.$"),
        ({"drop": -1}, r"^dgkd\.drop should be greater than or equal to 0, but got -1\.$"),
        ({"reduction": "sum"}, r"^dgkd\.reduction should be 'batchmean' or 'mean', but got 'sum'\.$"),
    ],
)
def test_parameters_out_of_bounds(toy, params, message):
    with pytest.raises(ConfigError, match=message):
        toy.method("dgkd", {"assistants": NAMES, **params})

"""Starting points from another sweep: the same method's, of the nearest pairs first, a quarter of the budget."""

from datetime import UTC, datetime

import pytest

from kdtrain.config import ConfigError, MethodRef, canonical
from sweeps import rows
from sweeps.plan import expand
from sweeps.schema import METRICS, Status
from sweeps.searches import searches
from sweeps.spec import parse_text
from sweeps.store import Store

# Weights of resnet8, 14, 20, 32 and 56 are some 78, 175, 272, 466 and 855 thousand: of logarithms 4.35, 5.16, 5.61,
# 6.14 and 6.75.
TEXT = """
[sweep]
name = "new"
[data]
dataset = "fashion_mini"
val_size = 1000
[train]
epochs = 30
[grid]
pair = ["resnet32/resnet14"]
method = ["kd"]
seed = [1]
[search]
prior = "old"
trials = 20
[run]
results = "RESULTS"
"""


class Old:
    """A finished sweep, and a spec that takes its points."""

    def __init__(self, folder):
        self.results = str(folder)
        self.store = Store(self.results, "old")

    def spec(self, *pairs):
        text = TEXT.replace("RESULTS", self.results)
        for old, new in pairs:
            assert text.count(old) == 1
            text = text.replace(old, new)
        return parse_text(text)

    def prior(self, *pairs):
        spec = self.spec(*pairs)
        (found,) = searches(spec, expand(spec), Store(self.results, "new"), [])
        return found.prior

    def leave(self, pair, params, acc, *, method="kd", seed=1, status=Status.COMPLETED, lr=0.05, **columns):
        """The row of a trial; further `columns`."""
        spec = self.spec(("resnet32/resnet14", pair), ('"kd"', f'"{method}"'))
        (study,) = expand(spec).studies
        base = study.example
        trial = base.model_copy(
            update={
                "method": MethodRef(name=method, params=params),
                "seed": seed,
                "train": base.train.model_copy(update={"lr": lr}),
            }
        )
        searched = {"phase": columns.pop("phase", None), "point": columns.pop("point", None)}
        source = {"sweep": "old", "spec_sha256": "0" * 64, "git_commit": ""}
        error = ("E", "") if status == Status.FAILED else None
        self.store.write_trial(
            {
                **rows.identity(trial, columns.pop("role", "student")),
                **rows.searched(searched),
                **rows.outcome(status, 30, error),
                **dict.fromkeys(field.name for field in METRICS),
                "val_acc": acc,
                **rows.provenance(source, "cpu", 1, datetime.now(UTC)),
                **columns,
            }
        )


@pytest.fixture
def old(tmp_path):
    return Old(tmp_path)


def point(alpha, tau=4.0):
    return {"alpha": alpha, "tau": tau}


def test_nearest_pair_first_then_the_second_best_of_each(old):
    # From resnet32/resnet14 it is |6.14 - 5.61| = 0.54 to resnet20/resnet14, 0.81 to resnet32/resnet8 and 1.42 to
    # resnet56/resnet8.
    for pair, alpha in (("resnet56/resnet8", 1.0), ("resnet20/resnet14", 2.0), ("resnet32/resnet8", 3.0)):
        for acc, more in ((50.0, 0.0), (70.0, 0.1), (60.0, 0.2)):
            old.leave(pair, point(alpha + more), acc)
    # 5 of 20: the best of each, then the second best of the two nearest.
    assert old.prior() == [point(2.1), point(3.1), point(1.1), point(2.2), point(3.2)]


def test_its_own_pair_is_the_nearest(old):
    old.leave("resnet20/resnet14", point(1.0), 90.0)
    old.leave("resnet32/resnet14", point(2.0), 10.0)
    assert old.prior() == [point(2.0), point(1.0)]


def test_among_equal_pairs_the_nearest_fraction_and_then_the_data_set(old):
    pair = "resnet32/resnet14"
    old.leave(pair, point(1.0), 90.0, fraction=0.1)
    old.leave(pair, point(2.0), 90.0, fraction=0.5)
    old.leave(pair, point(3.0), 90.0, dataset="cifar10", fraction=0.5)
    assert old.prior() == [point(2.0), point(3.0), point(1.0)]
    assert old.prior(("seed = [1]", "seed = [1]\nfraction = [0.15]")) == [point(1.0), point(2.0), point(3.0)]


@pytest.mark.parametrize(("trials", "count"), [(1, 1), (3, 1), (8, 2), (11, 2), (12, 3), (100, 6)])
def test_a_quarter_of_the_budget_and_one_at_least(old, trials, count):
    for i in range(6):
        old.leave("resnet32/resnet14", point(1.0 + i), 50.0 - i)
    found = old.prior(("trials = 20", f"trials = {trials}"))
    assert found == [point(1.0 + i) for i in range(count)]


def test_what_says_nothing_is_left_out(old):
    pair = "resnet32/resnet14"
    old.leave(pair, point(1.0), 90.0, status=Status.STOPPED)
    old.leave(pair, point(1.1), None, status=Status.FAILED)
    old.leave(pair, point(1.2), None, status=Status.DIVERGED)
    old.leave(pair, point(1.3), None)  # without held-out images
    old.leave(pair, point(1.4), 90.0, phase="confirm")
    old.leave(pair, point(1.5), 90.0, role="teacher")
    old.leave(pair, point(1.6), 90.0, method="dkd")
    old.leave(pair, point(2.0), 50.0)
    assert old.prior() == [point(2.0)]


def test_points_outside_of_the_new_space_are_left_out(old):
    for alpha, tau, acc in ((20.0, 4.0, 90.0), (1.0, 30.0, 80.0), (2.0, 4.0, 50.0), (10.0, 20.0, 40.0)):
        old.leave("resnet32/resnet14", point(alpha, tau), acc)
    assert old.prior() == [point(2.0), point(10.0, 20.0)]  # kd's space: alpha 0.1..10, tau 1..20


def test_a_score_is_the_mean_over_the_trials_of_a_point(old):
    for seed, (low, high) in enumerate([(60.0, 58.0), (40.0, 58.0)]):
        old.leave("resnet32/resnet14", point(1.0), low, seed=seed)
        old.leave("resnet32/resnet14", point(2.0), high, seed=seed)
    assert old.prior() == [point(2.0), point(1.0)]


def test_a_point_that_two_pairs_share_is_tried_once(old):
    for pair in ("resnet32/resnet14", "resnet20/resnet14"):
        old.leave(pair, point(1.0), 60.0)
        old.leave(pair, point(2.0), 50.0)
    assert old.prior() == [point(1.0), point(2.0)]


def test_numbers_are_written_as_in_the_new_space(old):
    old.leave("resnet32/resnet14", point(2.0), 60.0)
    space = "[search.space.kd]\nalpha = [1, 2]\n[run]"
    assert repr(old.prior(("[run]", space))) == "[{'alpha': 2}]"


def test_values_of_the_recipe_and_of_parts_come_from_the_row(old):
    old.leave("resnet32/resnet14", {"kd": {"alpha": 2.0}, "sp": {"beta": 500.0}}, 60.0, method="sp+kd", lr=0.02)
    space = '[search.space]\ntrain = { lr = { low = 0.01, high = 0.1 } }\n[search.space."sp+kd"]\n'
    space += "sp = { beta = { low = 1.0, high = 1000.0 } }\nkd = { alpha = [1.0, 2.0] }\n[run]"
    assert old.prior(('"kd"', '"sp+kd"'), ("[run]", space)) == [{"sp.beta": 500.0, "kd.alpha": 2.0, "train.lr": 0.02}]


def test_students_of_earlier_trials_are_points_of_a_searched_student(old):
    students = "[search.space.student]\nresnet = { depth = [8, 14] }\n[run]"
    network = {"family": "resnet", "resnet.depth": 8}
    old.leave("resnet32/resnet8", point(1.0), 60.0, phase="search", point=canonical({**point(1.0), **network}))
    old.leave("resnet32/resnet8", point(2.0), 90.0)  # of a grid: the student says its depth
    old.leave("resnet32/wrn_10_1", point(3.0), 95.0)  # no student of the space
    assert old.prior(("resnet32/resnet14", "resnet32/*"), ("[run]", students)) == [
        {**point(2.0), **network},
        {**point(1.0), **network},
    ]


def test_a_method_without_a_teacher(old):
    old.leave("resnet14", {}, 60.0, method="vanilla")
    old.leave("resnet14", {"epsilon": 0.2}, 60.0, method="ls")
    assert old.prior(("resnet32/resnet14", "resnet14"), ('"kd"', '"ls"')) == [{"epsilon": 0.2}]
    assert old.prior(("resnet32/resnet14", "resnet14"), ('"kd"', '"vanilla"')) == [{}]


def test_nothing_of_another_method_alone(old):
    old.leave("resnet32/resnet14", point(1.0), 60.0, method="dkd")
    assert old.prior() == []


def test_unknown_sweep_is_refused_with_those_there_are(old):
    line = "search.prior must name a sweep with trials that have a val_acc, but got 'old'. Sweeps in "
    with pytest.raises(ConfigError, match=f"^{line}{old.results}: none.$"):
        old.prior()
    old.leave("resnet32/resnet14", point(1.0), None)  # without held-out images
    Store(old.results, "third").write_bytes(b"", "spec.toml")
    with pytest.raises(ConfigError, match=f"^{line}{old.results}: old, third.$"):
        old.prior()

"""The plan of a search: its studies, their ids, and what a point means for a trial and its confirmation."""

import re

import pytest

from kdtrain.build import trial_id
from kdtrain.config import ConfigError
from kdtrain.methods import METHODS
from sweeps import space
from sweeps.plan import expand
from sweeps.searches import searches
from sweeps.spec import parse_text
from sweeps.store import Store

HEAD = """
[sweep]
name = "s"
[data]
dataset = "fashion_mini"
val_size = 1000
[train]
epochs = 30
[grid]
pair = ["resnet14/resnet8"]
method = ["kd"]
seed = [1]
"""
SEARCH = "[search]\ntrials = 8\n"
CONFIRM = "[confirm]\ntop = 2\nseed = [11, 12]\n"


def studies(text):
    return expand(parse_text(text)).studies


def study(text):
    (found,) = studies(text)
    return found


def swap(old, new):
    assert HEAD.count(old) == 1
    return HEAD.replace(old, new) + SEARCH


@pytest.mark.parametrize("method", METHODS)
def test_default_space_of_each_method_plans_with_its_own_values_first(method):
    entry = '{ name = "dgkd", assistants = ["resnet14"] }' if method == "dgkd" else f'"{method}"'
    text = swap('"kd"', entry).replace("resnet14/resnet8", "resnet20/resnet8")
    found = study(text + CONFIRM)
    assert list(found.space) == list(METHODS[method].search_space)
    assert [space.misfit(found.space, point) for point in found.starts] == [None]
    trial, _ = found.cell.trial(found.starts[0], 1)
    plain = expand(parse_text(text.replace(SEARCH, ""))).trials
    assert list(plain) == [trial_id(trial)] == [trial_id(found.example)]


def test_vanilla_is_one_point():
    text = swap('"kd"', '"vanilla"')
    spec = parse_text(text)
    (search,) = searches(spec, expand(spec), Store("/nowhere", "none"), [])
    assert (search.study.space, search.study.starts, search.budget, search.left) == ({}, [{}], 1, 1)


def test_a_study_for_each_cell_and_no_trials_of_its_own():
    text = HEAD.replace('["kd"]', '["vanilla", "kd", { name = "kd", tau = 2.0 }]').replace(
        "seed =", "lr = [0.1, 0.2]\nseed ="
    )
    text = text.replace('"resnet14/resnet8"', '"resnet14/resnet8", "resnet20/resnet8"')
    plan = expand(parse_text(text + SEARCH))
    assert (plan.cells, plan.trials) == ([], {})
    # Vanilla looks at no teacher: one study in both pairs.
    cells = [(one.axes["method"], one.axes["pair"][:8], one.axes.get("tau"), one.axes["lr"]) for one in plan.studies]
    assert cells == [
        ("vanilla", "resnet14", None, 0.1),
        ("vanilla", "resnet14", None, 0.2),
        *(("kd", pair, None, lr) for pair in ("resnet14", "resnet20") for lr in (0.1, 0.2)),
        *(("kd", pair, 2.0, lr) for pair in ("resnet14", "resnet20") for lr in (0.1, 0.2)),
    ]
    assert len({one.id for one in plan.studies}) == 10


class TestId:
    BASE = HEAD + SEARCH

    @pytest.mark.parametrize(
        "added",
        [
            "[search.space.kd]\nalpha = { low = 1.0, high = 2.0 }\ntau = [1.0, 2.0]\n",
            "[search.space.train]\nlr = [0.05, 0.1]\n",
            "[search.start]\nkd = [{ alpha = 1.0, tau = 2.0 }]\n",
            "[search.space.kd]\nalpha = [0.9]\n[search.start]\nkd = []\n",
            '[scheduler]\nname = "asha"\n',
            CONFIRM,
            '[run]\nresults = "elsewhere"\ncpus = 2\nreplay = "other"\n',
            "[[override]]\nset = { alpha = 3.0 }\n",  # of a parameter that is searched: where it starts
        ],
    )
    def test_is_the_same_however_it_is_searched(self, added):
        assert study(self.BASE + added).id == study(self.BASE).id

    @pytest.mark.parametrize("key", ["trials = 9", 'sampler = "gp"\ntrials = 8', "seed = 3\ntrials = 8"])
    def test_is_the_same_with_another_budget_or_sampler(self, key):
        assert study(self.BASE.replace("trials = 8", key)).id == study(self.BASE).id

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("epochs = 30", "epochs = 31"),
            ("epochs = 30", "epochs = 30\nlr = 0.1"),
            ("seed = [1]", "seed = [2]"),
            ("seed = [1]", "seed = [1]\nfraction = [0.5]"),
            ("seed = [1]", "seed = [1]\n[grid.kd]\ntau = [2.0]"),
            ("seed = [1]", "seed = [1]\n[[override]]\nset = { gamma = 1.0 }"),
            ("resnet14/resnet8", "resnet20/resnet8"),
            ("resnet14/resnet8", "resnet14/resnet14"),
            ('"kd"', '"cid"'),
            ("val_size = 1000", "val_size = 999"),
            ("val_size = 1000", "val_size = 1000\nsubset_seed = 1"),
            ("val_size = 1000", "val_size = 1000\nview_seed = 7"),
            ("[train]", "[teacher]\nseed = 1\n[train]"),
        ],
    )
    def test_changes_with_all_that_is_not_searched(self, old, new):
        assert study(swap(old, new)).id != study(self.BASE).id

    def test_of_several_seeds_is_the_same_for_more_of_them(self):
        def with_seeds(seeds):
            return study(HEAD.replace("[1]", seeds) + SEARCH + 'score = "mean_over_seeds"\n').id

        assert with_seeds("[1, 2]") == with_seeds("[1, 2, 3]") == with_seeds("[4, 5]") != study(self.BASE).id


class TestPoint:
    def test_of_a_method_is_the_trial_that_a_grid_has(self):
        trial, teachers = study(HEAD + SEARCH).cell.trial({"alpha": 2.0, "tau": 3.0}, 1)
        grid = HEAD.replace('"kd"', '{ name = "kd", alpha = 2.0, tau = 3.0 }')
        plan = expand(parse_text(grid))
        assert list(plan.trials) == [trial_id(trial)]
        assert plan.teachers == teachers
        assert trial.data.val_size == 1000

    def test_of_parts_the_recipe_and_the_student(self):
        text = swap('"kd"', '"sp+kd"').replace("resnet14/resnet8", "resnet14/*")
        text += "[search.space]\ntrain = { lr = [0.1, 0.2] }\n"
        text += "[search.space.student]\nresnet = { depth = [8, 14], width = [1, 2] }\n"
        trial, _ = study(text).cell.trial(
            {
                "sp.beta": 500.0, "kd.alpha": 2.0, "kd.tau": 3.0, "train.lr": 0.2,
                "family": "resnet", "resnet.depth": 14, "resnet.width": 2,
            },
            seed=5,
        )  # fmt: skip
        assert trial.method.params == {"sp": {"beta": 500.0}, "kd": {"alpha": 2.0, "tau": 3.0}}
        assert (trial.train.lr, trial.train.epochs, trial.student, trial.seed) == (0.2, 30, "resnet14x2", 5)
        assert trial.teacher.model == "resnet14"

    def test_goes_before_overrides(self):
        override = "[[override]]\nset = { alpha = 7.0, gamma = 0.5 }\n"
        trial, _ = study(HEAD + SEARCH + override).cell.trial({"alpha": 2.0, "tau": 3.0}, 1)
        assert trial.method.params == {"alpha": 2.0, "tau": 3.0, "gamma": 0.5}

    def test_confirmed_is_the_trial_of_a_sweep_without_a_search(self):
        found = study(HEAD + SEARCH + CONFIRM)
        trial, teachers = found.cell.confirmation({"alpha": 2.0, "tau": 3.0}, 11)
        grid = HEAD.replace('"kd"', '{ name = "kd", alpha = 2.0, tau = 3.0 }').replace("val_size = 1000\n", "")
        plan = expand(parse_text(grid.replace("[1]", "[11]")))
        assert list(plan.trials) == [trial_id(trial)]
        assert plan.teachers == teachers  # which see all images, too
        assert (trial.data.val_size, trial.seed) == (0, 11)

    def test_has_the_teachers_that_the_plan_trains(self):
        without, confirmed = (expand(parse_text(HEAD + SEARCH + added)) for added in ("", CONFIRM))
        assert [teacher.data.val_size for teacher in without.teachers.values()] == [1000]
        assert [teacher.data.val_size for teacher in confirmed.teachers.values()] == [1000, 0]
        assert [one.requirements for one in confirmed.studies] == [frozenset(without.teachers)]
        assert [one.confirmation is None for one in (*without.studies, *confirmed.studies)] == [True, False]

    def test_has_teachers_of_its_own_where_they_depend_on_it(self):
        plan = expand(parse_text(swap('"kd"', '"tf_kd"').replace("resnet14/resnet8", "resnet8")))
        assert (plan.teachers, plan.studies[0].requirements) == ({}, frozenset())
        trial, teachers = plan.studies[0].cell.trial({"alpha": 0.5, "tau": 3.0}, 1)
        assert list(teachers) == [trial.teacher.id]


def test_points_of_a_space_are_different_trials():
    text = (
        swap('"kd"', '"cid"').replace("resnet14/resnet8", "resnet14/*")
        + """
[search.space.cid]
sr = [false, true]
alpha = { low = 1, high = 9, step = 3, when = { sr = true } }
[search.space.student]
resnet = { depth = [8, 14], width = [1, 2] }
shufflenet_v2 = {}
"""
    )
    found = study(text)
    every = list(space.points(found.space))
    trials = {trial_id(found.cell.trial(point, 1)[0]) for point in every}
    assert len(trials) == len(every) == (1 + 3) * (4 + 1)
    assert found.example.student == "resnet8"  # the first


def test_every_student_is_checked_when_it_is_planned():
    text = swap('"kd"', '"ab"').replace("resnet14/resnet8", "resnet14/*")
    students = "[search.space.student]\nresnet = { depth = [8] }\n"
    assert study(text + students).example.student == "resnet8"
    message = "ab needs networks with equal numbers of stages, but got 4 and 3. (in the search pair = resnet14/*, "
    with pytest.raises(ConfigError, match=re.escape(message)):
        study(text + students + "wrn = { depth = [10], width = [1.0] }\nvgg = { depth = [8] }\n")


def test_limits_that_no_student_meets_are_refused_with_the_least_there_is(tmp_path):
    text = swap("resnet14/resnet8", "resnet14/*") + (
        "limits = { params = 10_000 }\n[search.space.student]\nresnet = { depth = [8, 14] }\n"
    )
    spec = parse_text(text)
    rule = re.escape(
        "search.limits must leave a student of resnet14/*, but got params = 10000; the least that there is:"
    )
    with pytest.raises(ConfigError, match=rule):
        searches(spec, expand(spec), Store(str(tmp_path), "s"), [])


def test_first_point_has_what_an_override_says_of_the_recipe():
    text = HEAD + SEARCH + "[search.space.train]\nlr = [0.01, 0.05]\n[[override]]\nset = { lr = 0.01 }\n"
    assert study(text).starts[0]["train.lr"] == 0.01


def test_id_of_a_study_with_teachers_of_its_own_does_not_depend_on_the_values_searched():
    text = swap('"kd"', '{ name = "dgkd", assistants = ["wrn_10_1"] }')
    assert study(text).id == study(text + "[[override]]\nset = { tau = 7.0 }\n").id
    assert study(text).id != study(text.replace("epochs = 30", "epochs = 31")).id

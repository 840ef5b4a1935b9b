"""A study at work: the order of its points, limits, several objectives, several seeds, and what makes it go wrong."""

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from optuna.trial import TrialState
from scipy.stats import wilcoxon

from kdtrain.config import ConfigError, canonical
from sweeps import space
from sweeps.ask import Asking
from sweeps.plan import SearchedCell
from sweeps.points import best
from sweeps.schema import Status

TEXT = """
[sweep]
name = "s"
[data]
dataset = "fashion_mini"
val_size = 1000
[train]
epochs = 4
[grid]
pair = ["resnet20/resnet8"]
method = ["kd"]
seed = [1]
[search]
sampler = "random"
trials = 8
"""
STUDENTS = """
[search.space.student]
resnet = { depth = [8, 14, 20], width = [1, 2] }
wrn = { depth = [10, 16], width = [1.0, 2.0] }
"""
# Parameters of these students for 10 classes of grey images, counted by hand from the layers of the first: a stem of
# 9 * 16 weights, blocks of two 3x3 convolutions, BatchNorms of twice the channels, 64 * 10 + 10 of the classifier.
RESNET8 = (
    (9 * 16 + 32)
    + (2 * 9 * 16 * 16 + 2 * 32)
    + (9 * 16 * 32 + 9 * 32 * 32 + 2 * 64 + 16 * 32 + 64)
    + (9 * 32 * 64 + 9 * 64 * 64 + 2 * 128 + 32 * 64 + 128)
    + (64 * 10 + 10)
)


def swap(*pairs):
    text = TEXT
    for old, new in pairs:
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


def students(sampler="random", trials=8, search=""):
    budget = f"trials = {trials}\n{search}\n"
    pairs = ("resnet20/resnet8", "resnet20/*"), ('"random"', f'"{sampler}"'), ("trials = 8\n", budget)
    return swap(*pairs) + STUDENTS


def complete(found, study, each, acc=50.0):
    for seed in study.seeds_to_run(each):
        found.end(study, each, seed, Status.COMPLETED, acc)


def all_points(found, study, acc=lambda each: 50.0):
    asked = []
    while study.left:
        asked.append(found.ask(study))
        complete(found, study, asked[-1], acc(asked[-1]))
    return asked


def points(asked):
    return [each.point for each in asked]


class TestFirstPoints:
    A, B, C = ({"alpha": alpha, "tau": 2.0} for alpha in (1.0, 2.0, 3.0))

    def test_the_methods_own_weights_then_the_sampler(self, studies):
        found = studies(TEXT)
        first, second = (found.ask(found.asking()) for _ in range(2))
        assert (first.number, first.origin, first.point) == (0, "start", {"alpha": 0.9, "tau": 4.0})
        assert (second.number, second.origin) == (1, "sampler")

    def test_those_given_then_the_prior_then_the_sampler(self, studies):
        found = studies(TEXT + "[search.start]\nkd = [{ alpha = 2, tau = 2 }, { alpha = 1, tau = 2 }]\n")
        study = Asking(replace(found.search(), prior=[self.A, self.C]))
        asked = [study.ask() for _ in range(4)]
        assert points(asked[:3]) == [self.B, self.A, self.C]
        assert [each.origin for each in asked] == ["start", "start", "prior", "sampler"]

    def test_after_a_kill_those_that_are_left(self, studies):
        found = studies(TEXT + "[search.start]\nkd = [{ alpha = 2, tau = 2 }, { alpha = 1, tau = 2 }]\n")
        found.ask(found.asking())
        study = Asking(replace(found.search(), prior=[self.B, self.C]))
        asked = [study.ask() for _ in range(3)]
        assert [(each.number, each.origin) for each in asked] == [(1, "start"), (2, "prior"), (3, "sampler")]
        assert points(asked[:2]) == [self.A, self.C]

    def test_as_many_as_the_budget_has(self, studies):
        found = studies(swap(("trials = 8", "trials = 2")))
        study = Asking(replace(found.search(), prior=[self.A, self.B, self.C]))
        assert [study.ask().origin for _ in range(2)] == ["start", "prior"]
        assert study.left == 0
        with pytest.raises(AssertionError, match="the budget is spent"):
            study.ask()

    def test_one_beyond_the_limits_is_left_out(self, studies):
        start = (
            "[search.start]\nkd = [{ alpha = 1, tau = 1, family = 'resnet', resnet = { depth = DEPTH, width = 1 } }]\n"
        )
        found = studies(students(search="limits = { params = 100_000.0 }") + start.replace("DEPTH", "20"))
        assert found.ask(found.asking()).origin == "sampler"
        found = studies(students(search="limits = { params = 100_000.0 }") + start.replace("DEPTH", "8"))
        assert found.ask(found.asking()).origin == "start"

    def test_an_empty_space_has_one_point(self, studies):
        found = studies(swap(('"kd"', '"vanilla"')))
        study = found.asking()
        each = found.ask(study)
        assert (each.point, each.origin, study.left) == ({}, "start", 0)
        complete(found, study, each)
        assert found.asking().over


class TestLimits:
    LIMIT = "limits = { params = 200_000.0 }"

    def test_costs_are_those_of_the_network(self, studies):
        search = studies(students()).search()
        assert search.costs["resnet8"]["student_params"] == RESNET8 == 77_754

    @pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes", "qmc", "nsga2"])
    def test_no_point_is_beyond_them_and_what_was_refused_costs_no_budget(self, studies, sampler):
        found = studies(students(sampler, 6, self.LIMIT))
        study = found.asking()
        asked = all_points(found, study, lambda each: 50 + each.number)
        assert [each.number for each in asked] == list(range(6))
        used = {study.search.study.cell.trial(each.point, 1)[0].student for each in asked}
        assert all(study.search.costs[name]["student_params"] <= 200_000 for name in used)
        assert found.asking().over

    def test_of_a_space_that_has_an_end_only_those_within_are_tried(self, studies):
        finite = "[search.space.kd]\ntau = [1.0, 4.0]\n"
        found = studies(students("tpe", 100, self.LIMIT) + finite)
        asked = all_points(found, found.asking())
        within = [name for name, its in found.search().costs.items() if its["student_params"] <= 200_000]
        # wide networks of 8 layers have some 4 * 77,000 weights, resnet14 and wrn_16_1 175,000, resnet20 272,000
        assert sorted(within) == ["resnet14", "resnet8", "wrn_10_1", "wrn_16_1"]
        assert len(asked) == found.search().budget == 4 * 2
        assert len({canonical(each.point) for each in asked}) == 8

    def test_refused_points_are_told_to_optuna_as_beyond(self, studies):
        found = studies(students("random", 8, "limits = { params = 80_000.0 }"))
        study = found.asking()
        for _ in range(8):
            found.ask(study)
        refused = [trial for trial in study.optuna.trials if trial.state == TrialState.PRUNED]
        assert refused
        for trial in refused:
            (excess,) = trial.constraints.values()
            # 1.18 times 80,000 weights or more
            assert excess > 0.18
        assert all(trial.constraints == {} for trial in study.optuna.trials if trial.state == TrialState.RUNNING)


ENDS = [Status.COMPLETED, Status.COMPLETED, Status.STOPPED, Status.DIVERGED, Status.FAILED]


class TestObjectives:
    @pytest.mark.parametrize("objectives", [["val_acc", "params"], ["macs", "val_acc", "params"]])
    @pytest.mark.parametrize("sampler", ["nsga2", "tpe", "random", "qmc", "gp"])
    def test_several_with_any_ends_limits_and_kills(self, studies, sampler, objectives):
        trials = 6 if sampler == "gp" else 15
        search = f"objectives = {objectives!r}\nlimits = {{ params = 300_000.0 }}"
        found = studies(students(sampler, trials, search))
        study = found.asking()
        asked = []
        while study.left:
            asked += [found.ask(study) for _ in range(min(2, study.left))]
            for each in [each for each in asked if not each.ended([1])]:
                status = ENDS[each.number % len(ENDS)]
                study.report(each.number, 1, 40.0)
                found.end(study, each, 1, status, 50.0 if status == Status.COMPLETED else None)
            if len(asked) % 4 == 0:
                study = found.asking()
        assert len({canonical(each.point) for each in asked}) == len(found.rows) == trials
        assert study.search.budget == trials

    def test_values_are_in_the_order_of_the_objectives(self, studies):
        found = studies(students(search='objectives = ["params", "val_acc"]'))
        study = found.asking()
        each = found.ask(study)
        complete(found, study, each, 55.5)
        student = study.search.study.cell.trial(each.point, 1)[0].student
        assert study.optuna.trials[0].values == [study.search.costs[student]["student_params"], 55.5]
        assert [str(direction.name) for direction in study.optuna.directions] == ["MINIMIZE", "MAXIMIZE"]
        assert best(found.search().tried, [1], ["params", "val_acc"], 1)[0].point == each.point

    def test_of_several_seeds(self, studies):
        text = students(search='objectives = ["val_acc", "params"]\nscore = "mean_over_seeds"')
        found = studies(text.replace("seed = [1]", "seed = [1, 2]"))
        study = found.asking()
        each = found.ask(study)
        assert found.end(study, each, 1, Status.COMPLETED, 50.0) == []
        assert found.end(study, each, 2, Status.COMPLETED, 60.0) == []
        assert study.optuna.trials[0].values[0] == 55.0


class TestSeeds:
    TEXT = swap(("seed = [1]", "seed = [5, 3, 4]"), ("trials = 8", 'trials = 4\nscore = "mean_over_seeds"'))

    def test_all_are_run_at_once(self, studies):
        found = studies(self.TEXT)
        study = found.asking()
        each = found.ask(study)
        assert study.seeds_to_run(each) == [5, 3, 4]
        assert study.to_come == 4 * 3
        found.end(study, each, 3, Status.COMPLETED, 50.0)
        assert (study.seeds_to_run(each), study.to_come) == ([5, 4], 11)

    @pytest.mark.parametrize("killed", [False, True])
    def test_score_is_the_mean(self, studies, killed):
        found = studies(self.TEXT)
        study = found.asking()
        each = found.ask(study)
        for seed, acc in ((4, 50.0), (5, 51.0), (3, 58.0)):
            assert found.end(study, each, seed, Status.COMPLETED, acc) == []
            study = found.asking() if killed else study
            each = study.points[0]
        (trial,) = study.optuna.trials
        assert (trial.state, trial.value) == (TrialState.COMPLETE, 53.0)
        assert trial.intermediate_values == {0: 51.0, 1: 58.0, 2: 50.0}  # by the place of the seed

    @pytest.mark.parametrize("first", [Status.FAILED, Status.DIVERGED])
    @pytest.mark.parametrize("killed", [False, True])
    def test_a_failed_seed_fails_the_point(self, studies, first, killed):
        found = studies(self.TEXT)
        study = found.asking()
        each = found.ask(study)
        for seed, status in ((5, first), (3, Status.COMPLETED), (4, Status.COMPLETED)):
            assert found.end(study, each, seed, status, 50.0 if status == Status.COMPLETED else None) == []
        study = found.asking() if killed else study
        assert [trial.state for trial in study.optuna.trials] == [TrialState.FAIL]
        assert best(found.search().tried, [5, 3, 4], ["val_acc"], 9) == []

    def test_more_seeds_in_the_spec_open_the_points_again(self, studies):
        small, large = studies(self.TEXT), studies(self.TEXT.replace("[5, 3, 4]", "[5, 3, 4, 9]"))
        all_points(small, small.asking())
        large.rows = small.rows
        study = large.asking()
        assert (study.left, study.over, study.to_come) == (0, False, 4)
        assert [study.seeds_to_run(each) for each in study.points.values()] == [[9]] * 4


def expected_stop(leader, mine, p_threshold):
    """Whether scipy's test says that a point is worse than the leader, whose mean it must not reach."""
    if len(mine) < 2 or fmean(mine) >= fmean(leader):
        return False
    differences = np.array(mine) - np.array(leader[: len(mine)])
    return bool(wilcoxon(differences, alternative="less", zero_method="zsplit").pvalue < p_threshold)


class TestWilcoxon:
    SEEDS = (1, 2, 3, 4, 5, 6)
    TEXT = swap(("seed = [1]", "seed = [1, 2, 3, 4, 5, 6]"), ("trials = 8", 'trials = 40\nscore = "mean_over_seeds"'))

    def test_seeds_are_run_one_after_the_other(self, studies):
        found = studies(self.TEXT + '[scheduler]\nname = "wilcoxon"\n')
        study = found.asking(p_threshold=0.1)
        each = found.ask(study)
        assert study.seeds_to_run(each) == [1]
        found.end(study, each, 1, Status.COMPLETED, 50.0)
        assert study.seeds_to_run(each) == [2]

    def test_one_that_is_worse_with_four_seeds_spares_the_others(self, studies):
        found = studies(self.TEXT)
        study = found.asking(p_threshold=0.1)
        leader, worse = found.ask(study), found.ask(study)
        for seed in self.SEEDS:
            assert found.end(study, leader, seed, Status.COMPLETED, 50.0 + seed) == []
        # p is 1/2, 1/4, 1/8 and 1/16.
        spared = [found.end(study, worse, seed, Status.COMPLETED, 40.0 - seed) for seed in (1, 2, 3, 4)]
        assert spared == [[], [], [], [5, 6]]
        for seed in (5, 6):
            assert found.end(study, worse, seed, Status.STOPPED) == []
        assert (study.optuna.trials[1].state, worse.ended(self.SEEDS)) == (TrialState.PRUNED, True)
        assert found.asking(p_threshold=0.1).optuna.trials[1].state == TrialState.PRUNED

    @pytest.mark.parametrize(("p_threshold", "killed"), [(0.05, False), (0.1, False), (0.3, False), (0.1, True)])
    def test_stops_where_scipy_says_so(self, studies, p_threshold, killed):
        rng = np.random.default_rng(1)
        found = studies(self.TEXT)
        study = found.asking(p_threshold=p_threshold)
        scores, stopped = [], 0
        for _ in range(40):
            number = found.ask(study).number
            accuracies = list(np.round(rng.normal(rng.choice([49.0, 50.0, 51.0]), 1.0, size=6), 1))  # some are equal
            for i, seed in enumerate(self.SEEDS):
                study = found.asking(p_threshold=p_threshold) if killed and i == 3 else study
                spared = found.end(study, study.points[number], seed, Status.COMPLETED, accuracies[i])
                leader = max(scores, key=fmean, default=None)
                last = i == len(self.SEEDS) - 1
                stop = leader is not None and not last and expected_stop(leader, accuracies[: i + 1], p_threshold)
                assert spared == (list(self.SEEDS[i + 1 :]) if stop else [])
                if stop:
                    stopped += 1
                    for rest in spared:
                        assert found.end(study, study.points[number], rest, Status.STOPPED) == []
                    break
            else:
                scores.append(accuracies)
        assert 0 < stopped < 40
        assert study.over

    def test_failed_seeds_stop_nothing_and_break_nothing(self, studies):
        found = studies(self.TEXT)
        study = found.asking(p_threshold=0.1)
        for _ in range(6):
            each = found.ask(study)
            for seed in self.SEEDS:
                status = (Status.FAILED, Status.DIVERGED, Status.COMPLETED)[(each.number + seed) % 3]
                acc = 50.0 if status == Status.COMPLETED else None
                assert found.end(study, each, seed, status, acc) == []
        assert [trial.state for trial in found.asking(p_threshold=0.1).optuna.trials] == [TrialState.FAIL] * 6


class TestAdversarial:
    def test_an_epoch_that_is_done_twice_is_told_once(self, studies):
        found = studies(TEXT)
        study = found.asking()
        each = found.ask(study)
        for epoch, acc in ((1, 30.0), (2, 40.0), (2, 99.0), (3, 50.0)):  # its worker died after the second
            study.report(each.number, epoch, acc)
        found.end(study, each, 1, Status.STOPPED, 50.0)
        study.report(each.number, 4, 60.0)  # a straggler
        (trial,) = study.optuna.trials
        assert trial.intermediate_values == {1: 30.0, 2: 40.0, 3: 50.0}

    def test_stopped_points_are_remembered_with_their_curves(self, studies):
        found = studies(TEXT)
        study = found.asking()
        for acc in (40.0, None):
            found.end(study, found.ask(study), 1, Status.STOPPED, acc)
        search = found.search()
        first = search.tried[0].rows[1]["trial_id"]
        trials = Asking(replace(search, curves={first: {1: 20.0, 2: 40.0}})).optuna.trials
        assert [(trial.state, trial.intermediate_values) for trial in trials] == [
            (TrialState.PRUNED, {1: 20.0, 2: 40.0}),
            (TrialState.PRUNED, {}),
        ]

    @pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "cmaes", "nsga2"])
    def test_a_range_whose_values_of_few_digits_were_all_tried_gets_more_digits(self, studies, sampler):
        found = studies(swap(('"random"', f'"{sampler}"')) + "[search.space.kd]\nalpha = { low = 1.0, high = 2.0 }\n")
        study = found.asking()
        study.seen = {canonical({"alpha": round(1 + i / 1000, 3)}) for i in range(1001)}  # 1.000, 1.001, ..., 2.000
        asked = [found.ask(study) for _ in range(8)]
        assert len({each.point["alpha"] for each in asked}) == 8
        assert all(1.0 < each.point["alpha"] < 2.0 for each in asked)
        assert not {canonical(each.point) for each in asked} & {canonical({"alpha": 1 + i / 1000}) for i in range(1001)}

    def test_numbers_written_otherwise_in_the_spec_are_the_same_points(self, studies):
        choices = "[search.space.kd]\nalpha = [1.0, 2.0, 4.0]\ntau = [2, 4]\n"
        one, two = studies(TEXT + choices), studies(TEXT + choices.replace("1.0, 2.0, 4.0", "1, 2, 4"))
        study = one.asking()
        first = [one.ask(study) for _ in range(3)]
        two.rows = one.rows
        more = all_points(two, two.asking())
        assert len(more) == 3
        trials = {row["trial_id"] for row in two.rows.values()}
        assert len(trials) == 6
        assert {(float(each.point["alpha"]), each.point["tau"]) for each in [*first, *more]} == {
            (alpha, tau) for alpha in (1, 2, 4) for tau in (2, 4)
        }

    def test_lists_and_single_values_may_be_choices(self, studies):
        lists = "[search.space.train]\nlr_milestones = [[0.5, 0.75], [0.625, 0.75, 0.875], [0.9]]\naugment = [true]\n"
        found = studies(swap(('"random"', '"tpe"')) + "[search.space.kd]\ntau = [4.0]\n" + lists)
        asked = all_points(found, found.asking())
        assert len(asked) == found.search().budget == 3
        trials = [found.search().study.cell.trial(each.point, 1)[0] for each in asked]
        # The recipe's own are tried first. Of 4 epochs: 2.5 is 2, to the even number, 3, and 3.5 is 4.
        assert trials[0].train.milestones == [2, 3, 4]
        assert sorted(trial.train.milestones for trial in trials) == [[2, 3], [2, 3, 4], [4]]

    def test_steps_that_do_not_reach_the_end_of_a_range(self, studies):
        text = swap(('"random"', '"tpe"'), ("trials = 8", "trials = 100"))
        found = studies(text + "[search.space.kd]\nalpha = { low = 0.0, high = 1.0, step = 0.3 }\n")
        asked = all_points(found, found.asking())
        assert sorted(each.point["alpha"] for each in asked) == [0.0, 0.3, 0.6, 0.9]

    def test_a_budget_that_shrank_asks_for_nothing(self, studies):
        small, large = studies(swap(("trials = 8", "trials = 2"))), studies(TEXT)
        asked = [large.ask(study) for study in [large.asking()] for _ in range(4)]
        small.rows = large.rows
        study = small.asking()
        assert (study.left, study.over) == (0, False)  # four are under way
        for each in asked:
            complete(small, study, study.points[each.number])
        assert study.over

    def test_failed_points_that_are_tried_again_are_under_way(self, studies):
        found = studies(TEXT)
        study = found.asking()
        each = found.ask(study)
        found.end(study, each, 1, Status.FAILED)
        again = Asking(found.search(retry_failed=True))
        assert (again.left, list(again.trials), again.points[0].point) == (7, [0], each.point)
        found.end(again, again.points[0], 1, Status.COMPLETED, 50.0)
        assert again.optuna.trials[0].value == 50.0

    def test_points_that_no_longer_fit_are_neither_counted_nor_known(self, studies):
        wide, narrow = studies(TEXT), studies(TEXT + "[search.space.kd]\nalpha = { low = 0.1, high = 1.0 }\n")
        all_points(wide, wide.asking())
        narrow.rows = {  # only alpha is searched now, and tau has its default: 4.0, as at the start
            key: {**row, "point": canonical({"alpha": 0.9})} if row["number"] == 0 else row
            for key, row in wide.rows.items()
        }
        study = Asking(narrow.search(accept_changes=True))
        assert (list(study.points), study.left, study.next_number) == ([0], 7, 8)
        assert [study.ask().number for _ in range(2)] == [8, 9]

    def test_every_point_of_a_rebuilt_study_is_known_to_optuna_as_it_ended(self, studies):
        found = studies(students("tpe", 10))
        study = found.asking()
        for status in [*Status, Status.COMPLETED]:
            found.end(study, found.ask(study), 1, status, 50.0 if status == Status.COMPLETED else None)
        under_way = found.ask(study)
        states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]
        rebuilt = found.asking()
        assert [trial.state for trial in rebuilt.optuna.trials] == [*states, TrialState.RUNNING]
        assert list(rebuilt.trials) == [under_way.number]
        for each, trial in zip(found.search().tried, rebuilt.optuna.trials, strict=True):
            assert trial.params.keys() == each.point.keys()
            assert trial.params["alpha"] == each.point["alpha"]
            assert space.misfit(rebuilt.space, each.point) is None


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_points_that_make_no_trial_are_not_offered_and_cost_nothing(studies, monkeypatch, sampler):
    makes = SearchedCell.trial

    def picky(self, point, seed):
        if point["alpha"] > 2:
            raise ConfigError("kd: alpha and tau contradict each other.")
        return makes(self, point, seed)

    found = studies(TEXT.replace('"random"', f'"{sampler}"'))
    study = found.asking()
    monkeypatch.setattr(SearchedCell, "trial", picky)
    offered = [found.ask(study).point["alpha"] for _ in range(study.left)]
    assert len(offered) == 8
    assert max(offered) <= 2

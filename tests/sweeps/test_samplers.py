"""Every sampler keeps the promises of a study: different points, of the space, exactly as many as the budget."""

import itertools
import math
import random
from statistics import fmean

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import qmc

from kdtrain.config import canonical, digest
from sweeps import space
from sweeps.samplers import SAMPLERS, Setting
from sweeps.schema import Status

HEAD = """
[sweep]
name = "s"
[data]
dataset = "fashion_mini"
val_size = 1000
[train]
epochs = 4
[grid]
pair = ["resnet20/PUPIL"]
method = ["METHOD"]
seed = [1]
[search]
sampler = "SAMPLER"
trials = TRIALS
"""
SPACES = {
    "scales": "[search.space.cid]\nalpha = { low = 1.0, high = 100.0, log = true }\ntau = { low = 1.0, high = 20.0 }\n",
    "ordered": "[search.space.cid]\nalpha = [1, 3.0, 10, 30.0, 100]\ntau = [1.0, 2.0, 4]\nbeta = [1.0]\n",
    "conditional": """
[search.space.cid]
sr = [false, true]
alpha = { low = 1, high = 9, step = 3, when = { sr = true } }
[search.space.student]
resnet = { depth = [8, 14], width = [1, 2] }
wrn = { depth = { low = 10, high = 20, step = 6 }, width = [1.0] }
shufflenet_v2 = {}
""",
    "mixed": """
[search.space.cid]
sr_loss = ["nm_mse", "mse"]
layers = ["pooled", [1, 2], "all"]
beta = { low = 0.1, high = 10.0, log = true }
tau = { low = 1.0, high = 4.25, step = 0.5 }
[search.space.train]
batch_size = { low = 16, high = 128, log = true }
lr = { low = 0.01, high = 0.0101 }
""",
}
# Of "conditional": no sr, or sr with 3 values of alpha (1, 4, 7); 4 resnets, 2 wrns, 1 shufflenet.
SIZES = {"scales": math.inf, "ordered": 5 * 3 * 1, "conditional": (1 + 3) * (4 + 2 + 1), "mixed": math.inf}
CASES = [
    (sampler, name) for sampler in SAMPLERS for name, size in SIZES.items() if sampler != "grid" or size < math.inf
]
CHEAP = [case for case in CASES if case[0] != "gp"]  # which takes up to a second for a point
ENDS = [Status.COMPLETED, Status.STOPPED, Status.COMPLETED, Status.DIVERGED, Status.COMPLETED, Status.FAILED]


def text(sampler, name, trials=8):
    pupil = "*" if name == "conditional" else "resnet8"
    filled = HEAD.replace("PUPIL", pupil).replace("METHOD", "cid").replace("SAMPLER", sampler)
    return filled.replace("TRIALS", str(trials)) + SPACES[name]


def values(each):
    """A smooth accuracy in percent: best at alpha = 10, tau = 4."""
    alpha, tau = each.point.get("alpha", 10.0), each.point.get("tau", 4.0)
    return 80 - 5 * math.log10(alpha / 10) ** 2 - (tau - 4) ** 2 / 16


def run(found, study, ends=ENDS, workers=1, upto=10**9):
    """Ask and tell until the budget is spent or `upto` points were asked for, `workers` of them at once."""
    asked, under_way = [], []
    while (study.left and len(asked) < upto) or under_way:
        if study.left and len(asked) < upto and len(under_way) < workers:
            under_way.append(found.ask(study))
            asked.append(under_way[-1])
            continue
        each = under_way.pop(0)
        status = ends[each.number % len(ends)]
        accuracy = values(each) if status in (Status.COMPLETED, Status.STOPPED) else None
        found.end(study, each, 1, status, accuracy)
    return asked


def keys(asked):
    return [canonical(each.point) for each in asked]


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(("sampler", "name"), CASES)
def test_points_differ_and_are_of_the_space_however_they_end(studies, sampler, name, workers):
    found = studies(text(sampler, name))
    study = found.asking()
    asked = run(found, study, workers=workers)
    assert [each.number for each in asked] == list(range(8))
    assert len(set(keys(asked))) == 8
    assert [space.misfit(study.space, each.point) for each in asked] == [None] * 8
    trials = {row["trial_id"] for row in found.rows.values()}
    assert len(trials) == 8
    assert (study.left, study.over, study.to_come) == (0, True, 0)


@pytest.mark.parametrize(
    ("sampler", "name"), [*((sampler, "conditional") for sampler in SAMPLERS if sampler != "gp"), ("gp", "ordered")]
)
def test_a_budget_beyond_a_space_that_has_an_end_gives_each_point_once(studies, sampler, name):
    found = studies(text(sampler, name, trials=100))
    asked = run(found, found.asking(), ends=[Status.COMPLETED])
    assert len(asked) == SIZES[name]
    assert set(keys(asked)) == {canonical(point) for point in space.points(found.search().study.space)}


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize(("sampler", "name"), [*CHEAP, ("gp", "ordered")])
def test_all_points_may_end_alike(studies, sampler, name, status):
    found = studies(text(sampler, name, trials=6))
    assert len(set(keys(run(found, found.asking(), ends=[status], workers=2)))) == 6


@pytest.mark.parametrize(("sampler", "name"), [*CHEAP, ("gp", "ordered")])
def test_equal_seeds_give_equal_points(studies, sampler, name):
    one, two, other = (studies(text(sampler, name).replace("trials", f"seed = {seed}\ntrials")) for seed in (0, 0, 1))
    points = [keys(run(found, found.asking())) for found in (one, two, other)]
    assert points[0] == points[1]
    assert (points[0] != points[2]) == (sampler != "grid")


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "cmaes", "gp"])
def test_another_number_of_known_points_gives_other_points(studies, sampler):
    # The start is known in one, the other has two points more, which say nothing: they failed.
    found = studies(text(sampler, "scales"))
    run(found, found.asking(), upto=1)
    first = found.asking().ask()
    run(found, found.asking(), ends=[Status.FAILED], upto=2)
    assert found.asking().ask().point not in (first.point, *(each.point for each in found.search().tried))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=st.sampled_from(CHEAP), seed=st.integers(0, 10**6), workers=st.integers(1, 3))
def test_killed_anywhere_it_ends_with_the_budget_and_no_point_twice(studies, case, seed, workers):
    rng = random.Random(seed)
    found = studies(text(*case, trials=12))
    study, asked = found.asking(), []
    while not study.over:
        event = rng.random()
        under_way = [each for each in study.points.values() if not each.ended([1])]
        if event < 0.2:
            study = found.asking()  # killed: only the rows are left
        elif event < 0.6 and study.left and len(under_way) < workers:
            asked.append(found.ask(study))
        elif under_way:
            each = rng.choice(under_way)
            status = rng.choice(list(Status))
            accuracy = values(each) if status in (Status.COMPLETED, Status.STOPPED) else None
            found.end(study, each, 1, status, accuracy)
    assert len(set(keys(asked))) == len(asked) == 12
    assert len(found.rows) == len({row["trial_id"] for row in found.rows.values()}) == 12
    assert found.search().left == 0
    assert found.asking().over


def test_gp_goes_on_after_a_kill(studies):
    found = studies(text("gp", "mixed", trials=7))
    asked = run(found, found.asking(), upto=3)
    killed = found.asking()
    under_way = found.ask(killed)
    asked += [under_way, *run(found, found.asking(), upto=2)]
    study = found.asking()
    assert list(study.trials) == [under_way.number]
    found.end(study, study.points[under_way.number], 1, Status.COMPLETED, 50.0)
    asked += run(found, study)
    assert len(set(keys(asked))) == len(asked) == 7


def test_more_trials_in_the_spec_go_on_from_what_there_is(studies):
    small, large = studies(text("tpe", "scales", trials=4)), studies(text("tpe", "scales", trials=7))
    first = run(small, small.asking())
    large.rows = small.rows
    more = run(large, large.asking())
    assert [each.number for each in more] == [4, 5, 6]
    assert len(set(keys(first + more))) == 7
    small.rows = large.rows  # and fewer ask for nothing
    assert (small.asking().left, small.asking().over) == (0, True)


def test_grid_gives_the_product_in_its_order(studies):
    found = studies(text("grid", "ordered", trials=100))
    first, *rest = run(found, found.asking(), ends=[Status.FAILED])
    assert (first.origin, first.point) == ("start", {"alpha": 10, "tau": 4, "beta": 1.0})
    assert {each.origin for each in rest} == {"sampler"}
    product = [(alpha, tau) for alpha in (1, 3.0, 10, 30.0, 100) for tau in (1.0, 2.0, 4)]
    product.remove((10, 4))
    assert [(each.point["alpha"], each.point["tau"]) for each in rest] == product


def test_grid_without_a_number_of_trials_is_all_there_is(studies):
    found = studies(text("grid", "ordered").replace("trials = 8", ""))
    assert (found.search().budget, found.search().left) == (15, 15)


SCALED = {"alpha": lambda x: 10 ** (2 * x), "tau": lambda x: 1 + 19 * x}  # 1..100 in the logarithm, 1..20


def sobol(study_id, count):
    """The points of scipy's scrambled Sobol' sequence. 2^32 seeds: that of a study is a digest of its id."""
    seed = int(digest([0, study_id, 0]), 16) % 2**32
    unit = qmc.Sobol(2, scramble=True, seed=seed).random(count)
    return [{"alpha": SCALED["alpha"](x), "tau": SCALED["tau"](y)} for x, y in unit]


def test_qmc_is_scipys_sequence_and_goes_on_with_it_after_kills(studies):
    found = studies(text("qmc", "scales", trials=17))
    assert [each.origin for each in run(found, found.asking(), upto=1)] == ["start"]
    asked = run(found, found.asking(), upto=5)
    asked += run(found, found.asking(), upto=3, workers=2)
    asked += run(found, found.asking())
    assert len(asked) == 16
    for each, expected in zip(asked, sobol(found.search().study.id, 16), strict=True):
        assert each.point == pytest.approx(expected, rel=5.1e-4)  # four digits


def level(studies, sampler, kills):
    """The mean accuracy of the last 15 of 60 points, without a starting point, of 6 seeds."""
    accuracies = []
    for seed in range(6):
        without_start = f"seed = {seed}\nstart = {{ cid = [] }}\ntrials"
        found = studies(text(sampler, "scales", trials=60).replace("trials", without_start))
        asked = []
        for _ in range(kills + 1):
            asked += run(found, found.asking(), ends=[Status.COMPLETED], upto=60 // (kills + 1))
        accuracies += [values(each) for each in asked[-15:]]
    return fmean(accuracies)


def test_samplers_that_learn_are_better_than_random_however_often_they_are_killed(studies):
    # At random: alpha costs 5 E[u^2] with u uniform in -1..1, 5/3; tau costs E[(tau - 4)^2] / 16 with tau uniform in
    # 1..20, (16^3 + 3^3) / (3 * 19) / 16 = 4.52; 80 - 6.19 = 73.81, of 90 points with a standard error of 0.5.
    assert level(studies, "random", kills=0) == pytest.approx(73.81, abs=1.5)
    for sampler, kills in itertools.product(["tpe", "nsga2", "cmaes"], [0, 9]):
        assert level(studies, sampler, kills) > 75, (sampler, kills)


@pytest.mark.parametrize(("trials", "startup"), [(1, 3), (12, 3), (20, 5), (40, 10), (1000, 10)])
def test_startup_is_a_quarter_of_the_budget_within_limits(trials, startup):
    assert Setting(seed=0, trials=trials, conditional=False).startup == startup

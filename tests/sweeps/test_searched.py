"""[search], [scheduler] and [confirm] of a spec: one clear line for each mistake; what is searched, and from where."""

import re

import pytest

from kdtrain.config import ConfigError
from sweeps.plan import expand
from sweeps.spec import parse_text

TEXT = """
[sweep]
name = "s"
[data]
dataset = "fashion_mini"
val_size = 1000
[train]
epochs = 10
[grid]
pair = ["resnet14/resnet8"]
method = ["kd"]
seed = [1]
[search]
trials = 8
"""
FREE = TEXT.replace("resnet14/resnet8", "resnet14/*")
STUDENTS = "[search.space.student]\nresnet = { depth = [8, 14], width = [1, 2] }\n"


def study(text):
    """The only study of a spec."""
    (found,) = expand(parse_text(text)).studies
    return found


def refused(text):
    """The one line by which a spec is refused when it is planned."""
    with pytest.raises(ConfigError, match=r" \(in the search .*\)$") as error:
        expand(parse_text(text))
    assert "\n" not in str(error.value)
    return str(error.value)


def swap(old, new):
    assert TEXT.count(old) == 1
    return TEXT.replace(old, new)


WITH_SEEDS = swap("seed = [1]", "seed = [1, 2, 3, 4, 5]").replace("trials", 'score = "mean_over_seeds"\ntrials')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            swap("val_size = 1000\n", ""),
            "data.val_size must be above 0 for [search], which chooses on held-out images, but got 0.",
        ),
        (
            TEXT + '[[probe]]\ndataset = "fashion_mini"\n',
            "[[probe]] and [search] must not stand in one spec: probe the winners in another sweep.",
        ),
        (
            TEXT.partition("[search]")[0] + '[scheduler]\nname = "asha"\n',
            "[scheduler] needs a [search] whose trials it is about.",
        ),
        (
            TEXT.partition("[search]")[0] + "[confirm]\nseed = [2]\n",
            "[confirm] needs a [search] whose trials it is about.",
        ),
        (
            FREE.partition("[search]")[0],
            "grid.pair must name a student where there is no [search], but got '*'.",
        ),
        (
            swap("trials", 'sampler = "tpee"\ntrials'),
            "unknown sampler 'tpee' at search.sampler. Did you mean 'tpe'? "
            "Known: cmaes, gp, grid, nsga2, qmc, random, tpe.",
        ),
        (swap("trials = 8\n", ""), "search.trials is required unless search.sampler = 'grid', but got 'tpe'."),
        (swap("trials = 8", "trials = 0"), "search.trials should be greater than or equal to 1, but got 0."),
        (
            TEXT + "[search.space.cid]\nalpha = [1.0]\n",
            "unknown table 'cid' at search.space. Known: kd, student, train.",
        ),
        (
            TEXT + "[search.start]\ncid = [{ alpha = 1.0 }]\n",
            "unknown method 'cid' at search.start. Known: kd.",
        ),
        (
            TEXT + STUDENTS,
            "[search.space.student] and a pair such as 'resnet56/*' need each other, "
            "but got the pairs resnet14/resnet8.",
        ),
        (
            FREE,
            "[search.space.student] and a pair such as 'resnet56/*' need each other, but got the pairs resnet14/*.",
        ),
        (
            swap("trials", 'objectives = ["val_acc", "flops"]\ntrials'),
            "unknown objective 'flops' at search.objectives. Known: latency_ms, macs, params, val_acc.",
        ),
        (
            swap("trials", 'objectives = ["test_top1"]\ntrials'),
            "unknown objective 'test_top1' at search.objectives. Known: latency_ms, macs, params, val_acc.",
        ),
        (
            FREE.replace("trials", 'objectives = ["params"]\ntrials') + STUDENTS,
            "search.objectives must have val_acc, but got ['params'].",
        ),
        (
            swap("trials", 'objectives = ["val_acc", "params"]\ntrials'),
            "search.objectives and search.limits on a student's costs need pairs such as 'resnet56/*'.",
        ),
        (
            swap("trials", "limits = { params = 1000.0 }\ntrials"),
            "search.objectives and search.limits on a student's costs need pairs such as 'resnet56/*'.",
        ),
        (
            FREE.replace("trials", "limits = { val_acc = 50.0 }\ntrials") + STUDENTS,
            "unknown limit 'val_acc' at search.limits. Known: latency_ms, macs, params.",
        ),
        (
            FREE.replace("trials", "limits = { params = 0.0 }\ntrials") + STUDENTS,
            "search.limits.params should be greater than 0, but got 0.0.",
        ),
        (
            FREE.replace("trials", 'objectives = ["val_acc", "params"]\ntrials')
            + STUDENTS
            + '[scheduler]\nname = "asha"\n',
            "search.objectives must be val_acc alone with [scheduler], but got ['val_acc', 'params'].",
        ),
        (
            FREE.replace("trials", 'sampler = "cmaes"\nobjectives = ["val_acc", "params"]\ntrials') + STUDENTS,
            "search.objectives must be val_acc alone with sampler = 'cmaes', but got ['val_acc', 'params'].",
        ),
        (
            swap("seed = [1]", "seed = [1, 2]"),
            "grid.seed must be one seed unless search.score = 'mean_over_seeds', but got [1, 2].",
        ),
        (
            swap("trials", 'score = "mean_over_seeds"\ntrials'),
            "grid.seed must be two or more for search.score = 'mean_over_seeds', but got [1].",
        ),
        (
            TEXT + "[confirm]\nseed = [3, 2, 1]\n",
            "confirm.seed must be fresh, but 1 is one of grid.seed, which the search saw.",
        ),
        (
            TEXT + "[confirm]\ntop = 9\nseed = [2]\n",
            "confirm.top must be at most search.trials, 8, but got 9.",
        ),
        (TEXT + "[confirm]\nseed = [2, 2]\n", "confirm.seed must not repeat a value, but got [2, 2]."),
        (
            TEXT + '[scheduler]\nname = "wilcoxon"\n',
            "scheduler.name must be 'wilcoxon' for search.score = 'mean_over_seeds' and only there, "
            "but got 'wilcoxon'.",
        ),
        (
            WITH_SEEDS + '[scheduler]\nname = "asha"\n',
            "scheduler.name must be 'wilcoxon' for search.score = 'mean_over_seeds' and only there, but got 'asha'.",
        ),
        (  # 3 signed ranks of one sign have p = 1/8, 4 have 1/16 < 0.1, and then the fifth is spared
            WITH_SEEDS.replace("[1, 2, 3, 4, 5]", "[1, 2, 3, 4]") + '[scheduler]\nname = "wilcoxon"\n',
            "grid.seed must have 5 seeds or more, or wilcoxon stops nothing, but got 4.",
        ),
        (  # 1/16 is not below 1/16
            WITH_SEEDS + '[scheduler]\nname = "wilcoxon"\np_threshold = 0.0625\n',
            "grid.seed must have 6 seeds or more, or wilcoxon stops nothing, but got 5.",
        ),
        (
            TEXT + '[scheduler]\nname = "ASHA"\n',
            "scheduler.name should be 'asha', 'hyperband', 'median' or 'wilcoxon', but got 'ASHA'.",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused_when_the_spec_is_read(text, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        parse_text(text)


def test_wilcoxon_with_enough_seeds_is_fine():
    assert parse_text(WITH_SEEDS + '[scheduler]\nname = "wilcoxon"\n').scheduler is not None


CELL = " (in the search pair = resnet14/resnet8, method = kd, fraction = 1.0, seed = 1)"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("kd = { alpha = { low = 2.0, high = 1.0 } }", "search.space.kd.alpha must have low < high, but got "),
        ("kd = { alpha = { low = 0.0, high = 1.0, log = true } }", "search.space.kd.alpha must have low > 0 where log"),
        ("kd = { alpha = [] }", "search.space.kd.alpha must have choices, each once, but got "),
        (
            "kd = { alpha = 1.0 }",
            "search.space.kd.alpha must be a list of values or a table with low and high, but got",
        ),
        (
            "kd = { alfa = [1.0] }",
            "unknown parameter 'alfa' at search.space.kd. Did you mean 'alpha'? Known: alpha, gamma, tau.",
        ),
        ("kd = { alpha = [-1.0] }", "search.space.kd.alpha should be greater than or equal to 0, but got -1.0"),
        ("kd = { tau = { low = 0.0, high = 4.0 } }", "search.space.kd.tau should be greater than 0, but got 0.0"),
        ('kd = { alpha = ["much"] }', "search.space.kd.alpha should be a valid number, but got 'much'"),
        (
            "kd = { alpha = { low = 1.0, high = 2.0, when = { tau = 1.0 } }, tau = [1.0] }",
            "search.space.kd.alpha.when must name a dimension above it, but got 'tau'. Known: none.",
        ),
        ("train = { lrr = [0.1] }", "unknown key 'lrr' at search.space.train. Did you mean 'lr'? Known: augment, "),
        ("train = { lr = { low = 0.0, high = 0.1 } }", "search.space.train.lr should be greater than 0, but got 0.0"),
        (
            "train = { batch_size = { low = 16.5, high = 32 } }",
            "search.space.train.batch_size must have whole numbers, as the parameter is one, but got ",
        ),
        (
            "train = { seed = [1, 2] }",
            "search.space.train.seed must not be searched: the best seed is no better method",
        ),
        ("kd = { seed = [1, 2] }", "search.space.kd.seed must not be searched: the best seed is no better method"),
        (
            "train = { view_seed = [1, 2] }",
            "search.space.train.view_seed must not be searched: the best seed is no better method",
        ),
        (
            "train = { subset_seed = [1, 2] }",
            "search.space.train.subset_seed must not be searched: points must be compared on the same images",
        ),
        (
            "train = { val_size = [1, 2] }",
            "search.space.train.val_size must not be searched: points must be compared on the same images",
        ),
        (
            "train = { epochs = [1, 2] }",
            "search.space.train.epochs must not be searched: points must be compared after the same epochs",
        ),
        (
            "train = { test_size = [1, 2] }",
            "search.space.train.test_size must not be searched: the test set is for the end",
        ),
        ("kd = { test_acc = [1, 2] }", "search.space.kd.test_acc must not be searched: the test set is for the end"),
    ],
)
def test_spaces_that_cannot_be_searched_are_refused(space, message):
    line = refused(f"{TEXT}[search.space]\n{space}\n")
    assert line.startswith(message)
    assert line.endswith(CELL)


@pytest.mark.parametrize("methods", ['[{ name = "kd", tau = 2.0 }]', '["kd"]'])
def test_what_the_grid_gives_is_not_searched(methods):
    grid = swap('["kd"]', methods) if "name" in methods else swap("[search]", "[grid.kd]\ntau = [2.0]\n[search]")
    assert list(study(grid).space) == ["alpha"]
    line = refused(f"{grid}[search.space.kd]\ntau = [1.0, 2.0]\n")
    assert line.startswith("search.space.kd.tau must not be searched, as the grid gives it. (in the search ")


def test_recipe_axis_of_the_grid_is_not_searched():
    text = swap("seed = [1]", "seed = [1]\nlr = [0.1]") + "[search.space.train]\nlr = [0.1, 0.2]\n"
    assert refused(text).startswith("search.space.train.lr must not be searched, as grid.lr gives it. (in the search ")


def test_two_choices_that_are_one_trial_are_refused():
    text = TEXT.replace("kd", "cid") + "[search.space.cid]\nlayers = [[1, 2], [2, 1]]\n"
    assert refused(text).startswith(
        "search.space.cid.layers must have choices that differ for cid, but got [[1, 2], [2, 1]]. (in the search "
    )


@pytest.mark.parametrize(
    ("students", "message"),
    [
        ("resnet = [8, 14]", "search.space.student.resnet must be a table with depth and width, but got [8, 14]."),
        ("resnet = { dept = [8] }", "unknown key 'dept' at search.space.student.resnet. Did you mean 'depth'? "),
        (
            "wrn = { depth = [10], width = { low = 1.0, high = 2.0 } }",
            "search.space.student.wrn.width must have a step or be a list: networks are counted.",
        ),
        (
            "resnett = { depth = [8] }",
            "unknown family 'resnett' at search.space.student.resnett. Did you mean 'resnet'? ",
        ),
        ("resnet = { depth = [8, 9] }", "depth must be"),
        ("resnet = {}", "depth is required for the family resnet, but got neither at search.space.student.resnet."),
        ("resnet = { depth = [8], width = [0.5] }", "width must be whole for the family resnet, but got depth 8 and "),
        (
            "resnet = { depth = [8], width = { low = 1, high = 2, step = 1, when = { depth = 8 } } }",
            "search.space.kd.resnet.width.when must name a dimension above it, but got 'depth'. Known: alpha, tau, ",
        ),
    ],
)
def test_students_that_cannot_be_built_are_refused(students, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        expand(parse_text(f"{FREE}[search.space.student]\n{students}\n"))


def test_grid_needs_a_space_that_has_an_end():
    grid = swap("trials = 8", 'sampler = "grid"')
    assert refused(grid).startswith(
        "search.space.kd: alpha must have a step or be a list, as search.sampler is 'grid'."
    )
    assert study(f"{grid}[search.space.kd]\ntau = {{ low = 1.0, high = 2.0, step = 0.5 }}\n").space["tau"].values == (
        1.0, 1.5, 2.0
    )  # fmt: skip


class TestSpaces:
    def dims(self, text):
        return {name: dim.plain() for name, dim in study(text).space.items()}

    def test_a_methods_own_unless_the_spec_says_otherwise(self):
        # As kd.py has them.
        own = {"alpha": {"low": 0.1, "high": 10.0, "log": True}, "tau": {"low": 1.0, "high": 20.0, "log": True}}
        assert self.dims(TEXT) == own
        assert self.dims(TEXT + "[search.space.kd]\ngamma = [0, 1]\n") == {"gamma": {"choices": [0, 1]}}
        assert self.dims(TEXT + "[search.space.kd]\n") == {}

    def test_of_a_plus_b_by_part(self):
        text = TEXT.replace('"kd"', '"sp+kd"')
        assert list(self.dims(text)) == ["sp.beta", "kd.alpha", "kd.tau"]
        given = self.dims(f'{text}[search.space."sp+kd"]\nsp = {{ beta = [1.0, 2.0] }}\nkd = {{ tau = [3.0] }}\n')
        assert given == {"sp.beta": {"choices": [1.0, 2.0]}, "kd.tau": {"choices": [3.0]}}

    @pytest.mark.parametrize(
        ("space", "message"),
        [
            ("beta = [1.0]", r"search: beta of sp\+kd must be a table of that method's parameters, got \[1\.0\]\."),
            ("cc = { beta = [1.0] }", r"unknown parameter 'cc\.beta' at search\.space\.sp\+kd\."),
            (
                "kd = { gamma = [1.0] }",
                r"unknown parameter 'kd\.gamma' at search\.space\.sp\+kd\.",
            ),  # has no effect there
        ],
    )
    def test_of_a_plus_b_with_mistakes(self, space, message):
        text = TEXT.replace('"kd"', '"sp+kd"')
        with pytest.raises(ConfigError, match=f"^{message}"):
            study(f'{text}[search.space."sp+kd"]\n{space}\n')

    def test_recipe_and_students_come_after_the_methods_own(self):
        text = FREE + STUDENTS + "[search.space.train]\nlr = { low = 0.01, high = 0.1 }\nbatch_size = [32, 64]\n"
        assert list(self.dims(text)) == [
            "alpha", "tau", "train.lr", "train.batch_size", "family", "resnet.depth", "resnet.width",
        ]  # fmt: skip
        assert self.dims(text)["resnet.depth"] == {"choices": [8, 14], "when": {"family": "resnet"}}

    def test_a_condition_on_another_parameter_is_kept_for_students(self):
        text = f"{FREE}[search.space]\nkd = {{ alpha = [1, 2] }}\n[search.space.student]\n"
        found = self.dims(text + "resnet = { depth = [8, 14], width = { choices = [1, 2], when = { alpha = 1 } } }\n")
        assert found["resnet.width"]["when"] == {"alpha": 1, "family": "resnet"}

    def test_whole_parameters_have_whole_values(self):
        text = TEXT + "[search.space.train]\nbatch_size = { low = 16, high = 64, step = 16 }\n"
        assert repr(study(text).space["train.batch_size"].values) == "(16, 32, 48, 64)"


class TestStarts:
    def test_the_methods_own_values_by_default(self):
        assert study(TEXT).starts == [{"alpha": 0.9, "tau": 4.0}]  # of KD.Config

    def test_what_an_override_sets_for_the_pair(self):
        override = '[[override]]\nwhen = { student = "resnet8" }\nset = { alpha = 3.0 }\n'
        assert study(TEXT + override).starts == [{"alpha": 3.0, "tau": 4.0}]

    def test_what_the_recipe_says(self):
        text = swap("epochs = 10", "epochs = 10\nlr = 0.03") + "[search.space.train]\nlr = { low = 0.01, high = 0.1 }\n"
        assert study(text).starts == [{"alpha": 0.9, "tau": 4.0, "train.lr": 0.03}]
        lists = TEXT + "[search.space.train]\nlr_milestones = [[0.5, 0.75], [0.625, 0.75, 0.875]]\n"
        assert study(lists).starts[0]["train.lr_milestones"] == [0.625, 0.75, 0.875]  # of Recipe

    def test_none_where_the_default_lies_outside(self):
        assert study(TEXT + "[search.space.kd]\nalpha = { low = 1.0, high = 2.0 }\n").starts == []

    def test_numbers_are_written_as_the_choices_are(self):
        assert repr(study(TEXT + "[search.space.kd]\ntau = [1, 2, 4]\n").starts) == "[{'tau': 4}]"

    def test_a_dimension_that_does_not_exist_at_the_default_is_left_out(self):
        space = "sr = [false, true]\nalpha = { low = 1.0, high = 20.0, when = { sr = SR } }\ntau = [2.0, 4.0]\n"
        text = TEXT.replace("kd", "cid") + "[search.space.cid]\n" + space
        assert study(text.replace("SR", "false")).starts == [{"sr": True, "tau": 4.0}]
        assert study(text.replace("SR", "true")).starts == [{"sr": True, "alpha": 10.0, "tau": 4.0}]

    def test_those_of_the_spec_in_their_order(self):
        text = TEXT + "[search.start]\nkd = [{ tau = 2, alpha = 1 }, { alpha = 0.123456, tau = 20.0 }]\n"
        assert repr(study(text).starts) == "[{'alpha': 1.0, 'tau': 2.0}, {'alpha': 0.123456, 'tau': 20.0}]"
        assert study(TEXT + "[search.start]\nkd = []\n").starts == []

    def test_by_tables_of_parts_the_recipe_and_a_family(self):
        text = FREE.replace('"kd"', '"sp+kd"') + STUDENTS + "[search.space.train]\nlr = [0.1, 0.2]\n"
        entry = "{ sp = { beta = 300.0 }, kd = { alpha = 1, tau = 4 }, train = { lr = 0.2 }, family = 'resnet', "
        text += f'[search.start]\n"sp+kd" = [{entry}resnet = {{ depth = 8, width = 2 }} }}]\n'
        assert study(text).starts == [
            {
                "sp.beta": 300.0,
                "kd.alpha": 1.0,
                "kd.tau": 4.0,
                "train.lr": 0.2,
                "family": "resnet",
                "resnet.depth": 8,
                "resnet.width": 2,
            }
        ]

    @pytest.mark.parametrize(
        ("start", "reason"),
        [
            ("{ alpha = 1.0 }", "tau is missing"),
            ("{}", "alpha is missing"),
            ("{ alpha = 11.0, tau = 4.0 }", "alpha = 11.0 lies outside of 0.1..10 log"),
            ("{ alpha = true, tau = 4.0 }", "alpha = True lies outside of 0.1..10 log"),
            ("{ alpha = 1.0, tau = 4.0, gamma = 1.0 }", "gamma is not searched"),
        ],
    )
    def test_outside_of_the_space_or_incomplete_are_refused(self, start, reason):
        line = refused(f"{TEXT}[search.start]\nkd = [{{ alpha = 1.0, tau = 4.0 }}, {start}]\n")
        assert line == f"search.start.kd[1] must be a point of the space, but {reason}.{CELL}"


def test_range_whose_inner_values_a_parameter_refuses_is_refused_at_once():
    text = swap('"kd"', '"cid"') + "[search.space.cid]\ninit_epochs = { low = 1.0, high = 4.0 }\n"
    assert "must be a whole number of epochs or a fraction of all epochs below 1" in refused(text)
    assert study(text.replace("high = 4.0", "high = 4.0, step = 1.0")).space["init_epochs"].values == (
        1.0,
        2.0,
        3.0,
        4.0,
    )


def test_choices_of_the_recipe_that_are_one_recipe_are_refused():
    # A half of 10 epochs is 5.
    line = refused(TEXT + "[search.space.train]\nlr_milestones = [[0.5], [5]]\n")
    assert line.startswith("search.space.train.lr_milestones must have choices that differ for the recipe, but got")


def test_recipe_field_that_may_be_left_out_is_searched_in_whole_numbers():
    text = TEXT + "[search.space.train]\nwarmup_epochs = { low = 1, high = 3 }\n"
    assert study(text).space["train.warmup_epochs"].values == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            swap('["resnet14/resnet8"]', '["resnet14/*", "resnet20/resnet8"]') + STUDENTS,
            "grid.pair must not have resnet8, which is a student of [search.space.student] too.",
        ),
        (
            TEXT + "[[override]]\nwhen = { seed = 1 }\nset = { lr = 0.1 }\n",
            "override[0].when must not name the seed with [search], whose points have several.",
        ),
        (TEXT + 'prior = "../other"\n', "search.prior should match pattern"),
        (TEXT + '[run]\nreplay = "/tmp/other"\n', "run.replay should match pattern"),
    ],
)
def test_what_would_mix_trials_or_leave_the_results_is_refused(text, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        parse_text(text)


def test_override_that_names_a_student_holds_for_the_points_with_it():
    text = FREE + STUDENTS + '[[override]]\nwhen = { student = "resnet8" }\nset = { lr = 0.01 }\n'
    cell = study(text).cell
    point = {"alpha": 1.0, "tau": 4.0, "family": "resnet", "resnet.depth": 8, "resnet.width": 1}
    assert cell.trial(point, 1)[0].train.lr == 0.01
    assert cell.trial({**point, "resnet.depth": 14}, 1)[0].train.lr == 0.05
    with pytest.raises(ConfigError, match=r"override\[0\]\.when must match a trial"):
        study(text.replace('"resnet8"', '"wrn_10_1"'))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ('name = "asha"\ngrace = 10', "scheduler.grace must be below the 10 epochs of a trial, but got 10."),
        ('name = "asha"\np_threshold = 0.1', "scheduler.p_threshold has no effect on asha."),
        ('name = "median"\nreduction_factor = 2.0', "scheduler.reduction_factor has no effect on median."),
    ],
)
def test_scheduler_keys_without_effect_are_refused(scheduler, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        parse_text(f"{TEXT}[scheduler]\n{scheduler}\n")


def test_why_the_papers_weights_are_no_starting_point_is_kept():
    found = study(TEXT + "[[override]]\nset = { alpha = 200.0 }\n")
    assert (found.starts, found.misfit) == ([], "alpha = 200.0 lies outside of 0.1..10 log")
    assert study(TEXT).misfit is None

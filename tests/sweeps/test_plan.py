"""The plan: the product of the axes, overrides in order, identities."""

import pytest

from kdtrain.build import trial_id
from kdtrain.config import ConfigError
from sweeps.plan import Plan, expand
from sweeps.spec import parse_text

HEAD = """
[sweep]
name = "s"
[data]
dataset = "fashion_mini"
[train]
epochs = 10
lr = 0.05
"""


def plan(text: str) -> Plan:
    return expand(parse_text(HEAD + text))


def values(plan: Plan, *path: str) -> list[object]:
    """A field of the trial of each cell, in order."""
    found = []
    for cell in plan.cells:
        value: object = plan.trials[cell.trial_id]
        for name in path:
            value = value.get(name) if isinstance(value, dict) else getattr(value, name)
        found.append(value)
    return found


def test_product_of_all_axes_in_order_with_seeds_fastest():
    made = plan("""
[grid]
pair = ["resnet14/resnet8"]
method = ["kd", "cid"]
fraction = [0.5, 1.0]
lr = [0.1, 0.01]
seed = [1, 2]
""")
    assert len(made.cells) == len(made.trials) == 16
    assert values(made, "seed")[:4] == [1, 2, 1, 2]
    assert values(made, "train", "lr")[:4] == [0.1, 0.1, 0.01, 0.01]
    assert values(made, "data", "fraction")[:8] == [0.5] * 4 + [1.0] * 4
    assert values(made, "method", "name") == ["kd"] * 8 + ["cid"] * 8
    assert all(cell.trial_id == trial_id(made.trials[cell.trial_id]) for cell in made.cells)


def test_trial_without_a_teacher_is_one_trial_in_all_its_pairs():
    made = plan("""
[grid]
pair = ["resnet14/resnet8", "resnet20/resnet8"]
method = ["vanilla", "kd"]
seed = [1]
""")
    assert [cell.axes["method"] for cell in made.cells] == ["vanilla", "vanilla", "kd", "kd"]
    assert made.cells[0].trial_id == made.cells[1].trial_id
    assert made.cells[2].trial_id != made.cells[3].trial_id
    assert (len(made.trials), len(made.teachers)) == (3, 2)


def test_teachers_have_the_base_recipe_with_their_own_changes_and_are_planned_once():
    made = plan("""
[teacher]
epochs = 3
seed = 7
[grid]
pair = ["resnet14/resnet8"]
method = ["kd", "cid"]
fraction = [0.1, 0.2]
lr = [0.1]
seed = [1, 2]
""")
    ((key, teacher),) = made.teachers.items()
    assert key == trial_id(teacher)
    assert (teacher.student, teacher.method.name, teacher.seed) == ("resnet14", "vanilla", 7)
    assert (teacher.train.epochs, teacher.train.lr, teacher.data.fraction) == (3, 0.05, 1.0)
    assert {trial.teacher.id for trial in made.trials.values()} == {key}


def test_no_teacher_is_planned_for_methods_that_need_none():
    made = plan('[grid]\npair = ["resnet14/resnet8", "resnet8"]\nmethod = ["vanilla"]\nseed = [1]\n')
    assert made.teachers == {}
    assert len(made.trials) == 1


def test_overrides_apply_in_order_and_match_with_wildcards_lists_and_all_axes():
    made = plan("""
[grid]
pair = ["resnet14/resnet8", "resnet20/resnet8"]
method = ["kd", "cid", "fitnet+kd"]
seed = [1, 2]
[[override]]
when = { method = "*kd" }
set = { lr = 0.1 }
[[override]]
when = { teacher = "resnet20", method = ["cid", "kd"], seed = 2 }
set = { lr = 0.2, tau = 7.0 }
[[override]]
when = { method = "fitnet+kd", student = "resnet8" }
set = { kd = { alpha = 0.5 }, fitnet = { beta = 10.0 } }
[[override]]
when = { method = "fitnet+kd", pair = "resnet20/resnet8" }
set = { kd = { tau = 2.0 } }
""")
    lrs = {(c.axes["method"], c.axes["pair"][:8], c.axes["seed"]): made.trials[c.trial_id].train.lr for c in made.cells}
    assert lrs["kd", "resnet14", 1] == lrs["fitnet+kd", "resnet20", 2] == 0.1
    assert lrs["kd", "resnet20", 2] == lrs["cid", "resnet20", 2] == 0.2
    assert lrs["cid", "resnet14", 2] == 0.05
    assert values(made, "method", "params")[3] == {"tau": 7.0}
    assert values(made, "method", "params")[-1] == {"kd": {"alpha": 0.5, "tau": 2.0}, "fitnet": {"beta": 10.0}}


@pytest.mark.parametrize("when", ['{ method = "kd", tau = 2.0 }', '{ tau = 2.0, method = "kd" }', "{ tau = 2.0 }"])
def test_axis_that_only_other_cells_have_does_not_match_whatever_the_order_of_keys(when):
    made = plan(f"""
[grid]
pair = ["resnet14/resnet8"]
method = ["vanilla", "kd"]
seed = [1]
[grid.kd]
tau = [2.0, 8.0]
[[override]]
when = {when}
set = {{ lr = 0.3 }}
""")
    assert values(made, "train", "lr") == [0.05, 0.3, 0.05]


def test_override_completes_the_table_of_a_part():
    made = plan("""
[grid]
pair = ["resnet14/resnet8"]
method = [{ name = "fitnet+kd", kd = { tau = 2.0 } }]
seed = [1]
[[override]]
set = { kd = { alpha = 0.5 } }
""")
    assert values(made, "method", "params") == [{"kd": {"tau": 2.0, "alpha": 0.5}}]


def test_tables_of_a_method_and_methods_with_parameters_span_the_grid():
    made = plan("""
[grid]
pair = ["resnet14/resnet8"]
method = ["kd", "cid", { name = "cid", sr = false }]
seed = [1]
[grid.cid]
alpha = [1.0, 10.0]
tau = [2.0, 4.0]
""")
    assert len(made.trials) == 1 + 4 + 4
    assert values(made, "method", "params")[1] == {"alpha": 1.0, "tau": 2.0}
    assert values(made, "method", "params")[-1] == {"sr": False, "alpha": 10.0, "tau": 4.0}


def test_plan_of_two_grids_is_the_union_of_their_plans():
    def grid(seeds: str) -> set[str]:
        return set(plan(f'[grid]\npair = ["resnet14/resnet8"]\nmethod = ["vanilla", "kd"]\nseed = {seeds}\n').trials)

    assert grid("[1, 2, 3]") == grid("[1]") | grid("[2, 3]")


@pytest.mark.parametrize(
    "change", ["cpus = 2", "results = 'elsewhere'\nmax_concurrent = 1", "max_failures = 0\ngpus = 0.5"]
)
def test_where_and_how_fast_are_no_part_of_identity(change):
    grid = '[grid]\npair = ["resnet14/resnet8"]\nmethod = ["kd"]\nseed = [1]\n'
    assert set(plan(f"[run]\n{change}\n{grid}").trials) == set(plan(grid).trials)


def test_a_named_recipe_stands_for_its_keys_everywhere():
    made = plan("""
[teacher]
recipe = "ps_kd"
epochs = 30
[grid]
pair = ["resnet14/resnet8"]
method = ["vanilla", "kd"]
seed = [1]
[[override]]
when = { method = "kd" }
set = { recipe = "tf_kd", lr = 0.2, tau = 2.0 }
""")
    (teacher,) = made.teachers.values()
    # A tenth of PS-KD's 300 epochs, so a tenth of its milestones 150 and 225, rounded to even.
    assert (teacher.train.epochs, teacher.train.milestones, teacher.train.batch_size) == (30, [15, 22], 128)
    vanilla, kd = (made.trials[cell.trial_id] for cell in made.cells)
    assert (vanilla.train.epochs, vanilla.train.lr, vanilla.train.warmup_epochs) == (10, 0.05, None)
    assert (kd.train.epochs, kd.train.milestones, kd.train.lr_gamma) == (200, [60, 120, 160], 0.2)
    assert (kd.train.lr, kd.train.warmup_epochs, kd.method.params) == (0.2, 1, {"tau": 2.0})
    with pytest.raises(ConfigError, match=r"unknown recipe .tfkd. at override\[0\]\.set\.recipe\..*tf_kd"):
        plan('[grid]\npair = ["resnet8"]\nmethod = ["vanilla"]\nseed = [1]\n[[override]]\nset = { recipe = "tfkd" }\n')

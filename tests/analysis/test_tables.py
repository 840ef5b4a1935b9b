import pytest

from analysis.errors import ReportError
from analysis.metrics import metric_named
from analysis.tables import Mark


def cells(table):
    """{row name: cells}."""
    return {row.name: row.cells for row in table.rows}


def test_mean_std_and_n(results, tables):
    # Mean 71; deviations -1, 0, 1; variance 2 / 2 = 1.
    for seed, accuracy in ((1, 70.0), (2, 71.0), (3, 72.0)):
        results.add(seed=seed, test_top1=accuracy)
    (table,) = tables(results)
    (cell,) = cells(table)["KD"]
    assert (cell.mean, cell.std, cell.n, cell.complete) == (71.0, 1.0, 3, True)
    assert (table.sweep, table.dataset, table.status) == ("demo", "cifar100", "3 completed")


def test_teacherless_trials_belong_to_every_pair_of_their_student(results, tables):
    results.add(teacher=None, method="vanilla", test_top1=69.0)
    results.add(teacher="resnet56")
    results.add(teacher="resnet110", teacher_id="b" * 16)
    results.add(teacher=None, method="vanilla", student="vgg8", test_top1=60.0)
    (table,) = tables(results)
    assert [(c.teacher, c.student) for c in table.columns] == [
        (None, "vgg8"),
        ("resnet56", "resnet20"),
        ("resnet110", "resnet20"),
    ]
    assert [cell.mean for cell in cells(table)["Vanilla"]] == [60.0, 69.0, 69.0]
    assert [cell.mean for cell in cells(table)["KD"]] == [None, 70.0, 70.0]


def test_what_went_wrong_is_visible(results, tables):
    for seed in (1, 2, 3, 4):
        results.add(seed=seed, method="cid")
    results.add(seed=1)
    results.add(seed=2, status="failed", error_type="OSError", error="OSError: disk")
    results.add(seed=3, status="diverged")
    results.add(seed=1, method="sp", status="stopped")
    (table,) = tables(results)
    (kd,), (sp,) = cells(table)["KD"], cells(table)["SP"]
    assert (kd.n, kd.n_failed, kd.n_diverged, kd.n_stopped, kd.n_missing, kd.n_wanted) == (1, 1, 1, 0, 1, 4)
    assert (sp.mean, sp.n, sp.n_stopped, sp.n_missing) == (None, 0, 1, 3)
    assert not kd.complete
    assert not sp.complete


def test_different_recipes_are_not_averaged(results, tables):
    results.add(lr=0.05, test_top1=70.0)
    results.add(lr=0.1, test_top1=60.0)
    results.add(method="cid", params={"alpha": 1.0, "deep": {"tau": 4}}, test_top1=71.0)
    results.add(method="cid", params={"alpha": 10.0, "deep": {"tau": 4}}, test_top1=72.0)
    results.add(method="sp+kd", params={"kd": {"tau": 2}, "sp": {"gamma": 1}}, precision="fp32", test_top1=73.0)
    results.add(method="sp+kd", params={"kd": {"tau": 4}, "sp": {"gamma": 1}}, precision="bf16", test_top1=74.0)
    (table,) = tables(results)
    assert {name: cell.mean for name, (cell,) in cells(table).items()} == {
        "KD (lr=0.05)": 70.0,
        "KD (lr=0.1)": 60.0,
        "SP + KD (precision=bf16, kd.tau=4)": 74.0,
        "SP + KD (precision=fp32, kd.tau=2)": 73.0,
        "CID (alpha=1)": 71.0,
        "CID (alpha=10)": 72.0,
    }


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"epochs": 20}, "KD (epochs=20)"),
        ({"lr_milestones": [5, 8]}, "KD (lr_milestones=[5, 8])"),
        ({"subset_seed": 7}, "KD (subset_seed=7)"),
        ({"augment": False}, "KD (augment=false)"),
        ({"method_version": "2"}, "KD (method_version=2)"),
        ({"params": {"tau": None}}, "KD (tau=none)"),
        ({"teacher_id": "b" * 16}, f"KD (teacher.id={'b' * 16})"),
    ],
)
def test_any_configuration_splits(results, tables, change, name):
    results.add(params={"tau": 4.0})
    results.add(**{"params": {"tau": 4.0}, **change})
    (table,) = tables(results)
    assert len(table.rows) == 2
    assert name in cells(table)


def test_parameters_that_differ_between_pairs_do_not_split(results, tables):
    results.add(method="cid", params={"alpha": 55.0})
    results.add(method="cid", params={"alpha": 10.0}, teacher="wrn_40_2", student="wrn_16_2")
    (table,) = tables(results)
    assert [row.name for row in table.rows] == ["CID"]


def test_values_equal_to_four_digits_are_told_apart(results, tables):
    results.add(lr=0.123456)
    results.add(lr=0.123457)
    (table,) = tables(results)
    assert list(cells(table)) == ["KD (lr=0.123456)", "KD (lr=0.123457)"]


def test_teachers_of_different_training_split_and_of_different_seeds_do_not(results, tables):
    results.add_teacher(seed=1, test_top1=72.0)
    results.add_teacher("b" * 16, seed=2, test_top1=73.0)
    results.add_teacher("c" * 16, epochs=30, test_top1=60.0)
    for seed, teacher in ((1, results.teacher_id), (2, "b" * 16), (3, "c" * 16)):
        results.add(seed=seed, teacher_id=teacher, test_top1=70.0 + seed)
    (table,) = tables(results)
    assert {name: (cell.mean, cell.n) for name, (cell,) in cells(table).items()} == {
        "Teacher (epochs=30)": (60.0, 1),
        "Teacher (epochs=240)": (72.5, 2),
        "KD (teacher.epochs=30)": (73.0, 1),
        "KD (teacher.epochs=240)": (71.5, 2),
    }


def test_teachers_of_different_methods_are_different_teachers(results, tables):
    results.add_teacher(test_top1=72.0)
    for trial_id, epsilon in (("b" * 16, 0.1), ("c" * 16, 0.2)):
        results.add_teacher(trial_id, method="ls", params={"epsilon": epsilon}, test_top1=72.0 + 10 * epsilon)
    for teacher in (results.teacher_id, "b" * 16, "c" * 16):
        results.add(teacher_id=teacher)
    (table,) = tables(results)
    assert {row.name: row.cells[0].mean for row in table.rows if row.method == "teacher"} == {
        "Teacher (method=ls, epsilon=0.1)": 73.0,
        "Teacher (method=ls, epsilon=0.2)": 74.0,
        "Teacher (method=vanilla, epsilon=none)": 72.0,
    }
    assert {row.name for row in table.rows if row.method == "kd"} == {
        "KD (teacher.method=ls, teacher.epsilon=0.1)",
        "KD (teacher.method=ls, teacher.epsilon=0.2)",
        "KD (teacher.method=vanilla, teacher.epsilon=none)",
    }
    # A published number stands beside the vanilla teacher and its student alone.
    assert {row.name for row in table.rows if row.cells[0].published} == {
        "Teacher (method=vanilla, epsilon=none)", "KD (teacher.method=vanilla, teacher.epsilon=none)"
    }  # fmt: skip


def test_self_taught_trials_belong_to_every_pair_of_their_student(results, tables):
    own = {"method": "tf_kd", "teacher": "resnet20", "teacher_id": "b" * 16, "self_taught": True, "test_top1": 71.0}
    results.add_teacher()
    results.add_teacher("b" * 16, student="resnet20", test_top1=69.0)
    results.add(**own)
    results.add(method="ps_kd", teacher=None, test_top1=72.0)
    (table,) = tables(results)
    assert [(column.teacher, column.student) for column in table.columns] == [(None, "resnet20")]
    results.add(method="kd")
    (table,) = tables(results)
    assert [(column.teacher, column.student) for column in table.columns] == [("resnet56", "resnet20")]
    means = {name: cell.mean for name, (cell,) in cells(table).items()}
    assert means == {"Teacher": 72.34, "KD": 70.0, "TF-KD": 71.0, "PS-KD": 72.0}


def test_variants_with_and_without_a_teacher_are_told_by_the_variant_alone(results, tables):
    results.add_teacher("b" * 16, student="resnet20")
    self_taught = {"teacher": "resnet20", "teacher_id": "b" * 16, "self_taught": True}
    results.add(method="tf_kd", params={"variant": "self"}, **self_taught)
    results.add(method="tf_kd", params={"variant": "reg"}, teacher=None)
    (table,) = tables(results)
    assert cells(table).keys() == {"TF-KD (variant=self)", "TF-KD (variant=reg)"}


def test_trials_with_assistants_are_repetitions(results, tables):
    results.add_teacher()
    for seed in (1, 2):
        results.add(method="dgkd", seed=seed, assistant_ids=["b" * 16, "c" * 16])
    (table,) = tables(results)
    assert {name: cell.n for name, (cell,) in cells(table).items()} == {"Teacher": 1, "DGKD": 2}


def test_the_teacher_stands_first_and_does_not_compete(results, tables):
    results.add_teacher(test_top1=72.34)
    results.add(fraction=0.2, test_top1=60.0)
    results.add(fraction=0.4, test_top1=65.0)
    results.add(fraction=0.4, test_top1=66.0, method="cid")
    (table,) = tables(results)
    assert table.rows[0].name == "Teacher"
    assert [(cell.mean, cell.n, cell.mark) for cell in table.rows[0].cells] == [(72.34, 1, Mark.NONE)] * 2
    assert table.fractions == (0.2, 0.4)
    # A single competitor is not marked; of two, both are.
    assert [cell.mark for cell in cells(table)["KD"]] == [Mark.NONE, Mark.SECOND]
    assert [cell.mark for cell in cells(table)["CID"]] == [Mark.NONE, Mark.BEST]


@pytest.mark.parametrize(("metric", "best"), [("test_top1", "CID"), ("test_nll", "KD"), ("test_ece", "KD")])
def test_best_and_second_by_direction(results, tables, metric, best):
    for method, value in (("kd", 1.0), ("sp", 2.0), ("cid", 3.0)):
        results.add(method=method, **{metric: value})
    (table,) = tables(results, metric)
    marks = {row.name: row.cells[0].mark for row in table.rows}
    worst = {"KD": "CID", "CID": "KD"}[best]
    assert marks == {best: Mark.BEST, "SP": Mark.SECOND, worst: Mark.NONE}


def test_only_complete_cells_are_marked(results, tables):
    for method, accuracy in (("kd", 70.0), ("sp", 69.0)):
        results.add(method=method, seed=1, test_top1=accuracy)
        results.add(method=method, seed=2, test_top1=accuracy)
    results.add(method="cid", seed=1, test_top1=80.0)
    (table,) = tables(results)
    assert {row.name: row.cells[0].mark for row in table.rows} == {"KD": "best", "SP": "second", "CID": ""}


def test_equal_as_printed_is_equal(results, tables):
    for method, accuracy in (("kd", 70.001), ("sp", 70.004), ("cid", 69.0)):
        results.add(method=method, test_top1=accuracy)
    (table,) = tables(results)
    assert {row.name: row.cells[0].mark for row in table.rows} == {"KD": "best", "SP": "best", "CID": ""}


def test_data_sets_have_their_own_tables(results, tables):
    results.add()
    results.add(dataset="cifar10", lr=0.1)
    assert [(t.dataset, [row.name for row in t.rows]) for t in tables(results)] == [
        ("cifar10", ["KD"]),
        ("cifar100", ["KD"]),
    ]


def test_no_trial_has_ended(results, tables):
    results.add_epochs("c" * 16, test=[1.0])
    (table,) = tables(results)
    assert (table.dataset, table.rows, table.status) == (None, (), "no completed trial yet: 1 under way")


def test_a_metric_without_values(results, tables):
    results.add(val_acc=None)
    (table,) = tables(results, "val_acc")
    assert cells(table)["KD"][0].mean is None


def test_unknown_metric():
    with pytest.raises(ReportError, match="unknown metric 'accuracy'; known: test_top1, test_top5, test_nll, "):
        metric_named("accuracy")

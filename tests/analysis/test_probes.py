"""Linear probes and teachers of weights from elsewhere, in tables and in the report."""

import io

import pandas as pd
import pytest

from analysis.figures import epoch_figures, fraction_figures
from analysis.groups import group_students
from analysis.html import render
from analysis.leaderboard import build_leaderboard
from analysis.load import load, load_epochs
from analysis.render import latex, long_csv, markdown, text
from analysis.tables import Mark

TEACHERS_PROBE = {"method": "vanilla", "teacher": None, "student": "resnet56", "seed": 0, "view_seed": 0}


def probes(tables, results):
    """{row name: cells} of the table of CIFAR-100 -> STL-10."""
    (table,) = (table for table in tables(results) if table.dataset == "cifar100 -> stl10")
    return {row.name: row.cells for row in table.rows}


@pytest.fixture
def sweep(results):
    """KD and CID of two seeds with their teacher, and the probes of all five networks."""
    results.add_teacher()
    for method, accuracy in (("kd", 70.0), ("cid", 72.0)):
        for seed in (1, 2):
            source = results.add(method=method, seed=seed, curve=[60.0, 70.0])
            own = {"method": method, "seed": seed, "test_top1": accuracy - 10 + seed}
            results.add_probe(source, curve=[30.0, 50.0 + seed], **own)
    results.add_probe(results.teacher_id, test_top1=55.0, curve=[50.0, 55.0], **TEACHERS_PROBE)
    return results


def test_probes_have_a_table_of_their_own(sweep, tables):
    students, probes = tables(sweep)
    assert (students.dataset, probes.dataset) == ("cifar100", "cifar100 -> stl10")
    for table, means in ((students, [72.34, 70.0, 70.0]), (probes, [55.0, 61.5, 63.5])):
        assert [row.name for row in table.rows] == ["Teacher", "KD", "CID"]
        assert [cell.mean for row in table.rows for cell in row.cells] == means
        assert [cell.n for row in table.rows for cell in row.cells] == [1, 2, 2]
        assert all(cell.complete for row in table.rows for cell in row.cells)
    assert [cell.mark for row in probes.rows for cell in row.cells] == [Mark.NONE, Mark.SECOND, Mark.BEST]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"fraction": 0.2}, "KD (source.fraction=0.2)"),
        ({"lr": 0.1}, "KD (source.lr=0.1)"),
        ({"epochs": 100, "lr_milestones": [60, 80]}, "KD (source.epochs=100, source.lr_milestones=[60, 80])"),
        ({"val_size": 5000}, "KD (source.val_size=5000)"),
        ({"subset_seed": 7}, "KD (source.subset_seed=7)"),
    ],
)
def test_probes_of_students_that_were_trained_differently_are_not_averaged(results, tables, change, name):
    for source, accuracy in ((results.add(), 60.0), (results.add(**change), 50.0)):
        results.add_probe(source, test_top1=accuracy)
    found = probes(tables, results)
    assert [cell.n for (cell,) in found.values()] == [1, 1]
    assert found[name][0].mean == 50.0


def test_parameters_and_teachers_split_probes_like_their_students(results, tables):
    results.add_teacher()
    results.add_teacher("b" * 16, epochs=30)
    for change in ({"params": {"tau": 1.0}}, {"params": {"tau": 4.0}}, {"method": "sp", "teacher_id": "b" * 16}):
        results.add_probe(results.add(**change), **change)
    results.add_probe(results.add(method="sp"), method="sp")
    names = [{row.name for row in table.rows if row.method != "teacher"} for table in tables(results)]
    assert names[0] == {"KD (tau=1)", "KD (tau=4)", "SP (teacher.epochs=30)", "SP (teacher.epochs=240)"}
    assert names[1] == names[0]


def test_probes_of_different_seeds_are_averaged_whatever_rate_each_found(results, tables):
    for seed, lr, accuracy in ((1, 0.01, 60.0), (2, 1.0, 62.0)):
        results.add_probe(results.add(seed=seed), seed=seed, view_seed=seed, lr=lr, test_top1=accuracy)
    ((cell,),) = probes(tables, results).values()
    assert (cell.mean, cell.n, cell.complete) == (61.0, 2, True)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"probe": '{"holdout":0.1,"lrs":[0.5]}'}, "KD (probe.lrs=[0.5])"),
        ({"probe": '{"holdout":0.2,"lrs":[0.01,0.1,1.0]}'}, "KD (probe.holdout=0.2)"),
        ({"image_size": 96}, "KD (image_size=96)"),
        ({"epochs": 20}, "KD (epochs=20)"),
    ],
)
def test_probes_of_different_classifiers_are_not_averaged(results, tables, change, name):
    source = results.add()
    results.add_probe(source)
    results.add_probe(source, **change)
    assert name in probes(tables, results)
    assert len(probes(tables, results)) == 2


def test_probes_of_students_without_a_row_are_not_averaged(results, tables):
    for source in ("d" * 16, "e" * 16):
        results.add_probe(source)
    assert list(probes(tables, results)) == [f"KD (source.id={'d' * 16})", f"KD (source.id={'e' * 16})"]


def test_probes_of_teachers_stand_where_their_students_do(results, tables):
    results.add_teacher()
    for fraction in (0.5, 1.0):
        results.add_probe(results.teacher_id, fraction=fraction, test_top1=50 * fraction, **TEACHERS_PROBE)
    (table,) = tables(results)
    assert [(column.teacher, column.student) for column in table.columns] == [(None, "resnet56")] * 2
    results.add_probe(results.add(), fraction=0.5)
    results.add_probe(results.add(method="vanilla", teacher=None), method="vanilla", teacher=None, fraction=0.5)
    table = tables(results)[-1]
    assert [(c.teacher, c.student, c.fraction) for c in table.columns] == [
        (None, "resnet56", 1.0),
        ("resnet56", "resnet20", 0.5),
    ]
    assert {row.name: [cell.mean for cell in row.cells] for row in table.rows} == {
        "Teacher": [50.0, 25.0],
        "Vanilla": [None, 70.0],
        "KD": [None, 70.0],
    }


def test_probes_of_teachers_that_were_trained_differently_are_not_averaged(results, tables):
    results.add_teacher()
    results.add_teacher("b" * 16, method="ls", params={"epsilon": 0.1})
    results.add_probe(results.teacher_id, test_top1=50.0, **TEACHERS_PROBE)
    results.add_probe("b" * 16, test_top1=60.0, **{**TEACHERS_PROBE, "method": "ls", "params": {"epsilon": 0.1}})
    assert {name: cell.mean for name, (cell,) in probes(tables, results).items()} == {
        "Teacher (source.method=vanilla, source.epsilon=none)": 50.0,
        "Teacher (source.method=ls, source.epsilon=0.1)": 60.0,
    }


def test_leaderboard_ranks_probes_by_themselves(sweep):
    entries = build_leaderboard(load(sweep.path, "demo"))
    assert [(entry.dataset, entry.name, entry.rank, entry.cell.n_wanted) for entry in entries] == [
        ("cifar100", "KD", 1, 2),
        ("cifar100", "CID", 1, 2),
        ("cifar100 -> stl10", "CID", 1, 2),
        ("cifar100 -> stl10", "KD", 2, 2),
    ]


def test_probes_have_curves_of_their_own(sweep):
    loaded = load(sweep.path, "demo")
    epochs = load_epochs(sweep.path, "demo", loaded.trials["trial_id"])
    students, probes = epoch_figures(group_students(loaded), epochs, "demo")
    assert "100 % of CIFAR-100: " in students.caption
    assert "100 % of STL-10, linear probes of networks trained on CIFAR-100: " in probes.caption
    lines = {trace.name: list(trace.y) for trace in probes.plot.data if trace.name}
    assert lines == {"KD (n=2)": [30.0, 51.5], "CID (n=2)": [30.0, 51.5]}


def test_probes_over_the_fraction_of_the_target(results):
    source = results.add()
    for fraction, accuracy in ((0.2, 40.0), (1.0, 60.0)):
        results.add_probe(source, fraction=fraction, test_top1=accuracy)
    (figure,) = fraction_figures(group_students(load(results.path, "demo")), "demo")
    assert list(figure.plot.data[0].y) == [40.0, 60.0]
    assert figure.plot.layout.xaxis.title.text == "Training images of STL-10 (%)"
    assert "ResNet-56 → ResNet-20, CIFAR-100 → STL-10 (linear probes): " in figure.caption


def test_every_form_of_a_table_has_the_probes(sweep, tables):
    tables = tables(sweep)
    assert "CIFAR-100 → STL-10 (linear probes): test top-1" in text.render(tables)
    assert "| CID | **63.50 ± 0.71** (2) |" in markdown.render(tables)
    assert r"CIFAR-100 $\rightarrow$ STL-10 (linear probes): test" in latex.render(tables)
    frame = pd.read_csv(io.StringIO(long_csv.render(tables)))
    own = frame[frame["dataset"] == "cifar100 -> stl10"]
    assert dict(zip(own["method"], own["mean"], strict=True)) == {"teacher": 55.0, "kd": 61.5, "cid": 63.5}


def test_the_report_has_the_probes(sweep):
    page = render(sweep.path, ["demo"])
    assert "CIFAR-100 → STL-10 (linear probes): test top-1" in page
    assert "CIFAR-100 → STL-10, 100 %" in page  # the leaderboard
    assert page.count("<figure>") == 2


def test_weights_from_elsewhere_stand_in_tables_and_in_the_report(results, tables):
    results.add_published("teachers/resnet56.pth", test_top1=72.3)
    results.add_probe(results.add(curve=[60.0, 70.0]))
    results.add_probe(results.teacher_id, test_top1=50.0, **TEACHERS_PROBE)
    students, probes = tables(results)
    assert [row.name for row in students.rows] == [row.name for row in probes.rows] == ["Teacher", "KD"]
    assert [table.rows[0].cells[0].mean for table in (students, probes)] == [72.3, 50.0]
    assert "weights from teachers/resnet56.pth" in render(results.path, ["demo"])


def test_weights_of_different_files_are_different_teachers(results, tables):
    results.add_teacher(test_top1=70.0)
    results.add_published("new/resnet56.pth", "b" * 16, test_top1=71.0)
    results.add_published("new/resnet56.pth", "c" * 16, test_top1=72.0)  # the file was replaced
    for teacher in (results.teacher_id, "b" * 16, "c" * 16):
        results.add(teacher_id=teacher)
    (table,) = tables(results)
    assert {row.name: row.cells[0].mean for row in table.rows if row.method == "teacher"} == {
        "Teacher (method=published, weights=resnet56.pth bbbbbbbb)": 71.0,
        "Teacher (method=published, weights=resnet56.pth cccccccc)": 72.0,
        "Teacher (method=vanilla, weights=none)": 70.0,
    }
    assert [row.name for row in table.rows if row.method == "kd"] == [
        "KD (teacher.method=published, teacher.weights=resnet56.pth bbbbbbbb)",
        "KD (teacher.method=published, teacher.weights=resnet56.pth cccccccc)",
        "KD (teacher.method=vanilla, teacher.weights=none)",
    ]

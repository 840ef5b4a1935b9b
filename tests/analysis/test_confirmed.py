"""Sweeps with a search: what is compared are its confirmed points, placed by the search."""

from datetime import UTC, datetime, timedelta

import pytest

from analysis.columns import Column
from analysis.figures import epoch_figures
from analysis.groups import group_students
from analysis.leaderboard import build_leaderboard
from analysis.load import load, load_epochs
from analysis.render import cells
from analysis.tables import Mark
from sweeps.schema import SEARCHED

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def shown(table):
    """{row name: [(mean, n, mark)]}."""
    return {row.name: [(cell.mean, cell.n, cell.mark) for cell in row.cells] for row in table.rows}


def test_the_points_of_a_search_are_placed_by_the_search(confirmed, tables):
    (table,) = tables(confirmed)
    assert [column.student for column in table.columns] == ["resnet20", "wrn_16_2"]
    # 70 and 71, 74 and 75, ...; two of the second best rows are better on the test images.
    assert shown(table) == {
        "CID": [(70.5, 2, Mark.SECOND), (74.5, 2, Mark.BEST)],
        "CID (point=2nd best)": [(72.5, 2, Mark.NONE), (73.5, 2, Mark.NONE)],
        "IPWD": [(71.5, 2, Mark.BEST), (73.5, 2, Mark.SECOND)],
        "IPWD (point=2nd best)": [(68.5, 2, Mark.NONE), (76.5, 2, Mark.NONE)],
    }
    assert all(cell.complete for row in table.rows for cell in row.cells)
    best, second = table.rows[2].cells[0].point, table.rows[3].cells[0].point
    assert (best.place, best.score, best.values) == (1, 69.5, (("alpha", "2.5"),))
    assert (second.place, second.score, second.values) == (2, 60.5, (("alpha", "1.5"),))
    assert table.status == "16 search trials (16 completed), 16 completed"


def test_only_completed_trials_of_the_search_count_for_the_score_and_ties_go_to_the_older(results, tables):
    for number, (alpha, val, other) in enumerate(((1.0, 70.0, "stopped"), (2.0, 71.0, "failed"), (3.0, 71.0, None))):
        results.add_search({"alpha": alpha}, val, number=number)
        if other:
            results.add_search({"alpha": alpha}, 99.0, number=number, seed=2, status=other)
    for number, alpha in ((2, 3.0), (0, 1.0), (1, 2.0)):
        results.add_confirmed({"alpha": alpha}, 60 + alpha, number=number)
    (table,) = tables(results)
    assert shown(table) == {
        "CID": [(62.0, 1, Mark.NONE)],
        "CID (point=2nd best)": [(63.0, 1, Mark.NONE)],
        "CID (point=3rd best)": [(61.0, 1, Mark.NONE)],
    }
    assert table.status == "5 search trials (3 completed, 1 stopped, 1 failed), 3 completed"
    (study,) = table.studies
    assert (study.points, study.trials, study.confirmed) == (3, 5, 3)


def test_points_without_a_score_come_last(results, tables):
    results.add_search({"alpha": 2.0}, 10.0, number=1)
    results.add_confirmed({"alpha": 1.0}, 80.0, number=0)
    results.add_confirmed({"alpha": 2.0}, 70.0, number=1)
    (table,) = tables(results)
    assert [(row.name, row.cells[0].mean) for row in table.rows] == [("CID", 70.0), ("CID (point=2nd best)", 80.0)]
    assert cells.chosen(table)[1].endswith("2nd best alpha 1 (validation –).")


def test_nothing_of_a_study_competes_before_its_best_point_is_confirmed(results, tables):
    results.add(method="kd", test_top1=70.0)
    results.add(method="sp", test_top1=69.0)
    for number, (alpha, val, test) in enumerate(((1.0, 70.0, 73.0), (2.0, 72.0, None), (3.0, 71.0, 74.0))):
        results.add_search({"alpha": alpha}, val, number=number)
        if test is not None:
            results.add_confirmed({"alpha": alpha}, test, number=number)
    (table,) = tables(results)
    assert shown(table) == {
        "KD": [(70.0, 1, Mark.BEST)],
        "SP": [(69.0, 1, Mark.SECOND)],
        "CID (point=2nd best)": [(74.0, 1, Mark.NONE)],
        "CID (point=3rd best)": [(73.0, 1, Mark.NONE)],
    }
    assert cells.chosen(table)[1:] == [
        "CID, ResNet-56 → ResNet-20: best point not confirmed yet; 2nd best alpha 3 (validation 71.00 %); "
        "3rd best alpha 1 (validation 70.00 %)."
    ]
    assert [(entry.name, entry.rank) for entry in build_leaderboard(load(results.path, "demo"))] == [
        ("KD", 1),
        ("SP", 2),
        ("CID (point=2nd best)", None),
        ("CID (point=3rd best)", None),
    ]


@pytest.mark.parametrize("other", ["failed", "stopped", "diverged", None])
def test_a_point_counts_when_all_its_seeds_completed(results, tables, other):
    for number, accuracies in enumerate(((80.0, other), (60.0, 62.0))):
        for seed, val in enumerate(accuracies, start=1):
            status = "completed" if isinstance(val, float) else val
            if status is not None:
                own = {"number": number, "seed": seed, "seeds": [1, 2], "status": status}
                results.add_search({"alpha": float(number)}, val if status == "completed" else 10.0, **own)
        results.add_confirmed({"alpha": float(number)}, number=number, seeds=[1, 2])
    (table,) = tables(results)
    assert cells.chosen(table)[1:] == [
        "CID, ResNet-56 → ResNet-20: alpha 1 (validation 61.00 %); 2nd best alpha 0 (validation –)."
    ]


def test_the_newest_trial_says_over_which_seeds_a_score_is(results, tables):
    # The first point was scored by one seed, before the spec had two.
    for hour, (number, seed, seeds, val) in enumerate(((0, 1, [1], 80.0), (1, 1, [1, 2], 60.0), (1, 2, [1, 2], 62.0))):
        ended = START + timedelta(hours=hour)
        results.add_search({"alpha": float(number)}, val, number=number, seed=seed, seeds=seeds, ended_at=ended)
    results.add_confirmed({"alpha": 1.0}, 70.0, number=1)
    (table,) = tables(results)
    assert shown(table) == {"CID": [(70.0, 1, Mark.NONE)]}
    assert cells.chosen(table)[1:] == ["CID, ResNet-56 → ResNet-20: alpha 1 (validation 61.00 %)."]


def test_seeds_of_a_confirmation_are_not_missed_by_planned_trials_nor_the_other_way_round(results, tables):
    for seed in (1, 2, 3):
        results.add(method="sp", seed=seed)
    results.add(method="kd", seed=1)
    for number, seeds in ((0, (11, 12)), (1, (11,))):
        results.add_search({"alpha": float(number)}, 70.0 - number, number=number)
        for seed in seeds:
            results.add_confirmed({"alpha": float(number)}, number=number, seed=seed)
    (table,) = tables(results)
    missing = {row.name: (row.cells[0].n, row.cells[0].n_missing) for row in table.rows}
    assert missing == {"KD": (1, 2), "SP": (3, 0), "CID": (2, 0), "CID (point=2nd best)": (1, 1)}


def test_planned_parameters_beside_searched_ones(results, tables):
    results.add_search({"alpha": 1.0}, 70.0)
    results.add_confirmed({"alpha": 1.0}, 71.0)
    results.add(method="cid", params={"alpha": 10.0})
    results.add(method="cid", params={"alpha": 1.0}, test_top1=69.0)
    (table,) = tables(results)
    assert {name: mean for name, ((mean, _, _),) in shown(table).items()} == {
        "CID (alpha=1)": 69.0,
        "CID (alpha=10)": 70.0,
        "CID (alpha=searched)": 71.0,
    }


def test_parameters_of_parts_of_the_recipe_and_of_conditions_do_not_split(results, tables, pairs):
    space = (
        '{"kd.alpha":{"choices":[1.0,2.0]},"train.lr":{"low":0.01,"high":0.1},"sp.beta":{"low":1,"high":9,"when":{}}}'
    )
    for pair, alpha, lr in (("r", 1.0, 0.02), ("w", 2.0, 0.03)):
        for number, extra in ((0, {}), (1, {"sp.beta": 5.0})):
            point = {"kd.alpha": alpha, "train.lr": lr + number / 100, **extra}
            params = {"kd": {"alpha": alpha}, "sp": {"beta": extra.get("sp.beta", 3000.0)}}
            own = {"method": "sp+kd", "params": params, "lr": lr + number / 100, "study": pair, **pairs[pair]}
            results.add_search(point, 70.0 - number, number=number, parameters=(), space=space, **own)
            results.add_confirmed(point, 70.0, number=number, parameters=(), space=space, **own)
    (table,) = tables(results)
    assert list(shown(table)) == ["SP + KD", "SP + KD (point=2nd best)"]
    assert cells.chosen(table)[1] == (
        "SP + KD, ResNet-56 → ResNet-20: kd.alpha 1, train.lr 0.02 (validation 70.00 %); "
        "2nd best kd.alpha 1, train.lr 0.03, sp.beta 5 (validation 69.00 %)."
    )


def test_a_self_taught_method_whose_teacher_shares_the_searched_recipe(results, tables):
    for number, (lr, teacher) in enumerate(((0.1, "c" * 16), (0.2, "d" * 16))):
        results.add_teacher(teacher, student="resnet20", lr=lr)
        own = {"method": "tf_kd", "parameters": (), "teacher": "resnet20", "teacher_id": teacher, "self_taught": True}
        results.add_search({"train.lr": lr}, 70.0 - number, number=number, lr=lr, **own)
        results.add_confirmed({"train.lr": lr}, number=number, lr=lr, **own)
    (table,) = tables(results)
    assert list(shown(table)) == ["TF-KD", "TF-KD (point=2nd best)"]


def test_two_searches_of_one_cell_are_told_by_what_differs(results, tables, pairs):
    for study, high in (("1" * 16, 10.0), ("2" * 16, 50.0)):
        for pair, columns in pairs.items():
            space = f'{{"alpha":{{"high":{high},"low":0.0}}}}'
            results.add_confirmed({"alpha": 5.0}, high, study=study[1:] + pair, space=space, **columns)
    (table,) = tables(results)
    assert {name: [mean for mean, _, _ in row] for name, row in shown(table).items()} == {
        "CID (search.alpha.high=10)": [10.0, 10.0],
        "CID (search.alpha.high=50)": [50.0, 50.0],
    }


def test_two_searches_that_nothing_tells_apart_are_told_by_their_ids(results, tables):
    for study in ("1" * 16, "2" * 16):
        results.add_confirmed({"alpha": 5.0}, 70.0, study=study)
    (table,) = tables(results)
    assert list(shown(table)) == [f"CID (study={'1' * 16})", f"CID (study={'2' * 16})"]


# Of a front of three points, two are of one student: the places are within a column.
FRONT = [("resnet8", 4.0, 60.0, 65.0), ("resnet8", 2.0, 61.0, 64.0), ("resnet14", 3.0, 66.0, 69.0)]


def add_front(results):
    for number, (student, alpha, val, test) in enumerate(FRONT):
        point = {"alpha": alpha, "family": "resnet", "resnet.depth": int(student.removeprefix("resnet"))}
        own = {"student": student, "objectives": ["val_acc", "params"], "parameters": ("alpha",), "number": number}
        results.add_search(point, val, **own)
        results.add_confirmed(point, test, **own)


def test_searched_students_have_columns_of_their_own(results, tables):
    results.add(method="vanilla", teacher=None, student="resnet8", test_top1=50.0)
    add_front(results)
    (table,) = tables(results)
    assert table.columns == (
        Column(teacher="resnet56", student="resnet8", fraction=1.0),
        Column(teacher="resnet56", student="resnet14", fraction=1.0),
    )
    assert shown(table) == {
        "Vanilla": [(50.0, 1, Mark.SECOND), (None, 0, Mark.NONE)],
        "CID": [(64.0, 1, Mark.BEST), (69.0, 1, Mark.NONE)],
        "CID (point=2nd best)": [(65.0, 1, Mark.NONE), (None, 0, Mark.NONE)],
    }
    assert [study.column.student for study in table.studies] == [SEARCHED]
    assert "Where the student is searched, too" in cells.chosen(table)[0]
    assert cells.chosen(table)[1:] == [
        "CID, ResNet-56 → ResNet-8: alpha 2, family resnet, resnet.depth 8 (validation 61.00 %); "
        "2nd best alpha 4, family resnet, resnet.depth 8 (validation 60.00 %).",
        "CID, ResNet-56 → ResNet-14: alpha 3, family resnet, resnet.depth 14 (validation 66.00 %).",
    ]


def test_each_searched_student_waits_for_its_own_best_point(results, tables):
    add_front(results)
    better = {"alpha": 1.0, "family": "resnet", "resnet.depth": 8}
    results.add_search(better, 65.0, number=3, student="resnet8", parameters=("alpha",))
    (table,) = tables(results)
    assert {row.name: [cell.competes for cell in row.cells] for row in table.rows} == {
        "CID": [False, True],
        "CID (point=2nd best)": [False, False],
        "CID (point=3rd best)": [False, False],
    }
    assert cells.chosen(table)[1:] == [
        "CID, ResNet-56 → ResNet-14: alpha 3, family resnet, resnet.depth 14 (validation 66.00 %).",
        "CID, ResNet-56 → ResNet-8: best point not confirmed yet; "
        "2nd best alpha 2, family resnet, resnet.depth 8 (validation 61.00 %); "
        "3rd best alpha 4, family resnet, resnet.depth 8 (validation 60.00 %).",
    ]


def test_a_searched_student_beside_a_planned_trial_of_it(results, tables):
    add_front(results)
    results.add(method="cid", student="resnet8", params={"alpha": 8.0})
    (table,) = tables(results)
    assert list(shown(table)) == [
        "CID (student=resnet8, alpha=8)",
        "CID (student=searched, alpha=searched)",
        "CID (student=searched, alpha=searched, point=2nd best)",
    ]


def test_a_student_alone_is_searched_beside_a_planned_trial(results, tables):
    results.add_confirmed({"family": "resnet"}, 71.0, parameters=())
    results.add(method="cid")
    (table,) = tables(results)
    assert list(shown(table)) == ["CID (student=resnet20)", "CID (student=searched)"]


def test_a_method_without_a_teacher_is_told_once_for_all_its_pairs(results, tables):
    results.add(teacher="resnet56")
    results.add(teacher="resnet110", teacher_id="b" * 16)
    results.add_search({"epsilon": 0.1}, 70.0, method="ls", teacher=None)
    results.add_confirmed({"epsilon": 0.1}, 71.0, method="ls", teacher=None)
    (table,) = tables(results)
    assert cells.chosen(table)[1:] == [
        "LS, ResNet-56 → ResNet-20 and ResNet-110 → ResNet-20: epsilon 0.1 (validation 70.00 %)."
    ]


def test_leaderboard(confirmed):
    entries = build_leaderboard(load(confirmed.path, "demo"))
    assert [(entry.column.student, entry.name, entry.rank) for entry in entries] == [
        ("resnet20", "IPWD", 1),
        ("resnet20", "CID", 2),
        ("resnet20", "CID (point=2nd best)", None),
        ("resnet20", "IPWD (point=2nd best)", None),
        ("wrn_16_2", "CID", 1),
        ("wrn_16_2", "IPWD", 2),
        ("wrn_16_2", "IPWD (point=2nd best)", None),
        ("wrn_16_2", "CID (point=2nd best)", None),
    ]


def test_figures_have_no_trial_of_the_search(results):
    searched = results.add_search({"alpha": 1.0}, 70.0)
    results.add_epochs(searched, test=[None, 1.0], val=[1.0, 2.0])
    results.add_epochs(results.add_confirmed({"alpha": 1.0}), test=[50.0, 60.0])
    loaded = load(results.path, "demo")
    epochs = load_epochs(results.path, "demo", [*loaded.trials["trial_id"], *loaded.searched["trial_id"]])
    (figure,) = epoch_figures(group_students(loaded), epochs, "demo")
    assert [(trace.name, list(trace.y)) for trace in figure.plot.data] == [("CID (n=1)", [50.0, 60.0])]

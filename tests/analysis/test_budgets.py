"""Sweeps with a search: what it chose and spent is told in every form of a table, and whether it was simulated."""

import csv
import io

import pytest

from analysis.columns import Column
from analysis.confirmed import Study, group_studies
from analysis.html import render
from analysis.leaderboard import build_leaderboard
from analysis.load import load
from analysis.provenance import build_provenance
from analysis.render import cells, latex, long_csv, markdown, text
from analysis.tables import Mark, equal_budgets

EVIL = "<b>|&%$_{\\"


def shown(table):
    """{row name: [(mean, n, mark)]}."""
    return {row.name: [(cell.mean, cell.n, cell.mark) for cell in row.cells] for row in table.rows}


def test_budgets(confirmed, tables):
    (table,) = tables(confirmed)
    assert table.studies[0] == Study(
        id="cid-r",
        dataset="cifar100",
        method="cid",
        column=Column(teacher="resnet56", student="resnet20", fraction=1.0),
        searches=True,
        points=2,
        trials=4,
        confirmed=2,
    )
    assert equal_budgets(table.studies)
    assert cells.search(table) == (
        "Search: CID 2 points (4 trials) in each of 2 studies, IPWD 2 points (4 trials) in each of 2 studies; "
        "the same budget for each."
    )
    assert cells.caption(table).endswith(f"Sweep demo: {table.status}. {cells.search(table)}")


def test_unequal_budgets_are_told_and_so_is_what_was_not_searched(confirmed, tables, pairs):
    confirmed.add_search({"alpha": 9.0}, status="failed", study="cid-w", number=2, **pairs["w"])
    confirmed.add(method="kd")
    confirmed.add_search({}, 70.0, method="vanilla", teacher=None, study="v")
    confirmed.add_confirmed({}, 70.0, method="vanilla", teacher=None, study="v")
    confirmed.add_search({"beta": 1.0}, 70.0, method="sp", study="s")
    (table,) = tables(confirmed)
    assert not equal_budgets(table.studies)
    assert cells.search(table) == (
        "Unequal search budgets: SP 1 point (1 trial, none confirmed), "
        "CID 2 points (4 trials) for ResNet-56 → ResNet-20, "
        "3 points (5 trials) for WRN-40-2 → WRN-16-2, "
        "IPWD 2 points (4 trials) in each of 2 studies. Not searched: KD, Vanilla."
    )
    assert table.status.endswith("; 1 of 6 studies not confirmed yet, kd-report search RESULTS shows the search")


def test_budgets_that_differ_between_fractions(results, tables):
    for fraction, points in ((0.2, 1), (1.0, 2)):
        for number in range(points):
            results.add_search({"alpha": float(number)}, 70.0, number=number, study=str(fraction), fraction=fraction)
        results.add_confirmed({"alpha": 0.0}, study=str(fraction), fraction=fraction)
    (table,) = tables(results)
    pair = "ResNet-56 → ResNet-20"
    assert cells.search(table) == (
        f"Unequal search budgets: CID 1 point (1 trial) for {pair} at 20 %, 2 points (2 trials) for {pair} at 100 %."
    )
    assert cells.chosen(table)[1:] == [
        f"CID, {pair}, 20 %: alpha 0 (validation 70.00 %).",
        f"CID, {pair}, 100 %: alpha 0 (validation 70.00 %).",
    ]
    assert "do not compete" not in cells.chosen(table)[0]


CHOSEN = (
    "CID, ResNet-56 → ResNet-20: alpha 12.35 (validation 71.50 %); 2nd best alpha 3 (validation 70.50 %).",
    "CID, WRN-40-2 → WRN-16-2: alpha 20 (validation 73.50 %); 2nd best alpha 0.5 (validation 72.50 %).",
    "IPWD, ResNet-56 → ResNet-20: alpha 2.5 (validation 69.50 %); 2nd best alpha 1.5 (validation 60.50 %).",
    "IPWD, WRN-40-2 → WRN-16-2: alpha 4.5 (validation 74.50 %); 2nd best alpha 5.5 (validation 73.50 %).",
)


def test_every_form_of_a_table_tells_the_points_and_the_budgets(confirmed, tables):
    found = tables(confirmed)
    plain = text.render(found)
    assert [line for line in plain.splitlines() if "validation " in line][1:] == list(CHOSEN)
    assert "IPWD (point=2nd best)  68.50 ± 0.71 (2)" in plain
    for render_one, arrow in ((text.render, "→"), (markdown.render, "→"), (latex.render, r"$\rightarrow$")):
        page = render_one(found)
        assert "the same budget for each." in page
        assert f"CID, ResNet-56 {arrow} ResNet-20: alpha 12.35 (validation 71.50" in page
        assert "Points that were 2nd best there or worse do not compete." in page


def test_csv(confirmed, tables):
    lines = list(csv.DictReader(io.StringIO(long_csv.render(tables(confirmed)))))
    cell = next(line for line in lines if line["settings"] == "point=2nd best" and line["method"] == "cid")
    names = ("study", "point", "search_place", "search_score", "search_points", "search_trials", "replayed", "mark")
    assert [cell[name] for name in names] == ["cid-r", '{"alpha": 3.0}', "2", "70.5", "2", "4", "0", ""]


def test_csv_of_planned_trials_has_no_study(results, tables):
    results.add()
    (cell,) = csv.DictReader(io.StringIO(long_csv.render(tables(results))))
    assert (cell["study"], cell["point"], cell["search_points"], cell["replayed"]) == ("", "", "", "0")


def test_the_report(confirmed):
    page = render(confirmed.path, ["demo"])
    for line in CHOSEN:
        assert f"<li>{line}</li>" in page
    assert page.count("the same budget for each.") == 2  # the leaderboard's and the table's
    assert '<span class="n">alpha 12.35<br>of 2 points (4 trials)</span>' in page
    assert "16 search trials (16 completed), 16 completed" in page


def test_hostile_names(results, tables):
    columns = {"parameters": (), "method": "x\x1b[2J"}
    results.add_search({EVIL: EVIL}, 70.0, **columns)
    results.add_confirmed({EVIL: EVIL}, 70.0, **columns)
    results.add_confirmed({EVIL: "\x1b"}, 70.0, number=1, **columns)
    found = tables(results)
    assert "\x1b" not in text.render(found)
    assert r"&lt;b>\|&amp;%$\_{\\" in markdown.render(found)
    assert r"\textless{}b\textgreater{}\textbar{}\&\%\$\_\{\textbackslash{}" in latex.render(found)
    page = render(results.path, ["demo"])
    assert "<b>" not in page.split("<script>")[0]
    assert "&lt;b&gt;" in page


@pytest.mark.parametrize(
    ("phases", "status"),
    [
        ("s", "1 search trial (1 completed); simulated: replays stored epochs, nothing was trained"),
        ("sc", "1 search trial (1 completed), 1 completed; simulated in part: 1 of 2 trials replay stored epochs"),
    ],
)
def test_simulated_searches_say_so_everywhere(results, tables, phases, status):
    results.add_search({"alpha": 1.0}, 70.0, replayed="9" * 16)
    if phases == "s":
        status = status.replace("; ", "; nothing to compare yet, kd-report search RESULTS shows the search; ", 1)
    else:
        results.add_confirmed({"alpha": 1.0})
    found = tables(results)
    assert found[0].status == status
    assert found[0].replayed == 1
    for page in (text.render(found), markdown.render(found), latex.render(found), render(results.path, ["demo"])):
        assert "simulated" in page
        assert "stored epochs" in page
    lines = list(csv.DictReader(io.StringIO(long_csv.render(found))))
    assert [line["replayed"] for line in lines] == ["1"] * (len(phases) - 1)


def test_a_search_that_is_not_confirmed_has_nothing_to_compare(results, tables):
    results.add_teacher()
    results.add_search({"alpha": 1.0}, 70.0)
    results.add_search({"alpha": 2.0}, 60.0, number=1, status="stopped")
    results.add_epochs("c" * 16, test=[1.0])
    (table,) = tables(results)
    assert (table.dataset, table.rows) == (None, ())
    status = (
        "2 search trials (1 completed, 1 stopped), 1 under way; "
        "nothing to compare yet, kd-report search RESULTS shows the search"
    )
    assert text.render([table]) == f"Sweep demo: {status}.\n"
    assert markdown.render([table]) == f"Sweep demo: {status}.\n"
    assert f"% Sweep demo: {status}.\n" in latex.render([table])
    assert build_leaderboard(load(results.path, "demo")) == []
    page = render(results.path, ["demo"])
    assert status in page
    assert "<table" not in page.split("<h3>Provenance")[0]


def test_planned_trials_are_compared_while_a_search_is_not_confirmed(results, tables):
    results.add()
    results.add_search({"alpha": 1.0}, 70.0)
    (table,) = tables(results)
    assert list(shown(table)) == ["KD"]
    assert "CID 1 point (1 trial, none confirmed). Not searched: KD." in cells.search(table)
    assert "1 of 1 studies not confirmed yet, kd-report search RESULTS shows the search" in table.status


def test_a_confirmation_that_failed_is_a_row(results, tables):
    results.add_search({"alpha": 1.0}, 70.0)
    results.add_confirmed({"alpha": 1.0}, status="failed")
    (table,) = tables(results)
    assert [(row.name, row.cells[0].n_failed, row.cells[0].competes) for row in table.rows] == [("CID", 1, False)]
    assert table.status == "1 search trial (1 completed), no completed trial yet: 1 failed"


def test_provenance_counts_the_search(results):
    # 2 CPUs for 1 h, 0.5 h, 1 h; the trial that replays trained nothing.
    results.add_search({"alpha": 1.0}, 70.0, teacher_id="b" * 16)
    results.add_search({"alpha": 2.0}, 60.0, status="stopped", train_seconds=1800.0, number=1)
    results.add_search({"alpha": 3.0}, status="failed", error_type="E", number=2, replayed="9" * 16)
    results.add_confirmed({"alpha": 1.0})
    results.add_teacher()
    results.add_teacher("b" * 16, val_size=5000)
    provenance = build_provenance(load(results.path, "demo"))
    assert dict(provenance.facts)["Core-hours"] == "5.00, 3.00 of them for the search (CPUs × time of training)"
    assert [teacher.training for teacher in provenance.teachers] == [
        "CIFAR-100, 100 %, 240 epochs, seed 1",
        "CIFAR-100, 100 %, 5,000 images held out, 240 epochs, seed 1",
    ]
    assert [failure.what for failure in provenance.failures] == [
        "CID, ResNet-56 → ResNet-20, 100 %, seed 1, search point 2"
    ]


def test_the_teacher_of_the_search_is_no_row(results, tables):
    results.add_teacher(test_top1=72.0)
    results.add_teacher("b" * 16, val_size=5000, test_top1=71.0)
    results.add_search({"alpha": 1.0}, 70.0, teacher_id="b" * 16)
    results.add_confirmed({"alpha": 1.0})
    (table,) = tables(results)
    assert shown(table) == {"Teacher": [(72.0, 1, Mark.NONE)], "CID": [(70.0, 1, Mark.NONE)]}


def test_studies_of_a_sweep_without_a_search(results):
    results.add()
    assert group_studies(load(results.path, "demo")) == []

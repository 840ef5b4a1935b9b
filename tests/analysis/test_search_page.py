import json
import re
import sys
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from analysis.__main__ import main
from analysis.search import load_searches
from analysis.search_curves import best_of_n
from analysis.search_figures import panels
from analysis.search_page import render

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
SPACE = {"alpha": {"low": 0.1, "high": 100.0, "log": True}, "beta": {"low": 0.0, "high": 2.0}}


def add(results, number, point, val_acc=None, **columns):
    own = {
        "phase": "search",
        "study": "a" * 16,
        "objectives": ["val_acc"],
        "seeds": [1],
        "space": json.dumps(SPACE),
        "point": json.dumps(point),
        "number": number,
        "origin": "sampler",
        "val_acc": val_acc,
        "method": "cid",
        "params": {},
    }
    return results.add(**{**own, **columns})


def shown(results):
    """The panels of the first study by title."""
    study = load_searches(results.path, ["demo"])[0].studies[0]
    return {panel.title: panel for panel in panels(study)}


def small(results, n=4, **columns):
    for number in range(n):
        point = {"alpha": 10.0 ** (number % 3), "beta": 0.1 + 0.01 * number}
        add(results, number, point, 70.0 + number, **columns)


def test_what_a_small_study_shows(results):
    small(results)
    add(results, 4, {"alpha": 100.0, "beta": 2.0}, status="diverged")
    add(results, 5, {"alpha": 0.1, "beta": 2.0}, status="stopped")
    found = shown(results)
    assert [*found] == [
        "Optimisation history", "Contour of alpha and beta", "Divergence map", "Slices", "Parameter importance",
    ]  # fmt: skip
    assert all("CID, n=6 points. Sweep demo." in panel.caption for panel in found.values())
    assert "Not shown: it needs 20 completed points or more, and there are 4." in found["Parameter importance"].caption
    assert found["Parameter importance"].plots == ()


def test_the_history_has_the_best_so_far(results):
    for number, accuracy in enumerate((70.0, 72.0, 71.0)):
        add(results, number, {"alpha": 1.0 + number, "beta": 0.1}, accuracy)
    best, points = shown(results)["Optimisation history"].plots[0].data
    assert (best.name, list(best.y)) == ("best so far", [70.0, 72.0, 72.0])
    assert list(points.y) == [70.0, 72.0, 71.0]


def test_the_divergence_map(results):
    small(results)
    add(results, 4, {"alpha": 100.0, "beta": 2.0}, status="diverged")
    panel = shown(results)["Divergence map"]
    (plot,) = panel.plots
    completed, diverged = plot.data
    assert (completed.name, list(completed.marker.color)) == ("completed (4)", [70.0, 71.0, 72.0, 73.0])
    assert (list(diverged.x), list(diverged.y), diverged.marker.symbol) == ([100.0], [2.0], "x")
    assert (plot.layout.xaxis.type, plot.layout.yaxis.type) == ("log", None)
    assert panel.caption.startswith("1 of 5 ended points diverged (20.0 %).")


def test_all_points_diverged(results):
    add(results, 0, {"alpha": 1.0, "beta": 2.0}, status="diverged")
    assert [*shown(results)] == ["Divergence map"]
    assert best_of_n(load_searches(results.path, ["demo"])[0]) == []


def test_the_importance_of_what_matters(results):
    for number in range(24):
        point = {"alpha": 1.0 + (7 * number) % 24, "beta": 0.05 * ((11 * number) % 24)}
        add(results, number, point, 80.0 - 2 * point["alpha"])
    (bars,) = shown(results)["Parameter importance"].plots[0].data
    assert list(bars.y) == ["beta", "alpha"]  # the most important on top
    assert bars.x[1] > 0.8


def test_the_pareto_front(results):
    for number, (accuracy, params) in enumerate([(70.0, 100), (72.0, 200), (71.0, 300)]):
        point = {"alpha": 1.0 + number, "beta": 0.1}
        add(results, number, point, accuracy, objectives=["val_acc", "params"], student_params=params)
    panel = shown(results)["Pareto front"]
    dominated, front = panel.plots[0].data
    assert (list(dominated.x), list(dominated.y)) == ([300.0], [71.0])
    assert sorted(zip(front.x, front.y, strict=True)) == [(100.0, 70.0), (200.0, 72.0)]
    assert panel.caption.startswith("The front has 2 of 3 completed points")


def test_methods_at_equal_budgets(results):
    small(results)
    add(results, 4, {"alpha": 1.0, "beta": 2.0}, status="failed", error_type="E", error="E")
    add(results, 0, {"alpha": 1.0, "beta": 1.0}, 60.0, study="b" * 16, method="ipwd")
    add(results, 0, {"alpha": 1.0, "beta": 1.0}, status="diverged", study="c" * 16, method="kd")
    (panel,) = best_of_n(load_searches(results.path, ["demo"])[0])
    assert panel.title == "ResNet-56 → ResNet-20, 100 % of CIFAR-100"
    assert (
        "counts as the lowest that any of these studies completed, 60.00 %. KD has no completed point." in panel.caption
    )
    lines = [trace for trace in panel.plots[0].data if trace.name]
    assert [line.name for line in lines] == ["CID (N=5, 1 without a value)", "IPWD (N=1)"]
    # The mean of 70, 71, 72, 73 and 60.
    assert lines[0].y[0] == pytest.approx(69.2)
    assert lines[0].y[-1] == pytest.approx(73.0)


def test_everything_is_inside(results):
    small(results)
    page = render(load_searches(results.path, ["demo"]))
    assert page.count(get_plotlyjs()) == 1
    own = page.replace(get_plotlyjs(), "")
    assert not re.search(r"https?://|@import|url\(|<link|src=", own)
    ids = re.findall(r' id="([^"]+)"', own)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'json" data-plot="([^"]+)"', own)) <= set(ids)


def test_data_cannot_inject(results):
    space = {EVIL: {"choices": [EVIL, "b"]}, "x": {"low": 0.0, "high": 1.0}, "y": {"low": 0.0, "high": 1.0}}
    for number in range(24):
        point = {EVIL: (EVIL, "b")[number % 2], "x": number / 24, "y": (7 * number % 24) / 24}
        more = {"method": EVIL, "student": EVIL, "teacher": EVIL, "student_params": number}
        add(results, number, point, 70.0 + number, space=json.dumps(space), objectives=["val_acc", "params"], **more)
    page = render(load_searches(results.path, ["demo"])).replace(get_plotlyjs(), "")
    assert "<img" not in page
    figures = re.findall(r'<script type="application/json" data-plot="[^"]+">(.*?)</script>', page)
    assert len(figures) == 9  # best of n, history, importance, contour, divergence, front and three slices
    for figure in figures:
        strings = [each for each in _strings(json.loads(figure)) if "%{" not in each]
        assert not any("<" in each for each in strings)
    assert any("&lt;img" in each for each in _strings(json.loads(figures[-3])))


def _strings(value):
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(each)


@pytest.fixture
def report(monkeypatch, capsys):
    """Run kd-report: (exit status, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["kd-report", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        output = capsys.readouterr()
        return end.value.code or 0, output.out, output.err

    return run


def test_the_command_prints_the_table_and_writes_the_page(results, report):
    small(results, n=2)
    page = Path(results.path) / "demo" / "search.html"
    status, out, err = report("search", f"{results.path}/demo")
    assert (status, err) == (0, f"wrote {page}\n")
    assert "CID     ResNet-56 → ResNet-20" in out
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("RESULTS", "kd-report search needs trials of a [search], but none has ended in RESULTS: demo."),
        ("file://RESULTS", "-o FILE is needed where the results are at a URI, but got only file://RESULTS."),
    ],
)
def test_errors_are_one_line(results, report, where, message):
    results.add()
    status, out, err = report("search", where.replace("RESULTS", results.path))
    assert (status, out, err) == (2, "", f"error: {message.replace('RESULTS', results.path)}\n")

from pathlib import Path

import pytest

from analysis.errors import ReportError
from analysis.load import load, load_epochs, resolve


def test_folder_of_a_sweep_and_of_results(results):
    results.add("one")
    results.add("two")
    results.add_teacher()
    assert resolve(f"{results.path}/two/") == (results.path, ["two"])
    assert resolve(results.path) == (results.path, ["one", "two"])


def test_uri(results):
    results.add("one")
    assert resolve(f"file://{results.path}/one") == (f"file://{results.path}", ["one"])
    assert resolve(f"file://{results.path}/") == (f"file://{results.path}", ["one"])


def test_relative_path(results, monkeypatch):
    results.add("one")
    monkeypatch.chdir(Path(results.path) / "one")
    assert resolve(".") == (results.path, ["one"])


@pytest.mark.parametrize("name", ["three", "teachers"])
def test_unknown_sweep_lists_the_sweeps(results, name):
    results.add("one")
    results.add("two")
    results.add_teacher()
    with pytest.raises(ReportError, match=rf"{name} is neither .*; sweeps in .*results: one, two\."):
        resolve(f"{results.path}/{name}")


def test_no_sweep_at_all(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "none"):
        with pytest.raises(ReportError, match="is neither the folder of a sweep nor of results; there is no sweep in"):
            resolve(str(path))


def test_students_with_their_teachers(results):
    results.add(status="failed")
    results.add(role="teacher", teacher=None)
    results.add_teacher()
    results.add_teacher("b" * 16)
    results.add_epochs("c" * 16, test=[1.0])
    sweep = load(results.path, "demo")
    assert list(sweep.trials["trial_id"]) == [f"{1:016x}"]
    assert sweep.trials["test_top1"][0] is None
    assert list(sweep.teachers["trial_id"]) == [results.teacher_id]
    assert sweep.spec is None
    assert sweep.status() == "no completed trial yet: 1 failed, 1 under way"


def test_assistants_are_loaded_with_the_teachers(results):
    results.add_teacher()
    results.add_teacher("b" * 16, student="resnet32", method="dgkd")
    results.add_teacher("c" * 16)
    results.add(method="dgkd", assistant_ids=["b" * 16])
    assert list(load(results.path, "demo").teachers["trial_id"]) == [results.teacher_id, "b" * 16]


def test_status_of_a_completed_sweep(results):
    results.add()
    results.add(seed=2, status="stopped")
    assert load(results.path, "demo").status() == "1 completed, 1 stopped"


def test_epochs(results):
    trial = results.add(curve=[10.0, 20.0])
    assert load_epochs(results.path, "demo", [trial])["test_acc"].tolist() == [10.0, 20.0]
    assert load_epochs(results.path, "demo", []).empty

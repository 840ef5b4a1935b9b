import json

import pytest

from analysis.errors import ReportError
from analysis.search import load_searches, render, told

SPACE = {"alpha": {"low": 0.1, "high": 100.0, "log": True}, "beta": {"low": 0.0, "high": 2.0}}


def add(results, number, point, val_acc=None, *, study="a" * 16, space=None, sweep="demo", **columns):
    """Write a trial of a search of two parameters, which are the method's but for those of the recipe or student."""
    own = {
        "phase": "search",
        "study": study,
        "objectives": ["val_acc"],
        "seeds": [1],
        "space": json.dumps(SPACE if space is None else space),
        "point": json.dumps(point),
        "number": number,
        "origin": "sampler",
        "val_size": 5000,
        "val_acc": val_acc,
        "method": "cid",
        "params": {name: value for name, value in point.items() if name in ("alpha", "beta", "tau")},
        "train_seconds": 900.0,
    }
    return results.add(sweep, **{**own, **columns})


def studies(results, name="demo"):
    return load_searches(results.path, [name])[0].studies


def test_the_table_of_a_study(results):
    add(results, 0, {"alpha": 1.0, "beta": 0.5}, 80.0)
    add(results, 1, {"alpha": 10.0, "beta": 0.25}, 82.5)
    add(results, 2, {"alpha": 90.0, "beta": 2.0}, status="diverged")
    add(results, 3, {"alpha": 80.0, "beta": 2.0}, status="failed", error_type="E", error="E")
    add(results, 4, {"alpha": 2.0, "beta": 0.5}, 40.0, status="stopped", epochs_done=60)
    results.add(method="cid", phase="confirm", study="a" * 16, params={"alpha": 10.0})  # is no point of the search
    text = render(load_searches(results.path, ["demo"]))
    caption, _, heading, _, line = text.splitlines()
    assert "CIFAR-100: accuracy on held-out training images" in caption
    # Two cores: 15 minutes of three trials, and an hour each between start and end of the other two.
    assert caption.endswith("Sweep demo: 1 study, 5 points in 5 trials, 5.50 core-hours.")
    assert heading.split("  ")[0] == "Method"
    cells = line.split()
    assert cells[:6] == ["CID", "ResNet-56", "→", "ResNet-20", "100", "%"]
    assert cells[6:] == ["5", "2", "1", "1", "1", "82.50", "(1)", "5", "5.50", "alpha=10,", "beta=0.25"]


def test_a_point_is_the_mean_over_its_seeds_and_needs_them_all(results):
    for number, accuracies in enumerate([(80.0, 82.0), (90.0,)]):
        for seed, accuracy in enumerate(accuracies, start=1):
            add(results, number, {"alpha": 1.0 + number, "beta": 0.5}, accuracy, seed=seed, seeds=[1, 2])
    (study,) = studies(results)
    assert [point.status for point in study.search.points] == ["completed", None]
    assert study.best.accuracy == 81.0
    # Sample standard deviation of 80 and 82: sqrt(2).
    assert "81.00 ± 1.41 (2)" in render(load_searches(results.path, ["demo"]))
    assert len(study.ended) == 1


def test_studies_of_one_method_are_told_apart_by_what_is_fixed(results):
    add(results, 0, {"alpha": 1.0}, 80.0, epochs=30, study="a" * 16, params={"alpha": 1.0, "tau": 2.0})
    add(results, 1, {"alpha": 3.0}, 80.0, epochs=30, study="a" * 16, params={"alpha": 3.0, "tau": 2.0})
    add(results, 0, {"alpha": 2.0}, 80.0, epochs=60, study="b" * 16, params={"alpha": 2.0, "tau": 2.0})
    assert [study.name for study in studies(results)] == ["CID (epochs=30)", "CID (epochs=60)"]


def test_studies_that_differ_in_seeds_alone_have_their_ids(results):
    add(results, 0, {"alpha": 1.0}, 80.0, seed=1, study="a" * 16)
    add(results, 0, {"alpha": 1.0}, 80.0, seed=2, seeds=[2], study="b" * 16)
    assert [study.name for study in studies(results)] == [f"CID (study={key * 16})" for key in "ab"]


def test_a_method_without_a_teacher_is_compared_in_the_pairs_of_its_student(results):
    add(results, 0, {"alpha": 1.0}, 80.0)
    space, point = {"train.lr": {"low": 0.01, "high": 0.1}}, {"train.lr": 0.05}
    add(results, 0, point, 79.0, study="b" * 16, method="vanilla", teacher=None, space=space, params={})
    add(results, 0, point, 79.0, study="c" * 16, method="vanilla", teacher=None, space=space, params={}, fraction=0.5)
    found = {study.search.id[0]: study for study in studies(results)}
    assert found["b"].pairs == found["a"].pairs
    assert found["c"].pairs == (found["c"].column,)  # no pair at that fraction


def test_a_searched_student(results):
    space = {"family": {"choices": ["resnet"]}, "resnet.depth": {"low": 8.0, "high": 20.0, "step": 6.0, "int": True}}
    for number, depth in enumerate((8, 14)):
        point = {"family": "resnet", "resnet.depth": depth}
        add(results, number, point, 70.0 + depth, space=space, student=f"resnet{depth}", method="kd", params={})
    text = render(load_searches(results.path, ["demo"]))
    assert "ResNet-56 → searched student" in text
    assert "family=resnet, resnet.depth=14" in text


def test_all_sweeps_that_have_searches(results):
    add(results, 0, {"alpha": 1.0}, 80.0, sweep="one")
    add(results, 0, {"alpha": 1.0}, 80.0, sweep="two")
    results.add("three")
    assert [found.sweep for found in load_searches(results.path, ["one", "three", "two"])] == ["one", "two"]


def test_no_search(results):
    results.add()
    with pytest.raises(ReportError, match=r"needs trials of a \[search\], but none has ended in .*: demo\."):
        load_searches(results.path, ["demo"])


def test_values_as_printed():
    assert told({"alpha": 0.123456, "n": 3, "sr": False, "loss": "mse"}) == "alpha=0.1235, n=3, sr=false, loss=mse"

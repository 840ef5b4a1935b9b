"""Teachers whose weights were trained elsewhere, in a sweep."""

import pytest
import torch

from kdtrain import models
from kdtrain.config import ConfigError
from sweeps.job import missing
from sweeps.plan import expand
from sweeps.spec import parse_text
from sweeps.store import TEACHERS, Store

TEXT = """
[sweep]
name = "published"
[data]
dataset = "fashion_mini"
[train]
epochs = 1
precision = "bf16"
[grid]
pair = ["resnet14/resnet8", "wrn_10_1/resnet8"]
method = ["vanilla", "kd"]
fraction = [0.02]
seed = [1]
"""


@pytest.fixture
def file(tmp_path):
    """A resnet14 as RepDistiller would have saved it."""
    torch.manual_seed(0)
    model = models.build("resnet14", 10, 1)
    path = tmp_path / "ckpt_epoch_240.pth"
    torch.save({"epoch": 240, "model": model.state_dict(), "accuracy": torch.tensor(70.0)}, path)
    return path


@pytest.fixture
def text(tmp_path, file):
    """The spec, with what [teacher.weights] says of resnet14."""

    def text(entry: object = None) -> str:
        run = f"[run]\nresults = '{tmp_path}/results'\ngpus = 0\n"
        told = f"{run}[teacher.weights]\nresnet14 = {entry or repr(str(file))}\n"
        return TEXT.replace("[grid]", f"{told}[grid]")

    return text


def test_named_teachers_are_not_trained_and_the_others_are(text, file):
    plan = expand(parse_text(text()))
    assert [trial.student for trial in plan.teachers.values()] == ["wrn_10_1"]
    (published,) = plan.published.values()
    assert (published.ref.model, published.source) == ("resnet14", str(file))
    assert len(published.ref.id) == 64
    taught = [trial for trial in plan.trials.values() if trial.teacher]
    assert {trial.teacher.id for trial in taught} == {published.ref.id, *plan.teachers}


def test_same_file_elsewhere_is_the_same_teacher(text, file, tmp_path):
    moved = tmp_path / "moved.pth"
    first = expand(parse_text(text()))
    file.rename(moved)
    assert expand(parse_text(text(repr(str(moved))))).trials == first.trials
    uri = expand(parse_text(text(f"'file://{moved}'")))
    assert uri.trials == first.trials


def test_torchvisions_weights_are_named_without_a_network():
    text = (
        TEXT.replace('"fashion_mini"', '"imagenet"').replace("resnet14/", "resnet34/").replace("wrn_10_1/", "resnet50/")
    )
    text = text.replace("resnet8", "resnet18")
    plan = expand(parse_text(text.replace("[grid]", '[teacher]\nweights = "torchvision"\n[grid]')))
    assert plan.teachers == {}
    ids = {name: published.ref.id for name, published in plan.published.items()}
    assert ids == {"resnet34": "torchvision-resnet34-imagenet1k_v1", "resnet50": "torchvision-resnet50-imagenet1k_v1"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("'absent.pth'", r"teacher\.weights\.resnet14 must be a file of weights, but got 'absent\.pth' \(No such file"),
        ("3", r"teacher\.weights\.resnet14 must be a file, or a table that names one, but got 3"),
        ("{ file = 'x', inside = 1.0 }", r"unknown key 'inside' at teacher\.weights\.resnet14\.inside\."),
        ("{ within = 1.0 }", r"teacher\.weights\.resnet14\.file is required"),
        (
            "{ file = 'x', expect_top1 = 101 }",
            r"teacher\.weights\.resnet14\.expect_top1 should be less than or equal to 100",
        ),
        ("'torchvision'", r"torchvision has no weights for 'resnet14'\."),
        ("'x'\nresnet20 = 'y'", r"unknown teacher 'resnet20' at teacher\.weights\..*Known: resnet14, wrn_10_1"),
    ],
)
def test_wrong_entries_are_refused_in_the_plan(text, entry, message):
    with pytest.raises(ConfigError, match=message):
        expand(parse_text(text(entry)))


def test_another_architecture_is_refused_in_the_plan(text, file):
    torch.save({"model": models.build("resnet14", 100, 1).state_dict()}, file)
    with pytest.raises(
        ConfigError, match=r"of resnet14 with 10 classes, but got .*fc\.weight is \[100, 64\] and not \[10, 64\]"
    ):
        expand(parse_text(text()))


def test_a_path_for_all_teachers_is_refused():
    with pytest.raises(
        ConfigError, match=r"teacher\.weights must be a table of files by architecture.*but got 'x\.pth'"
    ):
        parse_text(TEXT.replace("[grid]", '[teacher]\nweights = "x.pth"\n[grid]'))


def test_sweep_measures_it_once_and_refuses_another_accuracy_before_any_trial(text, tmp_path, sweep, file):
    spec_file = tmp_path / "spec.toml"
    spec_file.write_text(text(f"{{ file = '{file}', expect_top1 = 99.0 }}"))
    refused = sweep("run", spec_file)
    assert refused.code == 2
    assert "must have a top-1 of 99 ± 0.1" in refused.err
    assert len(refused.err.splitlines()) == 1
    own, teachers = Store(f"{tmp_path}/results", "published"), Store(f"{tmp_path}/results", TEACHERS)
    assert own.read_trials().num_rows == teachers.read_trials().num_rows == 0

    spec_file.write_text(text(f"{{ file = '{file}', expect_top1 = 10.0, within = 10.0 }}"))
    run = sweep("run", spec_file)
    assert run.code == 0, run.err
    assert "3 completed, of 3 trials" in run.out
    row = next(row for row in own.read_trials().to_pylist() if row["method"] == "published")
    assert teachers.read_trials().num_rows == 1  # of the one that was trained
    assert 0 <= row["test_top1"] <= 20
    assert (row["student"], row["dataset"], row["epochs"], row["status"]) == (
        "resnet14",
        "fashion_mini",
        None,
        "completed",
    )
    assert row["trial_id"] in {other["teacher_id"] for other in own.read_trials().to_pylist()}
    spec = parse_text(spec_file.read_text())
    todo = missing(spec, spec_file.read_text(), expand(spec), retry_failed=False)
    assert (todo.jobs, todo.published) == ([], [])
    # A demand that is made later holds for what was measured before, too.
    spec_file.write_text(text(f"{{ file = '{file}', expect_top1 = 99.0 }}"))
    assert "must have a top-1 of 99" in sweep("run", spec_file).err

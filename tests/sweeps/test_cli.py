"""What a person sees of kd-sweep where no trial is started."""

import os
import time
import tomllib

import pytest

from kdtrain import data
from sweeps.plan import expand
from sweeps.schema import Status
from sweeps.spec import parse_text
from sweeps.store import TEACHERS, Store


@pytest.fixture
def spec_file(tmp_path, spec_text):
    file = tmp_path / "spec.toml"
    file.write_text(spec_text)
    return file


@pytest.fixture
def plan(spec_text):
    return expand(parse_text(spec_text))


@pytest.fixture
def own(tmp_path):
    return Store(str(tmp_path / "results"), "small")


@pytest.fixture
def teachers(tmp_path):
    return Store(str(tmp_path / "results"), TEACHERS)


def write_epoch(store: Store, trial_id: str, **columns: object) -> None:
    """The row of the only epoch that a trial has done."""
    row = {
        "stage": "train", "epoch": 1, "lr": 0.1, "terms": {}, "train_acc": 1.0, "val_acc": None, "test_acc": 33.3,
        "seconds": 1.0,
    }  # fmt: skip
    store.write_epochs(trial_id, [{"trial_id": trial_id, **row, **columns}])


def test_plan_prints_cells_and_what_is_missing_and_starts_nothing(cli, spec_file, own, plan, tmp_path):
    ended = cli("plan", spec_file, "--results", tmp_path / "results")
    assert ended.code == 0
    assert "small: 4 trials of fashion_mini" in ended.out
    assert "0 of 4 trials are done" in ended.out
    assert "4 trials and 1 teacher to run; how long they take is known once a trial has ended" in ended.out
    assert not (tmp_path / "results").exists()


def test_plan_subtracts_what_is_done_and_estimates_from_it(cli, spec_file, own, teachers, plan, end, tmp_path):
    for cell in plan.cells[:2]:  # both vanilla trials, 2 epochs of 30 s
        end(own, plan.trials[cell.trial_id], "student", Status.COMPLETED, seconds=60.0)
    end(own, plan.trials[plan.cells[2].trial_id], "student", Status.COMPLETED, seconds=100.0)
    (teacher,) = plan.teachers.values()
    end(teachers, teacher, "teacher", Status.COMPLETED, seconds=10.0)
    text = cli("plan", spec_file, "--results", tmp_path / "results").out
    lines = [line.split() for line in text.splitlines()]
    assert ["vanilla", "resnet8/resnet8", "0.02", "2/2"] in lines
    assert ["kd", "resnet8/resnet8", "0.02", "1/2", "2"] in lines
    assert "3 of 4 trials are done" in text
    # The teacher's weights are gone: like the vanilla trials it takes 30 s, and then the student 100 s.
    assert "1 trial and 1 teacher to run: about 0.036 core-hours, 2 min 10 s on this machine, " in text


def test_status_reads_only_the_store(cli, spec_file, own, teachers, plan, end, tmp_path):
    (teacher,) = plan.teachers.values()
    end(teachers, teacher, "teacher", Status.COMPLETED)
    end(own, plan.trials[plan.cells[0].trial_id], "student", Status.COMPLETED)
    end(own, plan.trials[plan.cells[1].trial_id], "student", Status.DIVERGED)
    under_way = plan.cells[2].trial_id
    write_epoch(own, under_way)
    ended = cli("status", spec_file, "--results", tmp_path / "results")
    assert ended.code == 0
    assert "1 of 1 teachers have ended: 1 completed." in ended.out
    assert "2 of 4 trials have ended: 1 completed, 1 diverged, 1 begun, 1 not begun." in ended.out
    assert f"{under_way} kd resnet8/resnet8 fraction 0.02 seed 1: epoch 1/2, 33.3 %" in ended.out


def test_status_of_a_trial_in_the_stage_before_the_recipes_epochs(cli, spec_file, own, plan, tmp_path):
    under_way = plan.cells[2].trial_id
    write_epoch(own, under_way, stage="pretrain", epoch=3, train_acc=None, test_acc=None)
    text = cli("status", spec_file, "--results", tmp_path / "results").out
    assert f"{under_way} kd resnet8/resnet8 fraction 0.02 seed 1: pretrain epoch 3, " in text
    assert "%" not in text


def test_status_before_the_first_run(cli, spec_file, tmp_path):
    ended = cli("status", spec_file, "--results", tmp_path / "results")
    assert (ended.code, ended.err) == (0, "")
    assert "0 of 4 trials have ended: 4 not begun." in ended.out


@pytest.mark.parametrize("verb", ["plan", "run", "status"])
def test_truncated_row_is_named_and_nothing_is_lost(cli, spec_file, own, plan, end, tmp_path, verb):
    key = plan.cells[0].trial_id
    end(own, plan.trials[key], "student", Status.COMPLETED)
    path = tmp_path / "results" / "small" / "trials" / f"{key}.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    before = path.read_bytes()
    ended = cli(verb, spec_file, "--results", tmp_path / "results")
    assert ended.code == 2
    assert ended.err.startswith(f"error: {path} is not a whole Parquet file")
    assert "delete it and run the sweep again" in ended.err
    assert path.read_bytes() == before


def test_results_that_cannot_be_written_are_refused_before_anything_starts(cli, spec_file, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    ended = cli("run", spec_file, "--results", tmp_path / "file")
    assert ended.code == 2
    assert ended.err.startswith("error: cannot ")
    assert "Not a directory" in ended.err


def test_full_disk_is_refused_before_anything_starts(cli, spec_file, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("sweeps.store.os.replace", full)
    ended = cli("run", spec_file, "--results", tmp_path / "results")
    assert (ended.code, ended.out) == (2, "")
    assert "No space left on device" in ended.err


def test_missing_data_set_is_refused_before_anything_starts(cli, spec_file, spec_text, tmp_path):
    spec_file.write_text(spec_text.replace("fashion_mini", "cifar10"))
    ended = cli("run", spec_file, "--results", tmp_path / "results")
    assert ended.code == 2
    assert f"{tomllib.loads(spec_text)['data']['root']}/cifar-10-batches-py" in ended.err
    assert "download = true" in ended.err
    assert "put the standard files there" in ended.err


def test_validation_split_larger_than_the_data_is_refused(cli, spec_file, spec_text, tmp_path):
    spec_file.write_text(spec_text.replace("[train]", "val_size = 6000\n[train]"))
    ended = cli("run", spec_file, "--results", tmp_path / "results")
    assert ended.code == 2
    assert "val_size" in ended.err


def test_failed_teacher_of_an_earlier_run_is_told(cli, spec_file, own, teachers, plan, end, tmp_path):
    (teacher,) = plan.teachers.values()
    end(teachers, teacher, "teacher", Status.FAILED)
    for cell in plan.cells[:2]:
        end(own, plan.trials[cell.trial_id], "student", Status.COMPLETED)
    ended = cli("run", spec_file, "--results", tmp_path / "results")
    assert ended.code == 1
    assert "2 trials were not run, because the teacher resnet8 fraction 0.02 failed." in ended.out
    assert "RuntimeError: broken" in ended.out
    assert "--retry-failed" in ended.out


def test_second_run_starts_nothing_and_is_quick(cli, spec_file, own, teachers, plan, end, tmp_path, monkeypatch):
    (teacher,) = plan.teachers.values()
    end(teachers, teacher, "teacher", Status.COMPLETED)
    for trial in plan.trials.values():
        end(own, trial, "student", Status.COMPLETED)
    monkeypatch.setattr(data, "load", lambda *args: pytest.fail("the data were read"))
    start = time.monotonic()
    ended = cli("run", spec_file, "--results", tmp_path / "results")
    assert time.monotonic() - start < 10
    assert ended.code == 0
    assert "small: 4 completed, of 4 trials." in ended.out
    assert f"table: kd-report table {tmp_path}/results/small" in ended.out


@pytest.mark.parametrize("verb", ["plan", "run", "status"])
def test_every_verb_has_help_with_an_example(cli, verb):
    ended = cli(verb, "--help")
    assert ended.code == 0
    assert f"Example: kd-sweep {verb} sweeps/specs/demo.toml" in ended.out

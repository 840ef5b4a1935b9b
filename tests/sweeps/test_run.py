"""Sweeps for real: Ray, worker processes, real images; killed, interrupted and run again."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from sweeps.store import TEACHERS, Store

# Longer trials, so that there is a middle to be killed in.
LONG = ("epochs = 2", "epochs = 4")


def write(folder: Path, text: str) -> Path:
    file = folder / "spec.toml"
    file.write_text(text)
    return file


def rows(results: Path, sweep: str = "small") -> dict[str, dict[str, object]]:
    return {row["trial_id"]: row for row in Store(str(results), sweep).read_trials().to_pylist()}


def metrics(row: dict[str, object]) -> dict[str, object]:
    """What must be equal bit for bit when a trial runs again."""
    times = ("started_at", "ended_at", "teacher_epochs")  # which trial computes outputs of the teacher is a race
    return {name: value for name, value in row.items() if not name.endswith("seconds") and name not in times}


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def ray_processes(parent: int) -> list[psutil.Process]:
    return [process for process in psutil.Process(parent).children(recursive=True) if process.is_running()]


def is_worker(process: psutil.Process) -> bool:
    """Whether a process runs trials."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "Trainable" in process.name()
    return False


def assert_complete(results: Path, trials: int = 4) -> None:
    """All planned rows are there, once, with all their epochs and no left-overs."""
    done = rows(results)
    assert len(done) == trials
    assert {row["status"] for row in done.values()} == {"completed"}
    epochs = Store(str(results), "small").read_epochs().to_pandas()
    counts = epochs.groupby("trial_id")["epoch"].agg(["count", "nunique", "max"])
    assert all(counts.loc[key].tolist() == [row["epochs"]] * 3 for key, row in done.items())
    assert list((results / "small" / "checkpoints").iterdir()) == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, spec_text, sweep):
    """A sweep that ran to its end: its folder, its spec and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    spec = write(folder, spec_text)
    ended = sweep("run", spec, "--results", folder / "results")
    return folder / "results", spec, ended


def test_sweep_runs_to_its_end_and_prints_little(finished):
    results, _, ended = finished
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-2:] == [
        "small: 4 completed, of 4 trials.",
        f"table: kd-report table {results}/small",
    ]
    assert len(ended.out.splitlines()) <= 4
    assert_complete(results)
    assert list(results.rglob("*.tmp")) == []


def test_rows_say_where_they_come_from(finished):
    results, _, _ = finished
    teachers = rows(results, TEACHERS)
    ((teacher_id, teacher),) = teachers.items()
    assert teacher["role"] == "teacher"
    for row in rows(results).values():
        assert row["teacher_id"] == (teacher_id if row["method"] == "kd" else None)
        assert (row["sweep"], row["device"], row["cpus"], row["n_train"]) == ("small", "cpu", 1, 120)
        assert row["started_at"] < row["ended_at"]
        assert len(row["spec_sha256"]) == 64
        assert len(row["class_recall"]) == 10


def test_other_readers_open_the_files_as_they_are(finished):
    results, _, _ = finished
    frame = pd.read_parquet(results / "small" / "trials")
    assert len(frame) == 4
    assert frame["test_top1"].between(0, 100).all()
    epochs = pd.read_parquet(results / "small" / "epochs")
    assert len(epochs) == 8
    assert set(dict(epochs["terms"].iloc[0])) <= {"ce", "kd"}


def test_second_run_starts_nothing_and_deleted_row_comes_back_bit_for_bit(finished, sweep):
    results, spec, _ = finished
    before = rows(results)
    stamps = {path: path.stat().st_mtime_ns for path in results.rglob("*.parquet")}
    assert sweep("run", spec, "--results", results).code == 0
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*.parquet")} == stamps

    lost = next(key for key, row in before.items() if row["method"] == "kd")
    gone = results / "small" / "trials" / f"{lost}.parquet"
    gone.unlink()
    assert sweep("run", spec, "--results", results).code == 0
    assert {key: metrics(row) for key, row in rows(results).items()} == {
        key: metrics(row) for key, row in before.items()
    }
    again = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert again == {gone, results / "small" / "epochs" / gone.name}


def test_what_the_machine_lacks_is_refused_before_a_trial_begins(tmp_path, spec_text, sweep):
    for table, message in (
        ("cpus = 5000", r"error: run\.cpus must be at most what a machine has, \d+, but got 5000\."),
        (
            "gpus = 0\ncuda_graphs = true",
            r"error: run\.cuda_graphs must be false where trials use no GPU, but got true\.",
        ),
    ):
        ended = sweep("run", write(tmp_path, spec_text + f"[run]\n{table}\n"), "--results", tmp_path / "results")
        assert ended.code == 2
        assert re.fullmatch(message, ended.err.strip())
        assert rows(tmp_path / "results") == {}


def test_killed_driver_loses_nothing_and_nothing_runs_twice(tmp_path, spec_text, start, sweep):
    spec = write(tmp_path, spec_text.replace(*LONG))
    results = tmp_path / "results"
    driver = start("run", spec, "--results", results)
    wait_for(lambda: len(list(results.glob("small/trials/*.parquet"))) >= 1)
    wait_for(lambda: len(list(results.glob("small/checkpoints/*.pt"))) >= 1)
    children = ray_processes(driver.pid)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    _, alive = psutil.wait_procs([process for process in children if is_worker(process)], timeout=30)
    assert not alive  # or a worker could train beside the next run's
    for process in children:  # Ray's agents outlive it
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    ended = {path: path.read_bytes() for path in results.glob("*/trials/*.parquet")}
    stamps = {path: path.stat().st_mtime_ns for path in ended}
    assert len(rows(results)) < 4

    assert sweep("run", spec, "--results", results).code == 0
    assert_complete(results)
    assert {path: path.stat().st_mtime_ns for path in ended} == stamps
    assert len(rows(results, TEACHERS)) == 1


def test_ctrl_c_says_how_to_go_on_and_the_next_run_does(tmp_path, spec_text, start, sweep):
    spec = write(tmp_path, spec_text.replace(*LONG))
    results = tmp_path / "results"
    driver = start("run", spec, "--results", results)
    wait_for(lambda: len(list(results.glob("small/epochs/*.parquet"))) >= 1)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert err == ""
    assert out.splitlines()[-1].startswith("interrupted: what has ended is stored; run the same command again")

    half_done = {path.stem for path in results.glob("small/checkpoints/*.pt")}
    assert sweep("run", spec, "--results", results).code == 0
    assert_complete(results)
    assert half_done <= set(rows(results))


def test_dead_worker_is_replaced_and_its_trial_goes_on(tmp_path, spec_text, start):
    spec = write(tmp_path, spec_text.replace(*LONG))
    results = tmp_path / "results"
    driver = start("run", spec, "--results", results)
    wait_for(lambda: len(list(results.glob("small/checkpoints/*.pt"))) >= 1)
    next(process for process in ray_processes(driver.pid) if is_worker(process)).kill()
    out, err = driver.communicate(timeout=240)
    assert (driver.returncode, err) == (0, ""), out
    assert "small: 4 completed, of 4 trials." in out
    assert_complete(results)


def test_diverged_teacher_blocks_its_students_and_says_so(tmp_path, spec_text, sweep):
    spec = write(tmp_path, spec_text.replace("[teacher]", "[teacher]\nlr = 1e30").replace("epochs = 1", "epochs = 2"))
    results = tmp_path / "results"
    ended = sweep("run", spec, "--results", results)
    assert ended.code == 1
    assert "2 trials were not run, because the teacher resnet8 fraction 0.02 failed." in ended.out
    assert "small: 2 completed, of 4 trials." in ended.out
    assert "diverged: teacher" in ended.out
    assert "--retry-failed" in ended.out
    (teacher,) = rows(results, TEACHERS).values()
    assert (teacher["status"], teacher["error_type"]) == ("diverged", "DivergedError")
    assert "the loss term 'ce' became" in teacher["error"]
    assert {row["method"] for row in rows(results).values()} == {"vanilla"}

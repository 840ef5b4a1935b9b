"""Searches for real through Ray: to their ends, killed at any time, run again, with a larger budget, with training."""

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from kdtrain.record import EpochRecord, TrialResult
from sweeps import rows
from sweeps.ended import end
from sweeps.job import asked, maker
from sweeps.plan import expand
from sweeps.schema import Status
from sweeps.searches import searches
from sweeps.spec import parse_text
from sweeps.store import TEACHERS, Store

EPOCHS = 6
SPEC = """
[sweep]
name = "NAME"
[data]
dataset = "fashion_mini"
val_size = 100
[train]
epochs = 6
[grid]
pair = ["resnet14/resnet8", "resnet20/resnet8"]
method = ["kd"]
fraction = [0.02]
seed = [1]
[search]
sampler = "tpe"
trials = 12
[search.space.kd]
alpha = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
tau = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
[scheduler]
name = "asha"
reduction_factor = 2
[confirm]
top = 2
seed = [11]
[run]
replay = "stored"
"""


def accuracy(alpha: float, tau: float, epoch: int) -> float:
    """The last epoch is best at alpha 3 and tau 4."""
    away = math.log10(alpha / 3) ** 2 + math.log10(tau / 4) ** 2
    return 80.0 - 10 * away - 30.0 / epoch


def store_trial(text: str, trial: Any, point: dict[str, float]) -> None:
    """A trial as if it had been trained."""
    job = maker(parse_text(text), text, ())("student", trial)
    held_out = trial.data.val_size > 0
    records = [
        EpochRecord(
            stage="train", epoch=epoch, lr=0.05, terms={"ce": 1.0}, train_acc=50.0,
            val_acc=accuracy(**point, epoch=epoch) if held_out else None,
            test_acc=accuracy(**point, epoch=epoch) if not held_out or epoch == EPOCHS else None, seconds=2.0,
        )
        for epoch in range(1, EPOCHS + 1)
    ]  # fmt: skip
    job.store.write_epochs(job.id, [rows.epoch(job.id, record) for record in records])
    last = records[-1]
    result = TrialResult(
        test_top1=accuracy(**point, epoch=EPOCHS), test_top5=95.0, test_nll=1.0, test_ece=1.0, test_aurc=1.0,
        test_eaurc=1.0, class_recall=(60.0,) * 10, val_acc=last.val_acc, best_epoch=EPOCHS,
        best_acc=accuracy(**point, epoch=EPOCHS), best_split="val" if held_out else "test", n_train=118,
        student_params=1000, train_seconds=2.0 * EPOCHS,
    )  # fmt: skip
    end(
        job, Status.COMPLETED, epochs_done=EPOCHS, device="cpu", started_at=datetime(2026, 1, 1, tzinfo=UTC),
        result=result,
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Results with a sweep `stored`: a grid of 6 x 6 points of kd on two pairs, with held-out images and without."""
    folder = tmp_path_factory.mktemp("search")
    text = SPEC.replace("NAME", "stored") + f"results = '{folder}'\n"
    for study in expand(parse_text(text)).studies:
        for alpha in (0.1, 0.3, 1.0, 3.0, 10.0, 30.0):
            for tau in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0):
                point = {"alpha": alpha, "tau": tau}
                store_trial(text, study.cell.trial(point, 1)[0], point)
                store_trial(text, study.cell.confirmation(point, 11)[0], point)
    return folder


def write(results: Path, name: str, *changes: tuple[str, str]) -> Path:
    text = SPEC.replace("NAME", name)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = results / f"{name}.toml"
    file.write_text(text)
    return file


def own_rows(results: Path, name: str) -> list[dict[str, Any]]:
    return Store(str(results), name).read_trials().to_pylist()


def assert_whole(results: Path, name: str, points: int) -> None:
    """Each study has its points, none twice, and its confirmations; nothing is under way."""
    found = own_rows(results, name)
    searched = [row for row in found if row["phase"] == "search"]
    studies = Counter(row["study"] for row in searched)
    assert list(studies.values()) == [points] * 2
    assert len({row["trial_id"] for row in found}) == len(found)
    for column in ("point", "number"):
        assert len({(row["study"], row[column]) for row in searched}) == 2 * points
    assert {row["status"] for row in searched} <= {"completed", "stopped"}
    for study in studies:
        completed = [row for row in searched if row["study"] == study and row["status"] == "completed"]
        best = sorted(completed, key=lambda row: (-row["val_acc"], row["number"]))[:2]
        confirmed = {row["number"] for row in found if row["phase"] == "confirm" and row["study"] == study}
        assert confirmed >= {row["number"] for row in best}
    epochs = Counter(row["trial_id"] for row in Store(str(results), name).read_epochs().to_pylist())
    assert epochs == {row["trial_id"]: row["epochs_done"] for row in found}
    assert not Store(str(results), TEACHERS).ids("epochs") | Store(str(results), TEACHERS).ids("trials")


def left_over(results: Path, name: str) -> list[str]:
    return [path.name for kind in ("asked", "checkpoints") for path in (results / name / kind).glob("*")]


@pytest.fixture(scope="module")
def searched(results, sweep) -> Any:
    """A search that ran to its end, and what it printed."""
    return sweep("run", write(results, "searched"), "--results", results)


def test_search_with_asha_and_confirmations_ends_complete(results, searched):
    assert (searched.code, searched.err) == (0, "")
    assert_whole(results, "searched", 12)
    assert left_over(results, "searched") == []
    found = own_rows(results, "searched")
    status = Counter((row["phase"], row["status"]) for row in found)
    assert status["confirm", "completed"] == 4
    assert status["search", "completed"] + status["search", "stopped"] == 24
    assert status["search", "stopped"] >= 6  # half of those at the first rung, but for the first ones
    assert searched.out.splitlines()[-4:] == [
        f"searched: search: {status['search', 'completed']} completed, {status['search', 'stopped']} stopped.",
        "searched: confirmation: 4 completed.",
        f"table: kd-report table {results}/searched",
        f"search: kd-report search {results}/searched",
    ]


def test_rows_have_the_accuracies_of_the_sweep_that_is_replayed(results, searched):
    stored = {row["trial_id"]: row for row in own_rows(results, "stored")}
    for row in own_rows(results, "searched"):
        assert row["replayed"].partition("/")[2] == row["trial_id"]
        point = json.loads(row["point"])
        last = accuracy(**point, epoch=row["epochs_done"])
        assert row["val_acc"] == (last if row["phase"] == "search" else None)
        if row["status"] == "completed":
            assert row["test_top1"] == stored[row["trial_id"]]["test_top1"]
        else:
            assert (row["epochs_done"] < EPOCHS, row["train_seconds"]) == (True, 2.0 * row["epochs_done"])


def test_another_run_starts_nothing(results, searched, sweep):
    stamps = {path: path.stat().st_mtime_ns for path in results.glob("searched/**/*") if path.suffix != ".toml"}
    before = {path: stamp for path, stamp in stamps.items() if path.is_file() and path.parent.name != "specs"}
    again = sweep("run", results / "searched.toml", "--results", results)
    assert (again.code, again.err, again.out.splitlines()[-4:]) == (0, "", searched.out.splitlines()[-4:])
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_raised_budget_goes_on_from_what_there_is(results, searched, sweep):
    before = {row["trial_id"]: row for row in own_rows(results, "searched")}
    more = write(results, "searched", ("trials = 12", "trials = 15"))
    assert sweep("run", more, "--results", results).code == 0
    assert_whole(results, "searched", 15)
    assert left_over(results, "searched") == []
    after = {row["trial_id"]: row for row in own_rows(results, "searched")}
    assert {key: after[key] for key in before} == before
    new = [row for key, row in after.items() if key not in before and row["phase"] == "search"]
    assert sorted(row["number"] for row in new) == [12, 12, 13, 13, 14, 14]


def kill(driver: subprocess.Popen[str]) -> str:
    """End a driver with -9, with its process group and all that Ray started for it. What it said on stderr."""
    children = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(driver.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)
    _, told = driver.communicate()
    for process in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(children, timeout=30)
    return told


def until(driver: subprocess.Popen[str], condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for a moment in the life of a driver; its end is one, too."""
    limit = time.monotonic() + seconds
    while driver.poll() is None and not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.01)


def moment(store: Store, rng: random.Random, i: int) -> Callable[[], bool]:
    """When to kill: some time after the start, when some more points were asked for, or when some more have ended.

    One or two ends are enough in any case, so that there is something left for the next kill.
    """
    ended, handed, begin = store.ids("trials"), store.ids("asked"), time.monotonic()
    ends, later = rng.randrange(1, 3), rng.uniform(1, 8) if i % 3 else math.inf
    points = rng.randrange(1, 3) if i % 6 == 0 else math.inf
    return lambda: (
        time.monotonic() - begin > later
        or len(store.ids("trials") - ended) >= ends
        or len(store.ids("asked") - handed) >= points
    )


def test_killed_twenty_times_each_study_has_its_budget_and_nothing_twice(results, start, sweep):
    points, killed, rng, store = 12, 0, random.Random(0), Store(str(results), "killed")
    while killed < 20:
        spec = write(results, "killed", ("trials = 12", f"trials = {points}"), ('"tpe"', '"random"'))
        before = {row["trial_id"]: row for row in store.read_trials().to_pylist()}
        driver = start("run", spec, "--results", results)
        until(driver, moment(store, rng, killed))
        time.sleep(rng.uniform(0, 0.05))
        told = kill(driver)
        if driver.returncode == -signal.SIGKILL:
            killed += 1
        else:  # it was over: go on with a larger budget
            assert (driver.returncode, told) == (0, "")
            assert_whole(results, "killed", points)
            points += 4
        after = {row["trial_id"]: row for row in store.read_trials().to_pylist()}  # all files can be read
        store.read_epochs()
        assert {key: after[key] for key in before} == before
        assert_within(spec, store, points)
    assert sweep("run", spec, "--results", results).code == 0
    assert_whole(results, "killed", points)
    assert asked(store) == []
    assert not store.ids("checkpoints")


def assert_within(file: Path, store: Store, points: int) -> None:
    """What has ended and what is under way exceeds no budget, and each study has its own."""
    spec = parse_text(file.read_text().replace("[run]", f"[run]\nresults = '{store.results}'"))
    found = searches(spec, expand(spec), store, [job.asked for job in asked(store)])
    assert [search.budget for search in found] == [points] * 2
    for search in found:
        assert len(search.tried) + search.left == points
        assert len({each.number for each in search.tried}) == len(search.tried)


TRAINED = """
[sweep]
name = "trained"
[data]
dataset = "fashion_mini"
root = "ROOT"
val_size = 100
[train]
epochs = 4
precision = "bf16"
[teacher]
epochs = 1
fraction = 0.02
[grid]
pair = ["resnet8/resnet8"]
method = ["kd", "at"]
fraction = [0.02]
seed = [1]
[search]
sampler = "random"
trials = 4
[scheduler]
name = "asha"
grace = 2
reduction_factor = 2
[confirm]
top = 1
seed = [11]
"""


def test_half_done_points_of_a_killed_search_go_on_from_their_checkpoints(tmp_path, start, sweep):
    spec = tmp_path / "spec.toml"
    spec.write_text(TRAINED.replace("ROOT", str(tmp_path / "data")))
    store = Store(str(tmp_path), "trained")
    driver = start("run", spec, "--results", tmp_path)
    until(driver, lambda: bool(store.ids("trials")) and bool(store.ids("checkpoints") - store.ids("trials")))
    kill(driver)
    assert driver.returncode == -signal.SIGKILL
    ended = {row["trial_id"]: row for row in store.read_trials().to_pylist()}
    half_done = store.ids("checkpoints") - ended.keys()
    assert half_done == {job.id for job in asked(store)} & half_done
    before = store.read_epochs(half_done).to_pylist()

    again = sweep("run", spec, "--results", tmp_path)
    assert (again.code, again.err) == (0, ""), again.out
    found = {row["trial_id"]: row for row in store.read_trials().to_pylist()}
    phases = Counter((row["phase"], row["method"]) for row in found.values())
    assert phases == {("search", "kd"): 4, ("search", "at"): 4, ("confirm", "kd"): 1, ("confirm", "at"): 1}
    assert {key: found[key] for key in ended} == ended
    assert half_done <= found.keys()
    after = store.read_epochs(half_done).to_pylist()
    done = Counter(row["trial_id"] for row in before)
    # Epochs that were trained again would have taken another time.
    kept = [row for row in before if row["epoch"] < done[row["trial_id"]]]
    assert all(row in after for row in kept)
    assert store.ids("checkpoints") | store.ids("asked") == set()
    assert all(row["n_train"] == 120 for row in found.values() if row["phase"] == "confirm")

"""What plan and status say of time, money and the outputs of teachers."""

from collections.abc import Callable
from typing import Any

import pytest

from kdtrain.config import TrialConfig
from sweeps import show_cost
from sweeps.plan import expand
from sweeps.schema import Status
from sweeps.spec import parse_text
from sweeps.store import TEACHERS, Store

TEXT = """
[sweep]
name = "told"
[data]
dataset = "fashion_mini"
view_seed = 7
[train]
epochs = 2
[grid]
pair = ["resnet14/resnet8"]
method = ["vanilla", "kd"]
fraction = [0.02]
seed = [1, 2]
[run]
max_concurrent = 1
"""
SHARED = "outputs of resnet14 for kd (2 trials): shared, as 2 see the same views; an epoch takes 3 kB, all 5 kB"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture
def gpus(monkeypatch):
    """A machine with 2 GPUs and 16 cores."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "H100")
    monkeypatch.setattr("os.cpu_count", lambda: 16)


@pytest.fixture
def show(cli, tmp_path) -> Callable[..., list[str]]:
    """The lines of a command; `run`: further keys of [run]."""

    def show(command: str, run: str = "", text: str = TEXT) -> list[str]:
        (tmp_path / "spec.toml").write_text(f"{text}results = '{tmp_path}/results'\n{run}\n")
        ended = cli(command, tmp_path / "spec.toml")
        assert (ended.code, ended.err) == (0, "")
        return [line for line in ended.out.splitlines() if line.strip()]

    return show


@pytest.fixture
def ended(end, tmp_path) -> Callable[..., None]:
    """Leave the row of the trial of seed 1 of a method, or of the teacher."""
    results, plan = f"{tmp_path}/results", expand(parse_text(TEXT))

    def ended(method: str, seconds: float, predicted: float | None = None, **columns: Any) -> None:
        trials: list[TrialConfig] = list((plan.teachers if method == "teacher" else plan.trials).values())
        if method == "teacher":
            store = Store(results, TEACHERS)
            store.write_bytes(b"weights", "models", f"{next(iter(plan.teachers))}.safetensors")
            end(store, trials[0], "teacher", Status.COMPLETED, seconds, predicted, **columns)
        else:
            trial = next(trial for trial in trials if trial.method.name == method)
            end(Store(results, "told"), trial, "student", Status.COMPLETED, seconds, predicted, **columns)

    return ended


@pytest.fixture
def half_done(ended):
    """Of each kind of trial one has ended: a vanilla student of an hour and one of kd of two are to come."""
    ended("teacher", 1800.0)
    ended("vanilla", 3600.0)
    ended("kd", 7200.0)


TO_RUN = "2 trials and 0 teachers to run: about"


def test_plan_tells_hours_and_time(show, half_done):
    assert show("plan")[-2:] == [SHARED, f"{TO_RUN} 3 core-hours, 3 h 00 min on this machine, 1 at a time."]


def test_plan_tells_the_price(show, half_done):
    line = f"{TO_RUN} 3 core-hours, 3 h 00 min on this machine, 1 at a time, for 1.50 at 0.5 an hour."
    assert show("plan", "price = 0.5")[-1] == line


def test_plan_counts_gpus_where_trials_use_any(show, half_done):
    line = f"{TO_RUN} 1.5 GPU-hours, 3 h 00 min on this machine, 1 at a time, for 3.00 at 2 an hour."
    assert show("plan", "gpus = 0.5\nprice = 2")[-1] == line


@pytest.mark.parametrize(
    ("run", "hours", "time", "slots"),
    [
        ("", "3 GPU-hours", "2 h 00 min", 2),  # one a GPU
        ("gpus = 2", "6 GPU-hours", "3 h 00 min", 1),
        ("gpus = 0.5", "1.5 GPU-hours", "2 h 00 min", 4),
        ("gpus = 0.33333334", "1 GPU-hours", "2 h 00 min", 6),  # three a GPU, as far as digits go
        ("gpus = 0.5\nmax_concurrent = 3", "1.5 GPU-hours", "2 h 00 min", 3),
    ],
)
def test_no_more_trials_run_at_a_time_than_gpus_have_room_for(show, half_done, gpus, run, hours, time, slots):
    shown = show("plan", run, TEXT.replace("max_concurrent = 1\n", ""))[-1]
    assert shown == f"{TO_RUN} {hours}, {time} on this machine, {slots} at a time; as measured on cpu."


def test_all_cores_are_used_where_trials_use_no_gpu(show, half_done, gpus):
    shown = show("plan", "gpus = 0", TEXT.replace("max_concurrent = 1\n", ""))[-1]
    assert shown == f"{TO_RUN} 3 core-hours, 2 h 00 min on this machine, 16 at a time."


def test_plan_tells_what_is_guessed_and_what_is_not_known(show, ended):
    ended("vanilla", 3600.0)
    text = TEXT.replace("seed = [1, 2]", "seed = [1, 2]\nprecision = ['fp32', 'bf16']")
    doubts = show("plan", "", text)[-1].split("; ")[1:]
    assert doubts == [
        "3 of them are unlike any trial so far: their time is guessed from multiply-adds",  # the teacher and kd
        "4 more are not counted, as no trial says anything of them.",
    ]


def test_plan_before_any_trial_has_ended(show):
    line = "4 trials and 1 teacher to run; how long they take is known once a trial has ended."
    assert show("plan", "price = 0.5")[-2:] == [SHARED, line]


def test_plan_tells_why_outputs_are_not_shared(show):
    alone = show("plan", "", TEXT.replace("view_seed = 7\n", ""))[-2]
    assert alone == "outputs of resnet14 for kd (2 trials): live, as no other trial sees the same views"
    several = show("plan", "cache_gb = 0", TEXT.replace('"kd"', '"kd", "fitnet", "dkd"'))[-3:-1]
    assert several == [
        "outputs of resnet14 for kd, dkd (4 trials): live, as run.cache_gb is 0",
        "outputs of resnet14 for fitnet (2 trials): live, as it looks at whole maps",
    ]


def test_status_tells_how_well_it_was_predicted(show, ended):
    ended("vanilla", 60.0, predicted=60.0)
    ended("kd", 70.0, predicted=50.0, teacher_seconds=8.0, shared_seconds=2.0)
    ended("teacher", 1000.0)  # of which nothing was predicted
    # 60 for 60 and 50 for 60: the errors are 0 and a sixth, half of which is a twelfth.
    line = "Training took 2 min 00 s in 2 trials for which 1 min 50 s were predicted; the median error is 8 %."
    assert show("status")[-1] == line


def test_status_says_nothing_where_nothing_was_predicted(show, ended):
    ended("vanilla", 60.0)
    assert "predicted" not in "".join(show("status"))
    assert list(show_cost.predicted([])) == []

"""Trials that return what another sweep has stored."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest

from kdtrain.build import trial_id
from kdtrain.config import ConfigError, TrialConfig
from kdtrain.record import DivergedError, EpochRecord, TrialResult
from sweeps import replay, rows
from sweeps.ended import end
from sweeps.job import Job, maker, missing
from sweeps.plan import Plan, expand
from sweeps.replay import Replay
from sweeps.schema import METRICS, Status
from sweeps.searches import searches
from sweeps.spec import parse_text
from sweeps.store import TEACHERS, Store
from sweeps.trainable import TrialTrainable

STORED = """
[sweep]
name = "stored"
[data]
dataset = "fashion_mini"
val_size = 100
[train]
epochs = 3
[grid]
pair = ["resnet14/resnet8"]
method = ["vanilla", "kd"]
fraction = [0.02]
seed = [1]
[grid.kd]
alpha = [1.0, 4.0]
tau = [2.0, 8.0]
"""
PLAYED = STORED.replace('"stored"', '"played"').partition("[grid.kd]")[0]
PLAYED += """
[search]
trials = 2
[run]
replay = "stored"
"""


def record(epoch: int, acc: float, stage: str = "train") -> EpochRecord:
    return EpochRecord(
        stage=stage, epoch=epoch, lr=0.1 / epoch, terms={"ce": 1.0 / 3, "kd": acc / 7}, train_acc=acc + 1,
        val_acc=acc if stage == "train" else None, test_acc=None, seconds=1.5,
    )  # fmt: skip


def result(acc: float) -> TrialResult:
    return TrialResult(
        test_top1=acc + 0.1, test_top5=90.0, test_nll=1.0 / 3, test_ece=1.0, test_aurc=1.0, test_eaurc=1.0,
        class_recall=(acc,) * 10, val_acc=acc, best_epoch=3, best_acc=acc, best_split="val", n_train=118,
        student_params=1000, train_seconds=4.5,
    )  # fmt: skip


def put(
    folder: Any, trial: TrialConfig, accs: list[float], status: Status = Status.COMPLETED, pretrain: int = 0
) -> str:
    """Store a trial of the sweep `stored` with these accuracies; its id."""
    text = STORED + f"[run]\nresults = '{folder}'\n"
    job = maker(parse_text(text), text, ())("student", trial)
    records = [record(i + 1, 0.0, "pretrain") for i in range(pretrain)]
    records += [record(i + 1, acc) for i, acc in enumerate(accs)]
    job.store.write_epochs(job.id, [rows.epoch(job.id, each) for each in records])
    error = ("DivergedError", "Traceback ...\nkdtrain.record.DivergedError: the loss term 'kd' became nan in epoch 2.")
    end(
        job, status, epochs_done=len(records), device="cpu", started_at=datetime(2026, 1, 1, tzinfo=UTC),
        result=result(accs[-1]) if status == Status.COMPLETED else None,
        error=error if status in (Status.DIVERGED, Status.FAILED) else None,
    )  # fmt: skip
    return job.id


@pytest.fixture
def grid() -> dict[Any, TrialConfig]:
    """The trials of the stored sweep: vanilla, and kd by its alpha and tau."""
    plan = expand(parse_text(STORED))
    return {
        (cell.axes["alpha"], cell.axes["tau"]) if "alpha" in cell.axes else "vanilla": plan.trials[cell.trial_id]
        for cell in plan.cells
    }


def kd(grid: dict[Any, TrialConfig], alpha: float, tau: float) -> TrialConfig:
    trial = grid[1.0, 2.0]
    return trial.model_copy(update={"method": trial.method.model_copy(update={"params": {"alpha": alpha, "tau": tau}})})


def job(folder: Any, trial: TrialConfig, text: str = PLAYED) -> Job:
    text = text.replace("[run]", f"[run]\nresults = '{folder}'")
    return maker(parse_text(text), text, ())("student", trial)


def played(job: Job) -> list[dict[str, Any]]:
    """What a worker tells Tune, step by step."""
    trainable = TrialTrainable.__new__(TrialTrainable)  # without Tune's logging set-up
    trainable.setup({"job": job.model_dump_json()})
    told = [trainable.step()]
    while not told[-1]["done"]:
        told.append(trainable.step())
    return told


def own_row(folder: Any, sweep: str = "played") -> dict[str, Any]:
    (row,) = Store(str(folder), sweep).read_trials().to_pylist()
    return row


def test_the_same_trial_comes_back_bit_for_bit(tmp_path, grid):
    put(tmp_path, grid[1.0, 2.0], [99.0, 99.0, 99.0])
    key = put(tmp_path, grid[4.0, 8.0], [10.1, 20.2, 30.3])
    told = played(job(tmp_path, grid[4.0, 8.0]))
    assert [(each["epoch"], each["epochs"], each["trained"], each["acc"]) for each in told] == [
        (1, 3, 1, 10.1), (2, 3, 2, 20.2), (3, 3, 3, 30.3)
    ]  # fmt: skip
    stored, own = (Store(str(tmp_path), name) for name in ("stored", "played"))
    assert own.read_epochs().equals(stored.read_epochs([key]))
    (before,), after = stored.read_trials([key]).to_pylist(), own_row(tmp_path)
    same = [field.name for field in METRICS] + ["trial_id", "params", "status", "epochs_done", "seed"]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert (after["replayed"], after["sweep"]) == (f"stored/{key}", "played")


def test_nothing_is_trained_or_kept(tmp_path, grid, monkeypatch):
    monkeypatch.setattr("sweeps.trainable.Training.__init__", lambda *_: pytest.fail("trained"))
    put(tmp_path, grid["vanilla"], [10.0, 20.0, 30.0])
    text = PLAYED.replace("[run]", "[run]\nkeep_weights = true")
    assert played(job(tmp_path, grid["vanilla"], text))[-1]["status"] == "completed"
    own = Store(str(tmp_path), "played")
    assert own.ids("checkpoints") | own.ids("models") == set()


@pytest.mark.parametrize(
    ("alpha", "tau", "nearest"),
    [
        (1.9, 2.0, (1.0, 2.0)),  # the middle of 1 and 4 in the logarithm is 2
        (2.1, 2.0, (4.0, 2.0)),
        (1.0, 3.9, (1.0, 2.0)),  # that of 2 and 8 is 4
        (1.0, 4.1, (1.0, 8.0)),
        (0.01, 100.0, (1.0, 8.0)),
    ],
)
def test_nearest_parameters_in_the_logarithm(tmp_path, grid, alpha, tau, nearest):
    keys = {point: put(tmp_path, trial, [1.0, 2.0, 3.0]) for point, trial in grid.items()}
    wanted = kd(grid, alpha, tau)
    found = Replay(wanted, str(tmp_path), "stored")
    assert found.source == f"stored/{keys[nearest]}"
    assert found.row["trial_id"] != trial_id(wanted)


def test_row_has_its_own_parameters_and_names_its_source(tmp_path, grid):
    key = put(tmp_path, grid[1.0, 2.0], [10.0, 20.0, 30.0])
    wanted = kd(grid, 1.1, 2.2)
    played(job(tmp_path, wanted))
    row = own_row(tmp_path)
    assert (row["trial_id"], row["replayed"], row["val_acc"]) == (trial_id(wanted), f"stored/{key}", 30.0)
    assert '"alpha":1.1' in row["params"]


def test_of_trials_as_near_the_one_with_the_first_id_is_taken(tmp_path, grid):
    keys = [put(tmp_path, grid[alpha, 2.0], [1.0, 2.0, 3.0]) for alpha in (1.0, 4.0)]
    assert Replay(kd(grid, 2.0, 2.0), str(tmp_path), "stored").row["trial_id"] == min(keys)


def test_diverged_trial_diverges_again_in_the_same_epoch(tmp_path, grid):
    key = put(tmp_path, grid[1.0, 2.0], [10.0], Status.DIVERGED)
    told = played(job(tmp_path, grid[1.0, 2.0]))
    assert [each["epoch"] for each in told] == [1, 1]
    assert told[-1]["status"] == "diverged"
    row = own_row(tmp_path)
    assert (row["status"], row["epochs_done"], row["replayed"], row["error_type"]) == (
        "diverged", 1, f"stored/{key}", "DivergedError"
    )  # fmt: skip
    assert row["error"].endswith("kdtrain.record.DivergedError: the loss term 'kd' became nan in epoch 2.\n")


def test_diverged_trial_with_as_many_epochs_in_both_stages_as_the_recipe_has_is_not_complete(tmp_path, grid):
    put(tmp_path, grid[1.0, 2.0], [10.0, 20.0], Status.DIVERGED, pretrain=1)
    found = Replay(grid[1.0, 2.0], str(tmp_path), "stored")
    for _ in range(3):
        assert not found.done
        found.run_epoch()
    with pytest.raises(DivergedError, match="the loss term 'kd' became nan"):
        found.run_epoch()


def test_stage_before_the_epochs_is_replayed_too(tmp_path, grid):
    put(tmp_path, grid[1.0, 2.0], [10.0, 20.0, 30.0], pretrain=2)
    told = played(job(tmp_path, grid[1.0, 2.0]))
    assert [(each["epoch"], each["epochs"], each["trained"], each["acc"]) for each in told] == [
        (1, 5, 0, None), (2, 5, 0, None), (3, 5, 1, 10.0), (4, 5, 2, 20.0), (5, 5, 3, 30.0)
    ]  # fmt: skip


@pytest.mark.parametrize("status", [Status.STOPPED, Status.FAILED])
def test_trials_that_did_not_end_by_themselves_stand_for_none(tmp_path, grid, status):
    put(tmp_path, grid[1.0, 2.0], [10.0], status)
    other = put(tmp_path, grid[4.0, 2.0], [10.0, 20.0, 30.0])
    assert Replay(grid[1.0, 2.0], str(tmp_path), "stored").row["trial_id"] == other


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"student": "resnet14"}, {"train": {"epochs": 4}}, {"data": {"val_size": 0}}]
)
def test_all_but_the_parameters_must_agree(tmp_path, grid, change):
    put(tmp_path, grid["vanilla"], [1.0, 2.0, 3.0])
    trial = grid["vanilla"]
    update = {
        key: getattr(trial, key).model_copy(update=value) if isinstance(value, dict) else value
        for key, value in change.items()
    }
    with pytest.raises(ConfigError, match="'stored' has no trial of vanilla with this pair, data, recipe and seed"):
        Replay(trial.model_copy(update=update), str(tmp_path), "stored")


def test_trial_without_any_like_it_fails_and_says_why(tmp_path, grid):
    put(tmp_path, grid["vanilla"], [10.0, 20.0, 30.0])
    assert [each["status"] for each in played(job(tmp_path, grid[1.0, 2.0]))] == ["failed"]
    row = own_row(tmp_path)
    assert (row["status"], row["error_type"], row["epochs_done"], row["replayed"]) == ("failed", "ConfigError", 0, None)
    assert row["error"].endswith("run.replay: 'stored' has no trial of kd with this pair, data, recipe and seed.\n")


def test_stored_trial_whose_epochs_are_gone_fails(tmp_path, grid):
    key = put(tmp_path, grid["vanilla"], [10.0, 20.0, 30.0])
    Store(str(tmp_path), "stored").delete("epochs", f"{key}.parquet")
    with pytest.raises(RuntimeError, match=f"of the stored trial stored/{key} epochs are missing after the 0th"):
        Replay(grid["vanilla"], str(tmp_path), "stored").run_epoch()


def test_replay_of_a_replay_returns_the_same_epochs_and_names_the_nearer_source(tmp_path, grid):
    put(tmp_path, grid[1.0, 2.0], [10.1, 20.2, 30.3])
    wanted = kd(grid, 1.1, 2.2)
    played(job(tmp_path, wanted))
    again = PLAYED.replace('"stored"', '"first"').replace('"played"', '"second"').replace('"first"', '"played"')
    played(job(tmp_path, wanted, again))
    own = [Store(str(tmp_path), name).read_epochs() for name in ("played", "second")]
    assert own[0].equals(own[1])
    assert own_row(tmp_path, "second")["replayed"] == f"played/{own_row(tmp_path, 'played')['trial_id']}"


def test_no_teacher_is_planned_where_nothing_is_trained(tmp_path, grid):
    text = PLAYED.replace("[run]", f"[run]\nresults = '{tmp_path}'")
    spec = parse_text(text)
    plan = expand(spec)
    found = searches(spec, plan, Store(str(tmp_path), "played"), [])
    todo = missing(spec, text, plan, retry_failed=False, found=found)
    assert (todo.jobs, todo.blocked, todo.replays) == ([], [], True)
    assert todo.trials == 3  # vanilla has nothing to search
    # Nor does a teacher that failed elsewhere matter.
    for trial in plan.teachers.values():
        teacher = todo.maker("teacher", trial)
        end(teacher, Status.FAILED, epochs_done=0, device="cpu", started_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert Store(str(tmp_path), TEACHERS).ids("trials")
    assert missing(spec, text, plan, retry_failed=False, found=found).trials == 3


def check(folder: Any, text: str, plan: Plan | None = None) -> None:
    text = text if "[run]" in text else text + "[run]\n"
    spec = parse_text(text.replace("[run]", f"[run]\nresults = '{folder}'"))
    replay.check(spec, plan or Plan([], {}, {}, {}, []), Store(str(folder), spec.sweep.name))


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.STOPPED, Status.DIVERGED, Status.FAILED])
def test_real_and_replayed_results_do_not_mix(tmp_path, grid, status):
    put(tmp_path, grid[1.0, 2.0], [10.0, 20.0, 30.0], status)
    check(tmp_path, STORED)
    with pytest.raises(ConfigError, match=r"run\.replay: results of 'stored' were trained; give this one another"):
        check(tmp_path, PLAYED.replace('"played"', '"stored"'))
    put(tmp_path, grid["vanilla"], [10.0, 20.0, 30.0])
    check(tmp_path, PLAYED)  # nothing there yet
    played(job(tmp_path, grid["vanilla"]))
    check(tmp_path, PLAYED)
    with pytest.raises(ConfigError, match="results of 'played' were replayed from stored"):
        check(tmp_path, PLAYED.replace('replay = "stored"', ""))


def test_trial_that_found_none_like_it_is_neither_real_nor_replayed(tmp_path, grid):
    put(tmp_path, grid["vanilla"], [10.0, 20.0, 30.0])
    played(job(tmp_path, grid[1.0, 2.0]))
    row = own_row(tmp_path)
    assert (row["status"], row["epochs_done"], row["replayed"]) == ("failed", 0, None)
    check(tmp_path, PLAYED)
    check(tmp_path, PLAYED.replace('replay = "stored"', ""))
    # One that had begun would be real.
    Store(str(tmp_path), "played").write_trial({**row, "epochs_done": 1})
    with pytest.raises(ConfigError, match="results of 'played' were trained"):
        check(tmp_path, PLAYED)


def test_trials_that_the_sweep_to_replay_cannot_stand_for_are_refused_before_anything_starts(tmp_path, grid):
    put(tmp_path, grid["vanilla"], [10.0, 20.0, 30.0])
    with pytest.raises(ConfigError, match=r"run\.replay: 'stored' has no trial of kd with this pair, data, recipe and"):
        check(tmp_path, PLAYED, expand(parse_text(PLAYED)))


def test_results_of_two_replayed_sweeps_do_not_mix(tmp_path, grid):
    put(tmp_path, grid["vanilla"], [10.0, 20.0, 30.0])
    played(job(tmp_path, grid["vanilla"]))
    with pytest.raises(ConfigError, match="results of 'played' were replayed from stored; give this one another"):
        check(tmp_path, PLAYED.replace('"stored"', '"other"'))


def test_sweep_to_replay_must_have_trials(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.replay must name a sweep with trials in .*, but got 'stored'"):
        check(tmp_path, PLAYED)


def test_command_line_refuses_a_sweep_to_replay_that_is_not_there(tmp_path, cli):
    file = tmp_path / "spec.toml"
    file.write_text(PLAYED)
    ended = cli("run", file, "--results", tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: run.replay must name a sweep with trials in {tmp_path}, but got 'stored'.")


def test_records_and_results_have_the_fields_of_their_rows():
    assert set(asdict(record(1, 1.0))) == set(Store("r", "s").read_epochs().column_names) - {"trial_id"}
    assert set(asdict(result(1.0))) == {field.name for field in METRICS}

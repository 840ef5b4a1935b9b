"""What a sweep still has to do: teachers, their assistants and the trials that need them."""

from datetime import UTC, datetime

import pytest

from sweeps.cost import Cost
from sweeps.ended import end as write_end
from sweeps.job import Job, Missing, describe_teacher, missing
from sweeps.plan import Plan, expand
from sweeps.schema import Status
from sweeps.spec import parse_text
from sweeps.store import TEACHERS, Store
from sweeps.tables import Spec

TEXT = """
[sweep]
name = "chain"
[data]
dataset = "fashion_mini"
[train]
epochs = 2
[grid]
pair = ["resnet32/resnet8"]
method = ["vanilla", "kd", { name = "dgkd", assistants = ["resnet20", "resnet14"] }]
seed = [1]
"""


@pytest.fixture
def spec(tmp_path) -> Spec:
    return parse_text(TEXT.replace("[grid]", f"[run]\nresults = '{tmp_path}'\n[grid]"))


@pytest.fixture
def plan(spec) -> Plan:
    return expand(spec)


@pytest.fixture
def own(tmp_path) -> Store:
    return Store(str(tmp_path), "chain")


@pytest.fixture
def ended(tmp_path, plan, end):
    """Say how the training of a teacher or an assistant ended; one that completed leaves its weights."""
    store = Store(str(tmp_path), TEACHERS)

    def ended(student: str, status: Status, weights: bool = True) -> None:
        ((key, trial),) = ((key, trial) for key, trial in plan.teachers.items() if trial.student == student)
        end(store, trial, "teacher", status)
        if status == Status.COMPLETED and weights:
            store.write_bytes(b"weights", "models", f"{key}.safetensors")

    return ended


def names(todo: Missing) -> list[str]:
    """The jobs by the network of a teacher and the method of a student."""
    return [job.trial.student if job.role == "teacher" else job.trial.method.name for job in todo.jobs]


def test_each_teacher_comes_before_those_that_learn_from_it(spec, plan):
    todo = missing(spec, TEXT, plan, retry_failed=False)
    assert names(todo) == ["resnet32", "resnet20", "resnet14", "vanilla", "kd", "dgkd"]
    teacher, first, second, _, kd, dgkd = todo.jobs
    assert [job.requirements for job in todo.jobs] == [
        set(), {teacher.id}, {teacher.id, first.id}, set(), {teacher.id}, {teacher.id, first.id, second.id}
    ]  # fmt: skip
    assert [job.store.sweep for job in (first, kd, dgkd)] == [TEACHERS, "chain", "chain"]


def test_trained_assistants_are_not_trained_again(spec, plan, ended):
    ended("resnet32", Status.COMPLETED)
    ended("resnet20", Status.COMPLETED)
    todo = missing(spec, TEXT, plan, retry_failed=False)
    assert names(todo) == ["resnet14", "vanilla", "kd", "dgkd"]
    assert {plan.teachers[key].student for key in todo.trained} == {"resnet32", "resnet20"}


def test_teacher_that_only_an_absent_assistant_needs_is_trained(spec, plan, own, end):
    for trial in plan.trials.values():
        if trial.method.name == "kd":
            end(own, trial, "student", Status.COMPLETED)
    assert names(missing(spec, TEXT, plan, retry_failed=False)) == [
        "resnet32",
        "resnet20",
        "resnet14",
        "vanilla",
        "dgkd",
    ]


def test_nothing_is_trained_for_trials_that_have_ended(spec, plan, own, end):
    for trial in plan.trials.values():
        if trial.method.name != "vanilla":
            end(own, trial, "student", Status.COMPLETED)
    assert names(missing(spec, TEXT, plan, retry_failed=False)) == ["vanilla"]


def test_assistant_whose_weights_are_gone_is_trained_again(spec, plan, ended):
    for student in ("resnet32", "resnet14"):
        ended(student, Status.COMPLETED)
    ended("resnet20", Status.COMPLETED, weights=False)
    assert names(missing(spec, TEXT, plan, retry_failed=False)) == ["resnet20", "vanilla", "kd", "dgkd"]


@pytest.mark.parametrize("status", [Status.FAILED, Status.DIVERGED])
def test_failed_assistant_blocks_those_after_it_and_the_students(spec, plan, ended, status):
    ended("resnet32", Status.COMPLETED)
    ended("resnet20", status)
    todo = missing(spec, TEXT, plan, retry_failed=False)
    assert names(todo) == ["vanilla", "kd"]
    assert [(other.job.trial.student, other.by) for other in todo.blocked] == [
        ("resnet14", "assistant resnet20 of resnet32 fraction 1"),
        ("resnet8", "assistant resnet20 of resnet32 fraction 1"),
    ]
    again = missing(spec, TEXT, plan, retry_failed=True)
    assert (names(again), again.blocked) == (["resnet20", "resnet14", "vanilla", "kd", "dgkd"], [])


def test_failed_teacher_blocks_all_that_need_it_though_an_assistant_is_trained(spec, plan, ended):
    ended("resnet32", Status.FAILED)
    ended("resnet20", Status.COMPLETED)
    todo = missing(spec, TEXT, plan, retry_failed=False)
    assert names(todo) == ["vanilla"]
    assert {other.by for other in todo.blocked} == {"teacher resnet32"}
    assert len(todo.blocked) == 3  # resnet14, kd and dgkd


def test_command_line_names_who_failed_and_counts_the_trials(cli, plan, own, end, ended, tmp_path):
    (tmp_path / "spec.toml").write_text(TEXT)
    ended("resnet32", Status.COMPLETED)
    ended("resnet20", Status.FAILED)
    for trial in plan.trials.values():
        if trial.method.name != "dgkd":
            end(own, trial, "student", Status.COMPLETED)
    told = cli("run", tmp_path / "spec.toml", "--results", tmp_path)
    assert told.code == 1
    assert "1 trial was not run, because the assistant resnet20 of resnet32 fraction 1 failed.\n" in told.out
    assert "failed: teacher " in told.out
    shown = cli("plan", tmp_path / "spec.toml", "--results", tmp_path)
    lines = [line.partition(" (")[0] + line.partition(")")[2] for line in shown.out.splitlines()]
    assert "teacher resnet32: trained" in lines
    assert "assistant resnet20 of resnet32 fraction 1: not needed, or failed" in lines


def test_teacher_that_is_not_vanilla_is_described_by_its_method():
    text = TEXT.replace("[grid]", "[teacher]\nmethod = { name = 'ls', epsilon = 0.2 }\n[grid]")
    teacher, *_ = expand(parse_text(text)).teachers.values()
    assert describe_teacher(teacher) == "teacher resnet32 by ls epsilon=0.2"


KD = {
    "dataset": "fashion_mini", "fraction": 1.0, "val_size": 0, "image_size": None, "student": "resnet8",
    "teacher": "resnet32", "method": "kd", "precision": "fp32", "cpus": 1, "device": "cpu", "n_train": 6000,
    "epochs": 10, "train_seconds": 100.0, "teacher_seconds": 8.0, "shared_seconds": 2.0, "teacher_epochs": 10,
    "assistant_ids": None, "source_id": None, "replayed": None, "status": "completed",
}  # fmt: skip


class TestJob:
    """What a job says of sharing and of its time."""

    TEXT = TEXT.replace('"vanilla", "kd", ', '"vanilla", "fitnet", "kd", "dkd", ')

    def jobs(self, tmp_path, run: str = "") -> dict[str, Job]:
        text = self.TEXT.replace("[grid]", f"[run]\nresults = '{tmp_path}'\n{run}\n[grid]")
        spec = parse_text(text)
        todo = missing(spec, text, expand(spec), retry_failed=False, cost=Cost([KD]))
        return {job.trial.method.name: job for job in todo.jobs if job.role == "student"}

    def test_where_says_what_is_shared(self, tmp_path):
        # kd, dkd and dgkd see the same views.
        shared = {name: job.where.shared for name, job in self.jobs(tmp_path).items()}
        assert shared == {"vanilla": (), "fitnet": (), **dict.fromkeys(("kd", "dkd", "dgkd"), ("logits",))}
        assert {job.where.shared for job in self.jobs(tmp_path, "cache_gb = 0").values()} == {()}

    def test_predicted_is_what_the_trial_itself_takes_and_its_row_says_so(self, tmp_path):
        job = self.jobs(tmp_path)["kd"]
        assert job.predicted_seconds == pytest.approx(18.0)  # (100 - 8 - 2) / 10 in each of 2 epochs
        write_end(job, Status.FAILED, epochs_done=0, device="cpu", started_at=datetime.now(UTC), error=("E", "E: no"))
        (row,) = job.store.read_trials().to_pylist()
        assert row["predicted_seconds"] == job.predicted_seconds

    def test_nothing_is_predicted_of_a_replay(self, tmp_path):
        assert {job.predicted_seconds for job in self.jobs(tmp_path, "replay = 'other'").values()} == {None}

"""What a sweep still has to do: its plan minus what the store has."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from kdtrain.config import Frozen, MethodRef, TrialConfig, Where
from sweeps import rows
from sweeps.plan import Plan, teachers_of
from sweeps.schema import Status
from sweeps.spec import Spec, absolute, sha256
from sweeps.spec import where as spec_where
from sweeps.store import TEACHERS, Store


def describe(trial: TrialConfig) -> str:
    """A trial in a few words: method with the parameters that are not its defaults, networks, fraction, seed."""
    teacher = f"{trial.teacher.model}/" if trial.teacher else ""
    return f"{_method(trial.method)} {teacher}{trial.student} fraction {trial.data.fraction:g} seed {trial.seed}"


def describe_teacher(trial: TrialConfig) -> str:
    """A teacher's trial in a few words; one that itself has a teacher is an assistant."""
    if trial.teacher is not None:
        return f"assistant {trial.student} of {trial.teacher.model} fraction {trial.data.fraction:g}"
    how = "" if trial.method.name == "vanilla" else f" by {_method(trial.method)}"
    images = "" if trial.data.fraction == 1 else f" fraction {trial.data.fraction:g}"
    return f"teacher {trial.student}{how}{images}"


def _method(ref: MethodRef) -> str:
    return " ".join([ref.name, *(f"{key}={value}" for key, value in ref.params.items())])


class Job(Frozen):
    """One trial as it is sent to a worker."""

    id: str
    role: str  # "student" or "teacher"
    trial: TrialConfig
    where: Where
    results: str
    source: dict[str, str]  # sweep, spec_sha256, git_commit

    @property
    def teacher_ids(self) -> frozenset[str]:
        """The ids of the teacher and the assistants that must be trained before."""
        return frozenset(ref.id for ref in teachers_of(self.trial))

    @property
    def label(self) -> str:
        """The trial in a few words."""
        return describe(self.trial) if self.role == "student" else describe_teacher(self.trial)

    @property
    def store(self) -> Store:
        """Where the rows of this trial go."""
        return Store(self.results, TEACHERS if self.role == "teacher" else self.source["sweep"])


@dataclass(frozen=True)
class Blocked:
    """A job that cannot be run, because a teacher that it needs, or that its assistants need, failed."""

    job: Job
    by: str  # the one that failed, in a few words


@dataclass(frozen=True)
class Missing:
    """What a sweep still has to do."""

    jobs: list[Job]  # teachers, each before those that learn from it, then students
    trained: set[str]  # ids of the plan's teachers that are trained
    blocked: list[Blocked]  # by teachers that failed in an earlier run
    done: int  # trials of the plan that have ended


def blocked_by(failed: Mapping[str, str], jobs: Iterable[Job]) -> list[Blocked]:
    """The jobs that need a failed teacher, themselves or through an assistant. `failed`: ids to a few words."""
    lost, left, blocked = dict(failed), list(jobs), list[Blocked]()
    while found := [job for job in left if job.teacher_ids & lost.keys()]:
        blocked += [Blocked(job, next(by for key, by in lost.items() if key in job.teacher_ids)) for job in found]
        lost |= {other.job.id: other.by for other in blocked}
        left = [job for job in left if job.id not in lost]
    return blocked


def missing(spec: Spec, text: str, plan: Plan, retry_failed: bool) -> Missing:
    """Subtract what the store has from the plan. With `retry_failed`, failed and diverged trials count as missing."""
    trials, teachers = Store(spec.run.results, spec.sweep.name), Store(spec.run.results, TEACHERS)
    ended, ended_teachers = (
        {
            row["trial_id"]: row["status"]
            for row in store.read_trials(planned).select(["trial_id", "status"]).to_pylist()
            if not (retry_failed and row["status"] in (Status.FAILED, Status.DIVERGED))
        }
        for store, planned in ((trials, plan.trials), (teachers, plan.teachers))
    )
    # A teacher whose weights are gone is trained again.
    weights = teachers.ids("models")
    over = {key for key, status in ended_teachers.items() if status != Status.COMPLETED or key in weights}
    trained = {key for key in over if ended_teachers[key] == Status.COMPLETED}
    failed = {key: describe_teacher(plan.teachers[key]) for key in over - trained}
    todo = {key: trial for key, trial in plan.trials.items() if key not in ended}
    source = {"sweep": spec.sweep.name, "spec_sha256": sha256(text), "git_commit": rows.git_commit()}
    # The driver has fetched the images.
    where, results = spec_where(spec).model_copy(update={"download": False}), absolute(spec.run.results)

    def job(role: str, key: str, trial: TrialConfig) -> Job:
        return Job(id=key, role=role, trial=trial, where=where, results=results, source=source)

    absent = _absent(todo.values(), plan, over)
    jobs = [job("teacher", key, plan.teachers[key]) for key in absent]
    jobs += [job("student", key, trial) for key, trial in todo.items()]
    blocked = blocked_by(failed, jobs)
    out = {other.job.id for other in blocked}
    return Missing([other for other in jobs if other.id not in out], trained, blocked, done=len(ended))


def _absent(trials: Iterable[TrialConfig], plan: Plan, over: Collection[str]) -> list[str]:
    """The ids of the teachers that these trials need and that are not over, each after those that it needs itself."""
    found: dict[str, None] = {}

    def visit(trial: TrialConfig) -> None:
        for ref in teachers_of(trial):
            if ref.id not in over and ref.id not in found:
                visit(plan.teachers[ref.id])
                found[ref.id] = None

    for trial in trials:
        visit(trial)
    return list(found)

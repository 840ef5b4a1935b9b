"""What a sweep still has to do: its plan minus what the store has."""

from dataclasses import dataclass
from pathlib import Path

from kdtrain.config import Frozen, TrialConfig, Where
from sweeps import rows
from sweeps.plan import Plan
from sweeps.schema import Status
from sweeps.spec import Spec, sha256
from sweeps.store import TEACHERS, Store


def describe(trial: TrialConfig) -> str:
    """A trial in a few words: method with the parameters that are not its defaults, networks, fraction, seed."""
    method = " ".join([trial.method.name, *(f"{key}={value}" for key, value in trial.method.params.items())])
    teacher = f"{trial.teacher.model}/" if trial.teacher else ""
    return f"{method} {teacher}{trial.student} fraction {trial.data.fraction:g} seed {trial.seed}"


class Job(Frozen):
    """One trial as it is sent to a worker."""

    id: str
    role: str  # "student" or "teacher"
    trial: TrialConfig
    where: Where
    results: str
    source: dict[str, str]  # sweep, spec_sha256, git_commit

    @property
    def teacher_id(self) -> str | None:
        """The id of the teacher that must be trained before; None where there is none."""
        return self.trial.teacher.id if self.trial.teacher else None

    @property
    def label(self) -> str:
        """The trial in a few words."""
        return describe(self.trial) if self.role == "student" else f"teacher {self.trial.student}"

    @property
    def store(self) -> Store:
        """Where the rows of this trial go."""
        return Store(self.results, TEACHERS if self.role == "teacher" else self.source["sweep"])


@dataclass(frozen=True)
class Missing:
    """What a sweep still has to do."""

    jobs: list[Job]  # teachers, then students
    trained: set[str]  # ids of the plan's teachers that are trained
    blocked: list[Job]  # students whose teacher failed in an earlier run
    done: int  # trials of the plan that have ended


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
    todo = {key: trial for key, trial in plan.trials.items() if key not in ended}
    needed = {trial.teacher.id for trial in todo.values() if trial.teacher}
    source = {"sweep": spec.sweep.name, "spec_sha256": sha256(text), "git_commit": rows.git_commit()}
    device = "cpu" if spec.run.gpus == 0 else "auto"
    where = Where(data_root=_absolute(spec.data.root), cpus=spec.run.cpus, device=device)
    results = _absolute(spec.run.results)

    def job(role: str, key: str, trial: TrialConfig) -> Job:
        return Job(id=key, role=role, trial=trial, where=where, results=results, source=source)

    absent = [key for key in plan.teachers if key in needed and key not in over]
    jobs = [job("teacher", key, plan.teachers[key]) for key in absent]
    coming = {None, *trained, *absent}
    students = [job("student", key, trial) for key, trial in todo.items()]
    blocked = [other for other in students if other.teacher_id not in coming]
    jobs += [other for other in students if other.teacher_id in coming]
    return Missing(jobs=jobs, trained=trained, blocked=blocked, done=len(ended))


def _absolute(path: str) -> str:
    """A path that means the same in every worker; URIs stay as they are."""
    return path if "://" in path else str(Path(path).expanduser().absolute())

"""What a sweep still has to do: its plan minus what the store has."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import Field, ValidationError

from kdtrain.build import trial_id
from kdtrain.config import Frozen, MethodRef, TrialConfig, Where
from sweeps import rows
from sweeps.cost import NOTHING_KNOWN, Cost
from sweeps.plan import Plan, requirements
from sweeps.published import Published, is_measured
from sweeps.schema import Status
from sweeps.searches import Search
from sweeps.sharing import ALONE, Sharing, share
from sweeps.spec import absolute, sha256
from sweeps.spec import where as spec_where
from sweeps.store import TEACHERS, Store
from sweeps.tables import Spec


def describe(trial: TrialConfig) -> str:
    """A trial in a few words: method with the parameters that are not its defaults, networks, fraction, seed."""
    teacher = f"{trial.teacher.model}/" if trial.teacher else ""
    if trial.probe is not None:
        how = f"{_method(trial.method)} {teacher}{trial.student} seed {trial.seed}"
        return f"probe of {how} on {trial.data.dataset}"
    return f"{_method(trial.method)} {teacher}{trial.student} fraction {trial.data.fraction:g} seed {trial.seed}"


def describe_teacher(trial: TrialConfig) -> str:
    """A teacher's trial in a few words; one that itself has a teacher is an assistant."""
    if trial.teacher is not None:
        return f"assistant {trial.student} of {trial.teacher.model} fraction {trial.data.fraction:g}"
    how = "" if trial.method.name == "vanilla" else f" by {_method(trial.method)}"
    images = "" if trial.data.fraction == 1 else f" fraction {trial.data.fraction:g}"
    held_out = f" without {trial.data.val_size} held-out images" if trial.data.val_size else ""
    return f"teacher {trial.student}{how}{images}{held_out}"


def _method(ref: MethodRef) -> str:
    return " ".join([ref.name, *(f"{key}={value}" for key, value in ref.params.items())])


class Job(Frozen):
    """One trial as it is sent to a worker."""

    id: str
    role: str  # "student", "teacher" or "probe"
    trial: TrialConfig
    where: Where
    results: str
    source: dict[str, str]  # sweep, spec_sha256, git_commit
    keeps_weights: bool  # whether the weights of its student are stored
    searched: dict[str, Any] = Field(
        default_factory=dict
    )  # the search columns of its row; empty of a trial that a grid planned
    replay: str | None = None  # the sweep whose stored epochs are returned instead of training
    predicted_seconds: float | None = None  # of training, without those spent on outputs of teachers for whole epochs

    @property
    def key(self) -> str:
        """What tells it from all other jobs of a run: a student may be the same trial as a teacher."""
        return f"{self.role} {self.id}"

    @property
    def requirements(self) -> frozenset[str]:
        """The ids of what must be trained before."""
        return frozenset() if self.replay else frozenset(requirements(self.trial))

    @property
    def label(self) -> str:
        """The trial in a few words."""
        if self.role == "teacher":
            return describe_teacher(self.trial)
        return describe(self.trial) if self.searched.get("phase") != "confirm" else f"confirm {describe(self.trial)}"

    @property
    def is_search(self) -> bool:
        """Whether it is a point of a search, not yet a confirmation."""
        return self.searched.get("phase") == "search"

    @property
    def asked(self) -> dict[str, Any]:
        """A point of a search under way as a row without a status."""
        return {**self.searched, "trial_id": self.id, "seed": self.trial.seed, "status": None}

    @property
    def store(self) -> Store:
        """Where the rows of this trial go."""
        return Store(self.results, TEACHERS if self.role == "teacher" else self.source["sweep"])


@dataclass(frozen=True)
class Blocked:
    """A job that cannot be run, because a trial that it needs, or that one of those needs, failed."""

    job: Job
    by: str  # the one that failed, in a few words
    trials: int = 1  # of a search: all that it would still have run


ASKED = "asked"  # folder of the jobs of points under way: a search that was killed goes on with them
Maker = Callable[..., Job]  # (role, trial, searched={}) -> its job


@dataclass(frozen=True)
class Missing:
    """What a sweep still has to do."""

    jobs: list[Job]  # teachers, each before those that learn from it, then students, then probes
    published: list[Published]  # teachers with weights from elsewhere that are not measured yet
    trained: set[str]  # ids of teachers, and of students that are probed, whose weights are stored
    blocked: list[Blocked]  # by trials that failed in an earlier run
    done: int  # trials of the plan that have ended, points of searches and confirmations among them
    searches: list[Search]  # the studies of the plan; jobs of points and confirmations are made from them
    maker: Maker
    retry_failed: bool
    replays: bool  # whether stored epochs are returned and nothing is trained, so that nothing is needed before
    sharing: Sharing = ALONE  # of the outputs of teachers
    cost: Cost = NOTHING_KNOWN

    @property
    def trials(self) -> int:
        """How many trials there are to run, at most."""
        return len(self.jobs) + sum(search.trials_left for search in self.searches)


def blocked_by(failed: Mapping[str, str], jobs: Iterable[Job]) -> list[Blocked]:
    """The jobs that need a failed trial, themselves or through another. `failed`: ids to a few words."""
    lost, left, blocked = dict(failed), list(jobs), list[Blocked]()
    while found := [job for job in left if job.requirements & lost.keys()]:
        blocked += [Blocked(job, next(by for key, by in lost.items() if key in job.requirements)) for job in found]
        lost |= {other.job.id: other.by for other in blocked}
        left = [job for job in left if job.id not in lost]
    return blocked


def asked(store: Store) -> list[Job]:
    """The trials of searches that were handed out and have no row yet. Those of another version are left out."""
    found = []
    for key in store.ids(ASKED) - store.ids("trials"):
        data = store.read_bytes(ASKED, f"{key}.json")
        with suppress(ValidationError):
            found += [] if data is None else [Job.model_validate_json(data)]  # None: it has ended meanwhile
    return found


def tidy(store: Store) -> None:
    """Remove what is kept of trials under way where they have ended: their run was killed before it could."""
    kept = {folder: store.ids(folder) for folder in ("checkpoints", ASKED)}
    ended = store.statuses(kept["checkpoints"] | kept[ASKED])
    # One that failed or diverged may be under way again.
    over = {key for key, status in ended.items() if status in (Status.COMPLETED, Status.STOPPED)}
    for folder, suffix in (("checkpoints", "pt"), (ASKED, "json")):
        for key in kept[folder] & over:
            store.delete(folder, f"{key}.{suffix}")


def missing(
    spec: Spec, text: str, plan: Plan, retry_failed: bool, found: Sequence[Search] = (), cost: Cost = NOTHING_KNOWN
) -> Missing:
    """Subtract what the store has from the plan. With `retry_failed`, failed and diverged trials count as missing.

    found: the searches of the plan, if it has any. cost: what is known of the trials' cost.
    """
    sharing = share(spec, plan, found, cost)
    own, teachers = Store(spec.run.results, spec.sweep.name), Store(spec.run.results, TEACHERS)
    ended, ended_teachers = _ended(own, plan.trials, retry_failed), _ended(teachers, plan.teachers, retry_failed)
    # A network whose weights are gone is trained again where others need it. Where a student is the same trial as a
    # teacher, the teacher's weights count: its own may come later.
    taught, weights = teachers.ids("models"), own.ids("models")
    probed = {trial.probe.source for trial in plan.trials.values() if trial.probe is not None} - plan.teachers.keys()
    over = {key for key, status in ended_teachers.items() if status != Status.COMPLETED or key in taught}
    todo = {key: trial for key, trial in plan.trials.items() if key not in ended}
    wanted = {trial.probe.source for trial in todo.values() if trial.probe is not None} & probed
    todo |= {key: plan.trials[key] for key in wanted & ended.keys() - weights if ended[key] == Status.COMPLETED}
    statuses = {**{key: ended[key] for key in probed & ended.keys()}, **{key: ended_teachers[key] for key in over}}
    stored = taught & plan.teachers.keys() | weights & probed
    trained = {key for key, status in statuses.items() if status == Status.COMPLETED and key in stored}
    measured = [teacher for teacher in plan.published.values() if is_measured(teacher, own, teachers)]
    trained |= {teacher.ref.id for teacher in measured}
    make = maker(spec, text, probed, sharing, cost)
    failed = {key: _described(plan, key) for key, status in statuses.items() if status != Status.COMPLETED}
    failed = {} if spec.run.replay else failed
    dead = _without_teacher(found, failed, make)
    alive = [search for search in found if search.study.id not in dead]
    needed = [*todo.values(), *(trial for search in alive for trial in search.examples)]
    absent = [] if spec.run.replay else _absent(needed, plan, over)
    jobs = [make("teacher", plan.teachers[key]) for key in absent]
    jobs += [make("student", trial) for trial in todo.values() if trial.probe is None]
    jobs += [make("probe", trial) for trial in todo.values() if trial.probe is not None]
    blocked = blocked_by(failed, jobs)
    out = {other.job.id for other in blocked}
    return Missing(
        jobs=[other for other in jobs if other.id not in out],
        published=[teacher for teacher in plan.published.values() if teacher not in measured],
        trained=trained,
        blocked=[*blocked, *dead.values()],
        done=len(plan.trials.keys() - todo.keys()) + sum(search.done for search in found),
        searches=alive,
        maker=make,
        sharing=sharing,
        cost=cost,
        retry_failed=retry_failed,
        replays=spec.run.replay is not None,
    )


def _without_teacher(found: Iterable[Search], failed: Mapping[str, str], make: Maker) -> dict[str, Blocked]:
    """What is given up of studies that ask for nothing, because their teacher failed, by study."""
    return {
        search.study.id: Blocked(make("student", search.study.example), failed[min(lost)], search.trials_left)
        for search in found
        if search.trials_left and (lost := search.study.requirements & failed.keys())
    }


def _ended(store: Store, planned: Iterable[str], retry_failed: bool) -> dict[str, str]:
    """How those of the planned trials ended that are not to be run again, by id. Points of a search do not count.

    A sweep that was a search before may have them, and tables do not show them.
    """
    again = (Status.FAILED, Status.DIVERGED) if retry_failed else ()
    rows = store.read_trials(planned, ["trial_id", "status", "phase"]).to_pylist()
    return {row["trial_id"]: row["status"] for row in rows if row["status"] not in again and row["phase"] is None}


def _described(plan: Plan, key: str) -> str:
    """A network that others need, in a few words."""
    return describe_teacher(plan.teachers[key]) if key in plan.teachers else describe(plan.trials[key])


def source_of(spec: Spec, text: str) -> dict[str, str]:
    """What all rows of a run say of their origin."""
    return {"sweep": spec.sweep.name, "spec_sha256": sha256(text), "git_commit": rows.git_commit()}


def maker(
    spec: Spec, text: str, probed: Collection[str], sharing: Sharing = ALONE, cost: Cost = NOTHING_KNOWN
) -> Maker:
    """What makes the jobs of a sweep. `probed`: ids of networks that a probe of the plan takes."""
    source = source_of(spec, text)
    # The driver has fetched the images.
    where, results = spec_where(spec).model_copy(update={"download": False}), absolute(spec.run.results)

    def job(role: str, trial: TrialConfig, searched: Mapping[str, Any] = MappingProxyType({})) -> Job:
        key = trial_id(trial)
        # Of a search the weights of the winners.
        wanted = spec.run.keep_weights and searched.get("phase") != "search"
        keeps = role == "teacher" or (role == "student" and (wanted or key in probed))
        return Job(
            id=key, role=role, trial=trial, where=where.model_copy(update={"shared": sharing.names(trial)}),
            results=results, source=source, keeps_weights=keeps and not spec.run.replay, searched=dict(searched),
            replay=spec.run.replay, predicted_seconds=None if spec.run.replay else cost.seconds(trial, where.cpus),
        )  # fmt: skip

    return job


def _absent(trials: Iterable[TrialConfig], plan: Plan, over: Collection[str]) -> list[str]:
    """The ids of the teachers that these trials need and that are not over, each after those that it needs itself."""
    found: dict[str, None] = {}

    def visit(trial: TrialConfig) -> None:
        for key in requirements(trial):
            if key in plan.teachers and key not in over and key not in found:
                visit(plan.teachers[key])
                found[key] = None

    for trial in trials:
        visit(trial)
    return list(found)

"""The order in which trials are handed to Ray Tune, and the studies that are asked for more of them."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from ray.tune.search import Searcher

from sweeps.ask import Asking
from sweeps.cells import Teachers
from sweeps.ended import end
from sweeps.job import ASKED, Blocked, Job, Missing
from sweeps.points import Tried
from sweeps.schema import Status
from sweeps.store import StoreError
from sweeps.waiting import Waiting

# An idling trial lasts a share of the time that workers have idled so far, within limits, in seconds: few of them
# are needed while a teacher trains for hours, and little time is lost when it ends.
IDLE_SHARE, IDLE_MIN, IDLE_MAX = 0.03, 0.3, 60.0


class SweepSearch(Searcher):
    """Hands Tune each planned job once, and the points of studies. Tune's own trial ids map to jobs in `jobs`.

    A job waits until all that it needs is trained: its teacher and assistants, of a probe its student. If one of
    those fails, or one that they need, it is never handed out and ends in `blocked`. `weights`: see `Waiting`.

    A study is asked where a worker is free and no planned job is ready: the one with the fewest trials under way, so
    that points are drawn with the most knowledge. When all its points have ended, its confirmations are planned jobs.

    Where Tune asks and nothing is ready, it gets a trial that idles for a while, and asks again: told that
    there is nothing yet, Tune would end the idle worker, and starting one anew takes seconds.
    """

    def __init__(
        self, todo: Missing, weights: Mapping[str, float] = MappingProxyType({}), p_threshold: float | None = None
    ) -> None:
        super().__init__(metric=None, mode=None)
        self.waiting = Waiting(todo.jobs, todo.trained, weights)
        self.teachers = {job.id for job in todo.jobs if job.role == "teacher"}
        self.make = todo.maker
        self.jobs: dict[str, Job] = {}
        self.begun: dict[str, datetime] = {}  # Tune's ids: when they were handed out
        self.under_way: dict[str, Job] = {}  # by key
        self.idle: set[str] = set()  # Tune's ids of idling trials
        self.idle_since: float | None = None  # when workers began to idle
        self.blocked: list[Blocked] = []
        self.store_error: str | None = None
        self.skipped: list[Job] = []  # seeds of points that were not worth trying
        self.lost: dict[str, str] = {}  # ids of networks that failed, and what they were
        self.replays, self.retry_failed = todo.replays, todo.retry_failed
        self.studies = {search.study.id: Asking(search, p_threshold) for search in todo.searches if search.trials_left}
        for study in self.studies.values():
            for each in study.points.values():
                self._wait_for(study, each)
        self._confirm()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searchers into a file that nobody reads."""
        return {}

    @property
    def to_come(self) -> int:
        """How many trials are still to be handed out, at most."""
        return len(self.waiting) + sum(study.to_come for study in self.studies.values())

    def suggest(self, trial_id: str) -> Any:
        """The next job whose teachers are ready; FINISHED when there is none left."""
        try:
            job = self._next()
        except StoreError as error:
            self._stop(str(error))
            job = None
        if job is not None:
            self.jobs[trial_id], self.begun[trial_id], self.idle_since = job, datetime.now(UTC), None
            self.under_way[job.key] = job
            return {"job": job.model_dump_json()}
        if not self.to_come:
            return Searcher.FINISHED
        if len(self.idle) >= self.to_come:  # more workers than there will be work for
            return None
        self.idle_since = self.idle_since or time.monotonic()
        self.idle.add(trial_id)
        return {"idle": min(max(IDLE_SHARE * (time.monotonic() - self.idle_since), IDLE_MIN), IDLE_MAX)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch of a search's trial."""
        job = self.jobs.get(trial_id)
        if job is not None and job.is_search and self.store_error is None:
            self._report(job, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Let those go that waited for a trained network; give up all that need a failed one; tell studies."""
        self.idle.discard(trial_id)
        result = result or {}
        if "store_error" in result:  # nothing more can be stored, so nothing more is begun
            self._stop(result["store_error"])
        job = self.jobs.get(trial_id)
        if job is None or self.store_error is not None:
            return
        self.under_way.pop(job.key, None)
        status = Status.FAILED if error else result.get("status")
        try:
            if job.is_search:
                self._ended(job, self.begun[trial_id], status, result)
            elif job.role != "student" or not self._is_known(job.id):  # a teacher's weights count
                self._settled(job, status == Status.COMPLETED)
            self._confirm()
        except StoreError as failure:
            self._stop(str(failure))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is done is read from the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: what is done is read from the store."""

    def _next(self) -> Job | None:
        """A planned job that is ready, else that of a new point, unless a teacher of its own has to come first."""
        while (job := self.waiting.pop()) is None and (study := self._freest()) is not None:
            self._wait_for(study, study.ask())
            self._confirm()  # the point may have been given up at once, and the last one
        return job

    def _freest(self) -> Asking | None:
        """Of the studies that may be asked, the one with the fewest trials under way."""
        # Not one whose last point waits for a teacher of its own.
        busy = {key: 0 for key in self.studies if not self.waiting.held_points[key]}
        for job in self.under_way.values():
            if job.is_search and job.searched["study"] in busy:
                busy[job.searched["study"]] += 1
        ready = [
            (n, len(self.studies[key].points), place, key)
            for place, (key, n) in enumerate(busy.items())
            if self.studies[key].left and self._needed(self.studies[key]) <= self.waiting.trained
        ]
        return self.studies[min(ready)[-1]] if ready else None

    def _needed(self, study: Asking) -> frozenset[str]:
        return frozenset() if self.replays else study.search.study.requirements

    def _wait_for(self, study: Asking, each: Tried) -> None:
        """Queue the trials of a point that have not ended, and remember that they were asked for."""
        for seed in study.seeds_to_run(each):
            trial, teachers = study.search.study.cell.trial(each.point, seed)
            job = self.make("student", trial, study.search.columns(each))
            job.store.write_bytes(job.model_dump_json().encode(), ASKED, f"{job.id}.json")
            self._queue(job, teachers)

    def _confirm(self) -> None:
        """Queue the confirmations of studies whose points have all ended, and be done with them."""
        for key in [key for key, study in self.studies.items() if study.over]:
            study = self.studies.pop(key)
            for each, seed in study.search.missing(study.points.values()):
                trial, teachers = study.search.study.cell.confirmation(each.point, seed)
                self._queue(self.make("student", trial, study.search.columns(each, "confirm")), teachers)

    def _queue(self, job: Job, teachers: Teachers) -> None:
        """Let a job wait for its turn, and teachers of its own that nobody has trained before it."""
        for key, trial in teachers.items() if not job.replay else ():
            if not self._is_known(key) and key not in self.lost:
                self._find_teacher(self.make("teacher", trial))
        if lost := job.requirements & self.lost.keys():
            self._block([Blocked(job, self.lost[min(lost)])])
        else:
            self.waiting.add(job)

    def _is_known(self, key: str) -> bool:
        """Whether it is the id of a network that is trained, or of a teacher that is to be."""
        return key in self.waiting.trained or key in self.teachers

    def _find_teacher(self, job: Job) -> None:
        """Queue the training of a teacher unless an earlier run has trained it, or it cannot be trained."""
        status = job.store.statuses([job.id]).get(job.id)
        if status == Status.COMPLETED and job.store.exists("models", f"{job.id}.safetensors"):
            self.waiting.train(job.id)
        elif lost := job.requirements & self.lost.keys():
            self.lost[job.id] = self.lost[min(lost)]
        elif status in (None, Status.COMPLETED) or self.retry_failed:
            self.teachers.add(job.id)
            self.waiting.add(job)
        else:
            self.lost[job.id] = job.label

    def _block(self, blocked: list[Blocked]) -> None:
        """Give up jobs; for their studies they have failed."""
        self.blocked += blocked
        for other in blocked:
            if other.job.is_search:
                study, number = self._study(other.job), other.job.searched["number"]
                study.tell(number, other.job.trial.seed, {"status": Status.FAILED, "val_acc": None})
                self._go_on(study, number)

    def _ended(self, job: Job, begun: datetime, status: str | None, result: dict[str, Any]) -> None:
        """Tell its study how a trial has ended, and write the row of one that was stopped."""
        study, number = self._study(job), job.searched["number"]
        if status is None:  # a scheduler stopped it, and its last epoch was not reported
            status = Status.STOPPED
            self._report(job, result)
            self._write_stopped(job, begun, result)
        costs = study.search.costs.get(job.trial.student, {})
        row = {**costs, "status": status, "val_acc": result.get("acc"), "epochs_done": result.get("epoch", 0)}
        point = study.points[number]
        for seed in study.tell(number, job.trial.seed, row):  # with which it is not worth trying any more
            trial, _ = study.search.study.cell.trial(point.point, seed)
            self.skipped.append(self.make("student", trial, study.search.columns(point)))
            self._write_stopped(self.skipped[-1], datetime.now(UTC), {})
            study.tell(number, seed, {"status": Status.STOPPED, "val_acc": None, "epochs_done": 0})
        self._go_on(study, number)

    def _go_on(self, study: Asking, number: int) -> None:
        """Queue the next seed of a point whose seeds are tried one after the other."""
        point = study.points[number]
        if study.one_by_one and not point.ended(study.search.seeds):
            self._wait_for(study, point)

    def _report(self, job: Job, result: dict[str, Any]) -> None:
        if result.get("acc") is not None:
            self._study(job).report(job.searched["number"], result["trained"], result["acc"])

    def _write_stopped(self, job: Job, begun: datetime, result: dict[str, Any]) -> None:
        end(
            job,
            Status.STOPPED,
            epochs_done=result.get("epoch", 0),
            device=result.get("device", "none"),
            started_at=begun,
            replayed=result.get("replayed"),
            columns={"val_acc": result.get("acc"), "train_seconds": result.get("seconds", 0.0)},
        )

    def _settled(self, job: Job, completed: bool) -> None:
        """A teacher, a student or a probe has ended; others may have waited for it."""
        if completed:
            self.waiting.train(job.id)
            return
        self.lost[job.id] = job.label
        blocked = self.waiting.give_up(job)
        self.lost |= {other.job.id: other.by for other in blocked if other.job.role == "teacher"}
        self._block(blocked)
        for key, study in list(self.studies.items()):
            if self._needed(study) & self.lost.keys():
                del self.studies[key]
                example = self.make("student", study.search.study.example)
                self.blocked.append(Blocked(example, job.label, study.to_come))

    def _study(self, job: Job) -> Asking:
        return self.studies[job.searched["study"]]

    def _stop(self, error: str) -> None:
        """Begin nothing more."""
        self.store_error = error
        self.waiting.clear()
        self.studies = {}

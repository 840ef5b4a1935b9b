"""The order in which trials are handed to Ray Tune: teachers first, each when the networks that it needs are ready."""

import time
from collections.abc import Iterable
from typing import Any

from ray.tune.search import Searcher

from sweeps.job import Blocked, Job, blocked_by
from sweeps.schema import Status

# An idling trial lasts a share of the time that workers have idled so far, within limits, in seconds: few of them
# are needed while a teacher trains for hours, and little time is lost when it ends.
IDLE_SHARE, IDLE_MIN, IDLE_MAX = 0.03, 0.3, 60.0


class PlannedSearch(Searcher):
    """Hands Tune each planned job once. Tune's own trial ids map to jobs in `jobs`.

    A job waits until all that it needs is trained: its teacher and assistants, of a probe its student. If one of
    those fails, or one that they need, it is never handed out and ends in `blocked`. `trained` holds the ids of those
    that are trained.

    Where Tune asks and nothing is ready, it gets a trial that idles for a while, and asks again: told that
    there is nothing yet, Tune would end the idle worker, and starting one anew takes seconds.
    """

    def __init__(self, jobs: Iterable[Job], trained: Iterable[str]) -> None:
        super().__init__(metric=None, mode=None)
        self.waiting = sorted(jobs, key=_priority)
        self.trained = set(trained)
        self.teachers = {job.id for job in self.waiting if job.role == "teacher"}
        self.jobs: dict[str, Job] = {}
        self.idle: set[str] = set()  # Tune's ids of idling trials
        self.idle_since: float | None = None  # when workers began to idle
        self.blocked: list[Blocked] = []

    def suggest(self, trial_id: str) -> Any:
        """The next job whose teachers are ready; FINISHED when there is none left."""
        if not self.waiting:
            return Searcher.FINISHED
        for i, job in enumerate(self.waiting):
            if job.requirements <= self.trained:
                self.jobs[trial_id], self.idle_since = self.waiting.pop(i), None
                return {"job": job.model_dump_json()}
        if len(self.idle) >= len(self.waiting):  # more workers than there will be work for
            return None
        self.idle_since = self.idle_since or time.monotonic()
        self.idle.add(trial_id)
        return {"idle": min(max(IDLE_SHARE * (time.monotonic() - self.idle_since), IDLE_MIN), IDLE_MAX)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Let those go that waited for a trained network; give up all that need a failed one."""
        self.idle.discard(trial_id)
        if result and "store_error" in result:  # nothing more can be stored, so nothing more is begun
            self.waiting = []
        job = self.jobs.get(trial_id)
        if job is None or (job.role == "student" and job.id in self.teachers):  # whose weights are the teacher's
            return
        if not error and result and result.get("status") == Status.COMPLETED:
            self.trained.add(job.id)
            return
        blocked = blocked_by({job.id: job.label}, self.waiting)
        lost = {other.job.id for other in blocked}
        self.blocked += blocked
        self.waiting = [other for other in self.waiting if other.id not in lost]

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is done is read from the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: what is done is read from the store."""


def _priority(job: Job) -> tuple[int, float]:
    """Teachers and assistants, then students that need none (they fill the machine meanwhile), the others, then probes.

    Within each the longest first, so that no worker is left alone with a long trial at the end.
    """
    kind = {"teacher": 0, "student": 2 if job.requirements else 1, "probe": 3}[job.role]
    return kind, -job.trial.data.fraction * job.trial.train.epochs

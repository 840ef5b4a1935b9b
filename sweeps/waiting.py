"""The jobs that wait for a worker, or for networks that they need, and the order in which they leave."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import count

from sweeps.job import Blocked, Job, blocked_by

ROLES = {"teacher": 0, "student": 1, "probe": 2}  # what others may wait for comes first
Place = tuple[int, float, int]


class Waiting:
    """Hands out each job once, when all that it needs is trained: teachers and assistants, students, then probes.

    Within each role the longest first, so that no worker is left alone with a long trial at the end; of equals the one
    that was added first. No step looks at all jobs, of which there may be many thousands.

    trained: ids of networks that are trained. weights: numbers proportional to the jobs' times, by key or, of trials
    that a search has chosen, by `PHASE STUDY 0`.
    """

    def __init__(self, jobs: Iterable[Job], trained: Iterable[str], weights: Mapping[str, float]) -> None:
        self.trained, self._weights = set(trained), weights
        self._number = count()
        self._ready: list[tuple[Place, Job]] = []  # a heap
        self._held: dict[str, tuple[Place, Job]] = {}  # by key: those that need what is still to be trained
        self._needing: defaultdict[str, set[str]] = defaultdict(set)  # ids of networks: keys of those held
        self.held_points: Counter[str] = Counter()  # studies: how many of their points are held
        for job in jobs:
            self.add(job)

    def __len__(self) -> int:
        return len(self._ready) + len(self._held)

    def add(self, job: Job) -> None:
        """Let a job wait."""
        self._put(((ROLES[job.role], -self._weight(job), next(self._number)), job))

    def pop(self) -> Job | None:
        """The first of the jobs that are ready; None if none is."""
        return heapq.heappop(self._ready)[1] if self._ready else None

    def train(self, key: str) -> None:
        """A network is trained: those that waited for it alone are ready."""
        self.trained.add(key)
        for other in self._needing.pop(key, ()):
            if other in self._held:
                self._put(self._take(other))

    def give_up(self, failed: Job) -> list[Blocked]:
        """Remove all that need a job that failed, themselves or through another."""
        found, ids = list[tuple[Place, Job]](), [failed.id]
        for key in ids:  # which grows meanwhile
            held = [self._take(other) for other in self._needing.pop(key, ()) if other in self._held]
            found += held
            ids += [job.id for _, job in held]
        return blocked_by({failed.id: failed.label}, [job for _, job in sorted(found, key=lambda each: each[0])])

    def clear(self) -> None:
        """Let nothing wait any more."""
        self._ready, self._held = [], {}

    def _put(self, placed: tuple[Place, Job]) -> None:
        _, job = placed
        missing = job.requirements - self.trained
        if not missing:
            heapq.heappush(self._ready, placed)
            return
        self._held[job.key] = placed
        for key in missing:
            self._needing[key].add(job.key)
        if job.is_search:
            self.held_points[job.searched["study"]] += 1

    def _take(self, key: str) -> tuple[Place, Job]:
        _, job = placed = self._held.pop(key)
        if job.is_search:
            self.held_points[job.searched["study"]] -= 1
        return placed

    def _weight(self, job: Job) -> float:
        chosen = f"{job.searched.get('phase')} {job.searched.get('study')} 0"
        return self._weights.get(job.key, self._weights.get(chosen, 0.0))

"""What a person sees while a sweep runs: one live display on a terminal, one line a minute elsewhere."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any, Self

from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.cost import Cost
from sweeps.job import Job, Missing
from sweeps.schema import Status
from sweeps.words import count, duration

LINE_SECONDS = 60.0


def weights(todo: Missing, cost: Cost) -> dict[str, float]:
    """All trials to run by key, with weights proportional to the time that they are thought to take.

    Those that searches have yet to choose count as the examples of their studies; their keys are `PHASE STUDY NUMBER`.
    """
    kinds = {"search": lambda search: search.search_trials_left, "confirm": lambda search: search.confirmations_left}
    examples = {
        (phase, search.study.id): (todo.maker("student", trial), kinds[phase](search))
        for search in todo.searches
        for phase, trial in (("search", search.study.example), ("confirm", search.study.confirmation))
        if trial is not None
    }
    every = _weights([*todo.jobs, *(job for job, _ in examples.values())], cost)
    found = {job.key: every[job.key] for job in todo.jobs}
    for (phase, study), (job, n) in examples.items():
        found |= {f"{phase} {study} {i}": every[job.key] for i in range(n)}
    return found


def _weights(jobs: Sequence[Job], cost: Cost) -> dict[str, float]:
    """By key: seconds if all are known, else images times epochs."""
    known = {job.key: cost.seconds(job.trial, job.where.cpus) for job in jobs}
    seconds = {key: value for key, value in known.items() if value is not None}
    if len(seconds) == len(known):
        return seconds
    return {job.key: 0.0 if job.trial.probe else job.trial.data.fraction * job.trial.train.epochs for job in jobs}


class Progress(Callback):
    """Follows Tune's trials: results hold `epoch`, `epochs` (of all stages) and perhaps `acc` and a `warning`.

    `jobs`: Tune's trial ids to jobs, filled by the searcher.
    `todo`: see `weights`; a trial that a search has chosen takes the place of one that was to be chosen.
    `teachers`: the keys of those that are teachers'. `done`: how many trials earlier runs had finished.
    `skipped`: jobs that the searcher found not worth handing out, filled by it.
    """

    def __init__(
        self,
        console: Console,
        jobs: Mapping[str, Job],
        todo: Mapping[str, float],
        teachers: Set[str],
        done: int,
        skipped: Sequence[Job] = (),
    ) -> None:
        self.skipped, self._skipped = skipped, 0  # and how many of them are counted
        self._chosen = Counter[str]()  # `PHASE STUDY`: how many trials have taken the place of one to be chosen
        self.console, self.jobs, self.todo, self.teachers, self.before = console, jobs, dict(todo), set(teachers), done
        self.ended: dict[str, str] = {}  # job key to status
        self.running: dict[str, tuple[Job, dict[str, Any]]] = {}  # job key to its last result
        self.dead: set[str] = set()  # keys of jobs whose workers died too often
        self.warned: set[str] = set()  # of what trials warn, each once
        self.start = self._line = time.monotonic()
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=2, transient=True)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks into a file that nobody reads."""
        return {}

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial begins in a worker."""
        if job := self.jobs.get(trial.trial_id):  # else the worker idles
            self._place(job)
            self.running[job.key] = (job, {"epoch": 0, "epochs": job.trial.train.epochs})

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has done an epoch, or ended."""
        job = self.jobs.get(trial.trial_id)
        if job is None:
            return
        if (warning := result.get("warning")) and warning not in self.warned:
            self.warned.add(warning)
            self.console.print(f"warning: {warning}", soft_wrap=True, highlight=False)
        if "status" in result:
            self._end(job, result["status"])
        elif "epoch" in result:
            self.running[job.key] = (job, result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial has ended; where it did not say so itself, a scheduler has stopped it."""
        job = self.jobs.get(trial.trial_id)
        if job is not None and job.key in self.running:
            self._end(job, Status.STOPPED)
        for other in self.skipped[self._skipped :]:
            self._place(other)
            self._end(other, Status.STOPPED)
        self._skipped = len(self.skipped)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial's worker died too often."""
        if job := self.jobs.get(trial.trial_id):
            self.dead.add(job.key)
            self._end(job, Status.FAILED)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Print the line of the minute where there is no live display."""
        if not self.console.is_terminal and time.monotonic() - self._line >= LINE_SECONDS:
            self._line = time.monotonic()
            self.console.print(self.line(), soft_wrap=True, highlight=False)

    def line(self) -> str:
        """Progress as one line of text."""
        running = [f"{job.label} {_state(result)}" for job, result in self.running.values()]
        parts = [part for part in (self._count(), self._bad(), *running, self._left()) if part]
        return f"[{duration(time.monotonic() - self.start)}] " + ", ".join(parts)

    def render(self) -> RenderableType:
        """Progress as a live display: a bar, then one line for each running trial."""
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(self.before + len(self.todo), self.before + len(self.ended), width=30)
        head.add_row(bar, self._count(), Text(self._bad(), style="red"), self._left() or "starting")
        rows = Table.grid(padding=(0, 2))
        for job, result in self.running.values():
            rows.add_row("", job.label, _state(result))
        return Group(head, rows)

    def _place(self, job: Job) -> None:
        """Count a trial that was not planned: a search has chosen it, or it is the teacher of one."""
        if job.key in self.todo:
            return
        chosen = f"{job.searched.get('phase')} {job.searched.get('study')}"
        self.todo[job.key] = self.todo.pop(f"{chosen} {self._chosen[chosen]}", 0.0)
        self._chosen[chosen] += 1
        if job.role == "teacher":
            self.teachers.add(job.key)

    def _end(self, job: Job, status: str) -> None:
        self.running.pop(job.key, None)
        self.ended[job.key] = status

    def _count(self) -> str:
        done, todo = (len(ids.keys() - self.teachers) + self.before for ids in (self.ended, self.todo))
        trials = f"{done}/{todo} trials done"
        if not self.teachers:
            return trials
        return f"{len(self.ended.keys() & self.teachers)}/{count(len(self.teachers), 'teacher')} and {trials}"

    def _bad(self) -> str:
        bad = sum(status in (Status.FAILED, Status.DIVERGED) for status in self.ended.values())
        return f"{bad} failed or diverged" if bad else ""

    def _left(self) -> str:
        """The time left if the rest goes as the part done so far; empty before the first epoch ends."""
        done = sum(self.todo[key] for key in self.ended)
        done += sum(self.todo[key] * result["epoch"] / result["epochs"] for key, (_, result) in self.running.items())
        if done <= 0:
            return ""
        elapsed = time.monotonic() - self.start
        return f"about {duration(max(0.0, elapsed * (sum(self.todo.values()) / done - 1)))} left"


def _state(result: Mapping[str, Any]) -> str:
    text = f"epoch {result['epoch']}/{result['epochs']}"
    return f"{text} {result['acc']:.1f} %" if result.get("acc") is not None else text

"""What a person sees while a sweep runs: one live display on a terminal, one line a minute elsewhere."""

import time
from collections.abc import Mapping
from typing import Any, Self

from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.cost import duration
from sweeps.job import Job
from sweeps.schema import Status

LINE_SECONDS = 60.0
BAD = (Status.FAILED, Status.DIVERGED)


class Progress(Callback):
    """Follows Tune's trials. `jobs`: Tune's trial ids to jobs, filled by the searcher."""

    def __init__(self, console: Console, jobs: Mapping[str, Job], todo: Mapping[str, float | None], done: int) -> None:
        self.console, self.jobs = console, jobs
        self.todo = dict(todo)  # ids of the jobs to run, with their estimated seconds
        self.before = done  # trials that earlier runs had finished
        self.ended: dict[str, str] = {}  # job id to status
        self.running: dict[str, dict[str, Any]] = {}  # job id to its last result
        self.store_error: str | None = None
        self.dead: set[str] = set()  # ids of jobs whose workers died too often
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
            self.running[job.id] = {"epoch": 0}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has done an epoch, or ended."""
        job = self.jobs.get(trial.trial_id)
        if job is None:
            return
        self.store_error = self.store_error or result.get("store_error")
        if "status" in result:
            self.end(job, result["status"])
        else:
            self.running[job.id] = result

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial's worker died too often."""
        if job := self.jobs.get(trial.trial_id):
            self.dead.add(job.id)
            self.end(job, Status.FAILED)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Print the line of the minute where there is no live display."""
        if not self.console.is_terminal and time.monotonic() - self._line >= LINE_SECONDS:
            self._line = time.monotonic()
            self.console.print(self.line(), soft_wrap=True)

    def end(self, job: Job, status: str) -> None:
        """Count a job as ended."""
        self.running.pop(job.id, None)
        self.ended[job.id] = status

    def line(self) -> str:
        """Progress as one line of text."""
        total = self.before + len(self.todo)
        parts = [f"{self.before + len(self.ended)}/{total} trials done"]
        if bad := sum(status in BAD for status in self.ended.values()):
            parts.append(f"{bad} failed or diverged")
        parts += [f"{self._name(key)} {self._state(key)}" for key in self.running]
        return f"[{duration(time.monotonic() - self.start)}] " + ", ".join(parts) + self._left()

    def render(self) -> RenderableType:
        """Progress as a live display: a bar, then one line for each running trial."""
        total = self.before + len(self.todo)
        head = Table.grid(padding=(0, 1))
        done = self.before + len(self.ended)
        head.add_row(ProgressBar(total, done, width=30), f"{done}/{total} trials", self._bad(), self._left(" "))
        rows = Table.grid(padding=(0, 2))
        for key in self.running:
            rows.add_row("", self._name(key), self._state(key))
        return Group(head, rows)

    def _bad(self) -> Text:
        bad = sum(status in BAD for status in self.ended.values())
        return Text(f"{bad} failed or diverged" if bad else "", style="red")

    def _name(self, key: str) -> str:
        job = next(job for job in self.jobs.values() if job.id == key)
        trial = job.trial
        if job.role == "teacher":
            return f"teacher {trial.student}"
        teacher = f"{trial.teacher.model}/" if trial.teacher else ""
        return f"{trial.method.name} {teacher}{trial.student} fraction {trial.data.fraction:g} seed {trial.seed}"

    def _state(self, key: str) -> str:
        result = self.running[key]
        job = next(job for job in self.jobs.values() if job.id == key)
        text = f"epoch {result['epoch']}/{job.trial.train.epochs}"
        return f"{text} {result['acc']:.1f} %" if result.get("acc") is not None else text

    def _left(self, before: str = ", ") -> str:
        """The time left: estimates of earlier rows, corrected by how far they were off so far."""
        elapsed = time.monotonic() - self.start
        finished = [key for key in self.ended if key in self.todo]
        if not finished:
            return ""
        known = {key: seconds for key, seconds in self.todo.items() if seconds is not None}
        if len(known) == len(self.todo):
            share = sum(known[key] for key in finished) / sum(known.values())
        else:
            share = len(finished) / len(self.todo)
        return f"{before}about {duration(elapsed / share - elapsed)} left"

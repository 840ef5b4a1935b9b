"""What is shown while a sweep runs; Tune is played by the test."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from sweeps import progress as module
from sweeps.cost import Cost
from sweeps.job import missing
from sweeps.plan import expand
from sweeps.points import Tried
from sweeps.progress import Progress, weights
from sweeps.searches import searches
from sweeps.spec import parse_text
from sweeps.store import Store


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def jobs(spec_text, tmp_path):
    spec = parse_text(spec_text.replace("[grid]", f"[run]\nresults = '{tmp_path}'\n[grid]"))
    return missing(spec, spec_text, expand(spec), retry_failed=False).jobs


def follow(jobs, *, terminal: bool, done: int = 0) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    teachers = {job.key for job in jobs if job.role == "teacher"}
    return Progress(console, {job.id: job for job in jobs}, {job.key: 1.0 for job in jobs}, teachers, done), out


def tell(progress: Progress, event: str, job, **result) -> None:
    extra = {"result": result} if result else {}
    getattr(progress, event)(iteration=0, trials=[], trial=SimpleNamespace(trial_id=job.id), **extra)


def test_line_tells_done_running_with_epoch_and_accuracy_bad_and_time_left(jobs, clock):
    progress, _ = follow(jobs, terminal=False, done=2)
    teacher, vanilla, kd = jobs[0], jobs[1], jobs[3]
    tell(progress, "on_trial_start", teacher)
    tell(progress, "on_trial_start", vanilla)
    assert progress.line() == (
        "[0 s] 0/1 teacher and 2/6 trials done, teacher resnet8 fraction 0.02 epoch 0/1, "
        "vanilla resnet8 fraction 0.02 seed 1 epoch 0/2"
    )
    clock.now += 60
    tell(progress, "on_trial_result", teacher, epoch=1, epochs=1, acc=50.0, status="completed")
    tell(progress, "on_trial_result", vanilla, epoch=2, epochs=2, acc=12.5, status="diverged")
    tell(progress, "on_trial_start", kd)
    tell(progress, "on_trial_result", kd, epoch=1, epochs=2, acc=33.333)
    # 2.5 of 5 equal jobs took 60 s, so the other 2.5 take as long.
    assert progress.line() == (
        "[1 min 00 s] 1/1 teacher and 3/6 trials done, 1 failed or diverged, "
        "kd resnet8/resnet8 fraction 0.02 seed 1 epoch 1/2 33.3 %, about 1 min 00 s left"
    )


def test_epochs_of_a_stage_before_the_recipes_count_too_and_have_no_accuracy(jobs, clock):
    progress, _ = follow(jobs, terminal=False)
    tell(progress, "on_trial_start", jobs[3])
    clock.now += 10
    tell(progress, "on_trial_result", jobs[3], epoch=1, epochs=4, acc=None)
    # A quarter of one of 5 equal jobs took 10 s, so the other 4.75 take 190 s.
    assert progress.line() == (
        "[10 s] 0/1 teacher and 0/4 trials done, kd resnet8/resnet8 fraction 0.02 seed 1 epoch 1/4, "
        "about 3 min 10 s left"
    )


def test_one_line_a_minute_without_a_terminal(jobs, clock):
    progress, out = follow(jobs, terminal=False)
    with progress:
        tell(progress, "on_trial_start", jobs[0])
        for _ in range(600):  # two minutes and a half
            clock.now += 0.25
            progress.on_step_end(iteration=0, trials=[])
    assert len(out.getvalue().splitlines()) == 2


def test_live_display_on_a_terminal(jobs, clock):
    progress, out = follow(jobs, terminal=True)
    tell(progress, "on_trial_start", jobs[1])
    tell(progress, "on_trial_result", jobs[1], epoch=1, epochs=2, acc=20.0)
    progress.console.print(progress.render())
    shown = out.getvalue()
    assert "0/1 teacher and 0/4 trials done" in shown
    assert "vanilla resnet8 fraction 0.02 seed 1" in shown
    assert "epoch 1/2 20.0 %" in shown


def test_idle_workers_are_not_shown_and_dead_ones_count_as_failed(jobs, clock):
    progress, _ = follow(jobs, terminal=False)
    idle = SimpleNamespace(id="another")
    tell(progress, "on_trial_start", idle)
    tell(progress, "on_trial_result", idle, done=True)
    tell(progress, "on_trial_error", idle)
    tell(progress, "on_trial_start", jobs[1])
    tell(progress, "on_trial_error", jobs[1])
    assert progress.dead == {jobs[1].key}
    assert progress.line().startswith("[0 s] 0/1 teacher and 1/4 trials done, 1 failed or diverged")


SEARCH = """
[search]
sampler = "random"
trials = 2
score = "mean_over_seeds"
[scheduler]
name = "wilcoxon"
[confirm]
top = 1
seed = [11]
"""


@pytest.fixture
def search(spec_text, tmp_path, clock) -> SimpleNamespace:
    """A search for kd alone, 2 points with 6 seeds and a confirmation: its progress, and what makes its jobs."""
    text = spec_text.replace('["vanilla", "kd"]', '["kd"]').replace("[1, 2]", "[1, 2, 3, 4, 5, 6]")
    text = text.replace("[train]", "val_size = 100\n[train]").replace("[teacher]\nepochs = 1\n", "[teacher]\n")
    text += f"{SEARCH}[run]\nresults = '{tmp_path}'\n"
    spec = parse_text(text)
    plan = expand(spec)
    (found,) = searches(spec, plan, Store(str(tmp_path), "small"), [])
    todo = missing(spec, text, plan, retry_failed=False, found=[found])
    jobs, skipped = {}, []
    teachers = {job.key for job in todo.jobs}
    console = Console(file=io.StringIO(), force_terminal=False, width=120)
    progress = Progress(console, jobs, weights(todo, Cost(())), teachers, todo.done, skipped)

    def begin(point: int, seed: int, phase: str = "search"):
        cell = found.study.cell
        trial, _ = (cell.trial if phase == "search" else cell.confirmation)({"alpha": 1.0 + point, "tau": 4.0}, seed)
        job = todo.maker("student", trial, found.columns(Tried(point, {"alpha": 1.0 + point}, "start"), phase))
        jobs[job.id] = job
        return job

    return SimpleNamespace(progress=progress, begin=begin, skipped=skipped, todo=todo, jobs=jobs)


def test_points_take_the_places_of_those_that_were_to_be_chosen(search, clock):
    progress = search.progress
    assert progress.line() == "[0 s] 0/2 teachers and 0/13 trials done"
    for teacher in search.todo.jobs:
        search.jobs[teacher.id] = teacher
        tell(progress, "on_trial_start", teacher)
        tell(progress, "on_trial_result", teacher, epoch=2, epochs=2, status="completed")
    clock.now += 60
    # Two teachers on a 50th of the images for two epochs, as 13 trials: 15 trials that take as long.
    assert progress.line() == "[1 min 00 s] 2/2 teachers and 0/13 trials done, about 6 min 30 s left"
    for seed in (1, 2, 3, 4):
        job = search.begin(0, seed)
        tell(progress, "on_trial_start", job)
        tell(progress, "on_trial_result", job, epoch=2, epochs=2, acc=20.0, status="completed")
        tell(progress, "on_trial_complete", job)
    assert progress.line() == "[1 min 00 s] 2/2 teachers and 4/13 trials done, about 1 min 30 s left"


def test_seeds_that_are_not_tried_count_as_ended(search, clock):
    progress = search.progress
    job = search.begin(0, 1)
    tell(progress, "on_trial_start", job)
    tell(progress, "on_trial_result", job, epoch=2, epochs=2, acc=20.0, status="completed")
    search.skipped += [search.begin(0, seed) for seed in (2, 3, 4, 5, 6)]  # the searcher hears of the end first
    tell(progress, "on_trial_complete", job)
    assert "0/2 teachers and 6/13 trials done" in progress.line()
    assert progress.running == {}


def test_points_that_a_scheduler_stopped_and_their_confirmations_count(search, clock):
    progress = search.progress
    job = search.begin(0, 1)
    tell(progress, "on_trial_start", job)
    tell(progress, "on_trial_result", job, epoch=1, epochs=2, acc=20.0)
    assert "0/13 trials done, kd alpha=1.0 tau=4.0 resnet8/resnet8 fraction 0.02 seed 1 epoch 1/2" in progress.line()
    tell(progress, "on_trial_complete", job)  # without a word of its own
    assert "1/13 trials done" in progress.line()
    job = search.begin(0, 11, "confirm")
    tell(progress, "on_trial_start", job)
    assert "1/13 trials done, confirm kd" in progress.line()
    tell(progress, "on_trial_result", job, epoch=2, epochs=2, acc=20.0, status="completed")
    assert "2/13 trials done" in progress.line()


def test_more_trials_than_were_to_come_leave_no_negative_time(search, clock):
    # A point whose teacher is its own: the teacher was not planned, and takes no place.
    progress = search.progress
    for teacher in search.todo.jobs:
        search.jobs[teacher.id] = teacher
        tell(progress, "on_trial_start", teacher)
        tell(progress, "on_trial_result", teacher, epoch=2, epochs=2, status="completed")
    own = search.todo.jobs[0].model_copy(update={"id": "another"})
    search.jobs["another"] = own
    tell(progress, "on_trial_start", own)
    assert progress.line().startswith("[0 s] 2/3 teachers and 0/13 trials done")
    for point in range(2):
        for seed in range(1, 7):
            job = search.begin(point, seed)
            tell(progress, "on_trial_start", job)
            tell(progress, "on_trial_result", job, epoch=2, epochs=2, acc=20.0, status="completed")
    clock.now += 60
    job = search.begin(0, 11, "confirm")
    tell(progress, "on_trial_start", job)
    tell(progress, "on_trial_result", job, epoch=2, epochs=2, acc=20.0, status="completed")
    tell(progress, "on_trial_result", own, epoch=2, epochs=2, status="completed")
    assert progress.line().endswith("3/3 teachers and 13/13 trials done, about 0 s left")


def test_what_trials_warn_of_is_told_once(jobs, clock):
    progress, out = follow(jobs, terminal=False)
    for job in jobs[1:3]:
        tell(progress, "on_trial_start", job)
        tell(progress, "on_trial_result", job, epoch=1, epochs=2, acc=50.0, warning="no room in /cache")
        tell(progress, "on_trial_result", job, epoch=2, epochs=2, acc=50.0, warning=None, status="completed")
    assert out.getvalue() == "warning: no room in /cache\n"

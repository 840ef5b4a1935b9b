"""What is shown while a sweep runs; Tune is played by the test."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from sweeps import progress as module
from sweeps.job import missing
from sweeps.plan import expand
from sweeps.progress import Progress
from sweeps.spec import parse_text


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

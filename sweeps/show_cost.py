"""What a sweep costs, before and after, and who shares the outputs of teachers, as text."""

import os
from collections.abc import Iterable, Iterator, Mapping
from statistics import median
from typing import Any

import torch

from sweeps.cost import Cost
from sweeps.forecast import Forecast, amount, forecast, predictions
from sweeps.job import Missing
from sweeps.sharing import Sharing
from sweeps.tables import RunTable, Spec
from sweeps.words import count, duration


def teachers(sharing: Sharing) -> Iterator[str]:
    """Whether the outputs of each teacher are shared, by which methods, and why."""
    for choice in sharing.choices:
        how = "shared" if choice.shared else "live"
        trials = count(choice.trials, "trial")
        yield f"outputs of {choice.teacher} for {', '.join(choice.methods)} ({trials}): {how}, as {choice.why}"


def estimate(spec: Spec, todo: Missing, cost: Cost) -> str:
    """How long what is to be run may take here, and what it may cost."""
    run = spec.run
    slots = _slots(run)
    found = forecast(todo, cost, run.cpus, slots)
    teachers = sum(job.role == "teacher" for job in todo.jobs)
    trials = sum(job.trial.probe is None for job in todo.jobs) + sum(search.trials_left for search in todo.searches)
    what = f"{count(todo.trials - teachers, 'trial')} and {count(teachers, 'teacher')} to run"
    if found.unknown == trials:
        return f"{what}; how long they take is known once a trial has ended."
    about = "at most" if spec.scheduler is not None else "about"
    hours, unit = amount(found.slot_seconds, run.cpus, _gpus(run))
    text = f"{what}: {about} {hours:.2g} {unit}, {duration(found.wall_seconds)} on this machine, {slots} at a time"
    if run.price is not None:
        money = hours * run.price
        text += f", for {money:{'.2f' if money >= 1 else '.2g'}} at {run.price:g} an hour"
    return text + "".join(f"; {doubt}" for doubt in _doubts(found, cost)) + "."


def _doubts(found: Forecast, cost: Cost) -> Iterator[str]:
    if found.by_work:
        yield f"{found.by_work} of them are unlike any trial so far: their time is guessed from multiply-adds"
    if found.unknown:
        yield f"{found.unknown} more are not counted, as no trial says anything of them"
    if cost.measured and not cost.is_of_asked_device:
        yield f"as measured on {cost.device}"


def _slots(run: RunTable) -> int:
    """How many trials run at a time on this machine."""
    slots, gpus = (os.cpu_count() or 1) // run.cpus, _gpus(run)
    if gpus and torch.cuda.is_available():
        slots = min(slots, int(torch.cuda.device_count() / gpus + 1e-6))  # of GPUs that are shared by thirds, too
    return max(1, min(slots, run.max_concurrent or slots))


def _gpus(run: RunTable) -> float:
    return run.gpus if run.gpus is not None else float(torch.cuda.is_available())


def predicted(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """How long completed trials took beside what was predicted, if any was."""
    pairs = predictions(rows)
    if pairs:
        total, actual = (sum(values) for values in zip(*pairs, strict=True))
        error = median(abs(guess - took) / took for guess, took in pairs)
        yield (
            f"Training took {duration(actual)} in {count(len(pairs), 'trial')} for which {duration(total)} were "
            f"predicted; the median error is {100 * error:.0f} %."
        )

"""Which points of a study are stopped early; Tune is played by the test."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from kdtrain.config import DataConfig, MethodRef, Recipe, TrialConfig, Where
from sweeps.job import Job
from sweeps.scheduler import InOrder, StudySchedulers
from sweeps.tables import SchedulerTable


class Trial(NamedTuple):
    """What schedulers look at of Tune's trials."""

    trial_id: str


STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE


def job(key: str, phase: str | None = "search", study: str = "s") -> Job:
    trial = TrialConfig(
        data=DataConfig(dataset="fashion_mini"), train=Recipe(epochs=9), student="resnet8",
        method=MethodRef(name="vanilla"), seed=1,
    )  # fmt: skip
    searched = {} if phase is None else {"phase": phase, "study": study, "number": 0}
    return Job(
        id=key, role="student", trial=trial, where=Where(), results="r", source={}, keeps_weights=False,
        searched=searched,
    )  # fmt: skip


class Tune:
    """Tells a scheduler of epochs and ends."""

    def __init__(self, jobs: dict[str, Job], blind: int = 0, **table: object) -> None:
        self.jobs = jobs
        self.pending = [SimpleNamespace(status="PENDING")]  # a trial that waits for a worker
        blinds = {"s": blind, "t": blind}
        self.scheduler = StudySchedulers(SchedulerTable(**{"name": "asha", **table}), jobs, blinds)

    def get_live_trials(self) -> list[SimpleNamespace]:
        return self.pending

    def epoch(self, key: str, trained: int, acc: float | None) -> str:
        trial = Trial(key)
        return self.scheduler.on_trial_result(self, trial, {"trained": trained, "acc": acc, "epoch": trained})

    def end(self, key: str, trained: int, acc: float | None) -> None:
        self.scheduler.on_trial_complete(self, Trial(key), {"trained": trained, "acc": acc, "status": "completed"})


def search_jobs(n: int) -> dict[str, Job]:
    return {str(i): job(str(i)) for i in range(n)}


def test_asha_stops_at_its_rungs_what_is_below_the_best_third():
    tune = Tune(search_jobs(4), reduction_factor=3)  # of 9 epochs: rungs after 1, 3 and 9
    assert tune.epoch("0", 1, 40.0) == CONTINUE  # nothing to compare with
    assert tune.epoch("1", 1, 10.0) == STOP  # the 66.7th percentile of {40} is 40
    assert tune.epoch("2", 1, 20.0) == STOP  # that of {10, 40} is 10 + 2/3 * 30 = 30
    assert tune.epoch("3", 1, 34.0) == CONTINUE  # that of {10, 20, 40}, 4/3 steps from 10, is 20 + 1/3 * 20 = 26.67
    assert tune.epoch("0", 2, 1.0) == CONTINUE  # no rung
    assert tune.epoch("0", 3, 50.0) == CONTINUE
    assert tune.epoch("3", 2, 99.0) == CONTINUE
    assert tune.epoch("3", 3, 49.0) == STOP


def test_grace_moves_the_first_rung():
    tune = Tune(search_jobs(2), grace=2)  # rungs after 2 and 6
    for epoch in (1, 2):
        assert tune.epoch("0", epoch, 40.0) == CONTINUE
    assert tune.epoch("1", 1, 10.0) == CONTINUE
    assert tune.epoch("1", 2, 10.0) == STOP


def test_grace_longer_than_the_trials_stops_nothing():
    tune = Tune(search_jobs(2), grace=100)
    for epoch in range(1, 9):
        assert (tune.epoch("0", epoch, 90.0), tune.epoch("1", epoch, 1.0)) == (CONTINUE, CONTINUE)


def test_studies_are_never_compared():
    tune = Tune({"a": job("a"), "b": job("b", study="t")})
    assert tune.epoch("a", 1, 90.0) == CONTINUE
    assert tune.epoch("b", 1, 10.0) == CONTINUE


@pytest.mark.parametrize("phase", ["confirm", None])
def test_confirmations_and_planned_trials_run_to_their_ends_and_count_for_nobody(phase):
    tune = Tune({**search_jobs(2), "c": job("c", phase)})
    assert tune.epoch("c", 1, 90.0) == CONTINUE
    tune.end("c", 9, 95.0)
    assert tune.epoch("0", 1, 20.0) == CONTINUE
    assert tune.epoch("c", 3, 1.0) == CONTINUE
    assert tune.epoch("1", 1, 10.0) == STOP


def test_idling_trials_are_no_jobs():
    tune = Tune({})
    trial = Trial("idle")
    assert tune.scheduler.on_trial_result(tune, trial, {"done": True}) == CONTINUE
    tune.scheduler.on_trial_complete(tune, trial, {"done": True})


def test_blind_epochs_are_not_seen_and_move_the_rungs():
    tune = Tune(search_jobs(3), blind=4)  # rungs after 5 epochs, and after 15, which there are not
    for epoch in range(1, 5):
        assert tune.epoch("0", epoch, 90.0) == CONTINUE
        assert tune.epoch("1", epoch, 1.0) == CONTINUE
    assert tune.epoch("0", 5, 30.0) == CONTINUE
    assert tune.epoch("1", 5, 20.0) == STOP
    assert tune.epoch("2", 5, 31.0) == CONTINUE


def test_stage_before_the_recipes_epochs_is_not_seen():
    tune = Tune(search_jobs(2))
    assert tune.epoch("0", 0, None) == CONTINUE
    assert tune.epoch("1", 0, None) == CONTINUE
    assert tune.epoch("0", 1, 30.0) == CONTINUE
    assert tune.epoch("1", 1, 20.0) == STOP


def test_accuracy_at_the_end_counts_for_others():
    # Tune tells of the last epoch by the end alone.
    tune = Tune(search_jobs(2), grace=9)
    tune.epoch("0", 8, 50.0)
    tune.end("0", 9, 60.0)
    assert tune.epoch("1", 9, 55.0) == STOP


def test_end_of_a_trial_that_was_never_seen_is_no_error():
    tune = Tune(search_jobs(1))
    tune.end("0", 9, 60.0)  # completed in an earlier worker
    tune.scheduler.on_trial_complete(tune, Trial("0"), {"status": "failed", "epoch": 0})
    assert tune.scheduler.seen == set()
    assert tune.epoch("0", 1, 10.0) == CONTINUE  # the first one at its rung: nothing was remembered


@pytest.mark.parametrize(("name", "brackets"), [("asha", 1), ("hyperband", 3)])
def test_decides_as_rays_own_scheduler_of_the_same_numbers(name, brackets):
    bare = AsyncHyperBandScheduler(
        time_attr="trained", metric="acc", mode="max", max_t=9, grace_period=1, reduction_factor=2,
        brackets=brackets, stop_last_trials=False,
    )  # fmt: skip
    tune = Tune(search_jobs(30), name=name, reduction_factor=2)
    accuracy = np.random.default_rng(3).uniform(10, 90, size=(30, 9)).tolist()

    def theirs(key: str, epoch: int, acc: float) -> str:
        if epoch == 1:
            bare.on_trial_add(None, Trial(key))
        return bare.on_trial_result(None, Trial(key), {"trained": epoch, "acc": acc})

    def decisions(tell: Callable[[str, int, float], str]) -> dict[tuple[str, int], str]:
        np.random.seed(5)  # noqa: NPY002 - Ray draws the bracket of a trial from the global generator
        found: dict[tuple[str, int], str] = {}
        for epoch in range(1, 9):
            for key in tune.jobs:
                if epoch == 1 or found.get((key, epoch - 1)) == CONTINUE:
                    found[key, epoch] = tell(key, epoch, accuracy[int(key)][epoch])
        return found

    ours = decisions(tune.epoch)
    assert ours == decisions(theirs)
    assert set(ours.values()) == {STOP, CONTINUE}


def test_median_stops_what_is_below_the_median_of_the_others_means_and_pauses_nothing():
    tune = Tune(search_jobs(5), name="median", grace=2)
    for key, acc in (("0", 10.0), ("1", 20.0), ("2", 30.0)):
        for epoch in (1, 2, 3):
            # With fewer than three others none is stopped, nor paused, though a trial waits.
            assert tune.epoch(key, epoch, acc) == CONTINUE
    assert tune.epoch("3", 1, 1.0) == CONTINUE  # grace
    assert tune.epoch("3", 2, 1.0) == STOP  # the median of 10, 20 and 30
    assert tune.epoch("4", 1, 1.0) == CONTINUE
    assert tune.epoch("4", 2, 25.0) == CONTINUE


def test_tune_may_pickle_it():
    assert Tune(search_jobs(1)).scheduler.__getstate__() == {}


def test_trials_of_earlier_runs_count_as_if_they_had_run_now():
    # 9 epochs, a third goes on at the rungs 1, 3 and 9; the first epoch says nothing, which moves them to 2 and 6.
    curves = {"old1": {1: 99.0, 2: 50.0}, "old2": {1: 99.0, 2: 60.0, 3: 61.0}}
    fresh, resumed = (Tune(search_jobs(4), blind=1) for _ in range(2))
    for key, curve in zip("01", curves.values(), strict=True):
        for epoch, acc in curve.items():
            fresh.epoch(key, epoch, acc)
        fresh.end(key, max(curve), curve[max(curve)])
    study = SimpleNamespace(id="s", example=search_jobs(1)["0"].trial)
    resumed.scheduler.remember(SimpleNamespace(study=study, curves=curves, blind=1))
    decisions = [tune.epoch(key, 2, acc) for tune in (fresh, resumed) for key, acc in (("2", 55.0), ("3", 70.0))]
    assert decisions == [STOP, CONTINUE, STOP, CONTINUE]


def test_trials_begin_in_the_order_in_which_they_were_added_where_more_wait_than_there_are_places():
    order, trials = InOrder(), [Waiting() for _ in range(4)]
    order.places = 2
    for trial in trials[:2]:
        order.on_trial_add(None, trial)
    assert order.choose_trial_to_run(None) is None  # a worker starts for each
    for trial in trials[2:]:
        order.on_trial_add(None, trial)
    assert order.choose_trial_to_run(None) is trials[0]
    trials[0].status = "RUNNING"
    assert order.choose_trial_to_run(None) is trials[1]
    trials[1].status = "TERMINATED"
    assert order.choose_trial_to_run(None) is trials[2]
    trials[0].status = "PENDING"  # its worker died
    assert order.choose_trial_to_run(None) is trials[0]
    trials[0].status = "ERROR"
    assert order.choose_trial_to_run(None) is None  # two are left


class Waiting(SimpleNamespace):
    """A trial of Tune's that waits for a worker."""

    def __init__(self) -> None:
        super().__init__(status="PENDING")

    def is_finished(self) -> bool:
        return self.status in ("ERROR", "TERMINATED")

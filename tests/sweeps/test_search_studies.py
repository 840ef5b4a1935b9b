"""Studies asked for trials by Tune, which is played by the test: what is handed out when, and that it always ends."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from ray.tune.search import ConcurrencyLimiter
from rich.console import Console

from kdtrain.record import TrialResult
from sweeps import run
from sweeps.cost import Cost
from sweeps.ended import end
from sweeps.job import Job, Missing, asked, missing
from sweeps.plan import expand
from sweeps.schema import Status
from sweeps.search import SweepSearch
from sweeps.searches import searches
from sweeps.spec import parse_text
from sweeps.store import TEACHERS, Store, StoreError
from sweeps.tables import RunTable
from sweeps.trainable import TrialTrainable

TEXT = """
[sweep]
name = "tuned"
[data]
dataset = "fashion_mini"
val_size = 100
[train]
epochs = 6
[teacher]
epochs = 1
[grid]
pair = ["resnet14/resnet8", "resnet20/resnet8"]
method = ["kd"]
fraction = [0.02]
seed = [1]
[search]
sampler = "random"
trials = 3
[confirm]
top = 2
seed = [11]
"""
ONE_PAIR = ('"resnet14/resnet8", "resnet20/resnet8"', '"resnet14/resnet8"')
COMPLETED = {"status": "completed", "epoch": 6, "trained": 6, "seconds": 6.0, "done": True}
STOPPED = {"epoch": 2, "epochs": 6, "trained": 2, "acc": 20.0, "seconds": 2.0, "device": "cpu", "done": True}


def altered(*changes: tuple[str, str]) -> str:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture
def todo(tmp_path) -> Callable[..., Missing]:
    """What a spec still has to do, with the rows that there are in tmp_path."""

    def todo(text: str = TEXT, *, retry_failed: bool = False) -> Missing:
        text += f"[run]\nresults = '{tmp_path}'\n"
        spec = parse_text(text)
        plan = expand(spec)
        own = Store(str(tmp_path), "tuned")
        open_points = [job.asked for job in asked(own)]
        found = searches(spec, plan, own, open_points, retry_failed=retry_failed)
        return missing(spec, text, plan, retry_failed, found)

    return todo


@dataclass
class Tune:
    """Asks a searcher for trials as Tune does: never again after FINISHED, and workers begin in order."""

    search: SweepSearch
    running: dict[str, Job] = field(default_factory=dict)
    finished: bool = False
    asked: int = 0
    idled: int = 0
    handed: list[Job] = field(default_factory=list)

    def ask(self) -> Job | None:
        """The job of the next trial; None if it idles, for which it takes no time, or if there is none."""
        if self.finished:
            return None
        key = str(self.asked)
        self.asked += 1
        given = self.search.suggest(key)
        self.finished = given == SweepSearch.FINISHED
        if given is None or self.finished:
            return None
        if "idle" in given:
            self.idled += 1
            self.search.on_trial_complete(key, {"done": True})
            return None
        job = Job.model_validate_json(given["job"])
        assert job == self.search.jobs[key]
        assert job.key not in {other.key for other in self.running.values()}
        self.running[key] = job
        self.handed.append(job)
        return job

    def end(self, job: Job, result: dict[str, Any] | None, *, error: bool = False) -> None:
        """A trial has ended; of a stopped one its worker writes nothing, of others all that it leaves."""
        key = next(key for key, other in self.running.items() if other.key == job.key)
        if not error and result is not None and "status" in result:
            leave(job, Status(result["status"]), result.get("acc"))
        del self.running[key]
        self.search.on_trial_complete(key, result, error)

    def play(self, outcome: Callable[[Job], dict[str, Any]], workers: int = 2) -> list[Job]:
        """Run all that comes, the oldest trial ending first; the jobs in the order of handing out."""
        vain = 0
        while not self.finished or self.running:
            while len(self.running) < workers and self.ask() is not None:
                vain = 0
            vain += 1
            assert self.running or self.finished or vain < 20, "workers idle for ever"
            if self.running:
                job = next(iter(self.running.values()))
                self.end(job, outcome(job))
        return self.handed


def leave(job: Job, status: Status, acc: float | None = None) -> None:
    """Write what a worker leaves: a row, and of a teacher its weights."""
    result = TrialResult(
        test_top1=60.0, test_top5=90.0, test_nll=1.0, test_ece=1.0, test_aurc=1.0, test_eaurc=1.0,
        class_recall=(60.0,) * 10, val_acc=acc, best_epoch=6, best_acc=60.0, best_split="val", n_train=118,
        student_params=1000, train_seconds=6.0,
    )  # fmt: skip
    error = ("Error", "Error: broken") if status in (Status.FAILED, Status.DIVERGED) else None
    end(
        job, status, epochs_done=6, device="cpu", started_at=datetime(2026, 1, 1, tzinfo=UTC), error=error,
        result=result if status == Status.COMPLETED else None,
    )  # fmt: skip
    if job.keeps_weights and status == Status.COMPLETED:
        job.store.write_bytes(b"weights", "models", f"{job.id}.safetensors")


def works(job: Job) -> dict[str, Any]:
    """Every trial completes, and the later a point was asked for, the better it is."""
    return {**COMPLETED, "acc": 50.0 + job.searched.get("number", 0)}


def ready(tune: Tune) -> Tune:
    """The two teachers of a pair are trained: that of the search and that of the confirmations."""
    for job in [tune.ask(), tune.ask()]:
        tune.end(job, works(job))
    return tune


def kinds(jobs: list[Job]) -> list[str]:
    """`teacher NETWORK`, or phase and number of each job."""
    return [
        f"teacher {job.trial.student}" if job.role == "teacher" else f"{job.searched['phase']} {job.searched['number']}"
        for job in jobs
    ]


def rows(job_or_folder: Any, sweep: str = "tuned") -> list[dict[str, Any]]:
    return Store(str(job_or_folder), sweep).read_trials().to_pylist()


def left_over(folder: Any) -> list[str]:
    return [path.name for kind in ("asked", "checkpoints") for path in (folder / "tuned" / kind).glob("*")]


def test_teachers_first_then_the_study_with_the_fewest_trials_under_way(todo):
    tune = Tune(SweepSearch(todo()))
    # Those of the search and those of the confirmations, which see all images. They are as long, so in their order.
    teachers = [tune.ask() for _ in range(4)]
    assert [(job.trial.student, job.trial.data.val_size) for job in teachers] == [
        ("resnet14", 100), ("resnet14", 0), ("resnet20", 100), ("resnet20", 0)
    ]  # fmt: skip
    assert tune.ask() is None
    assert tune.idled == 1
    tune.end(teachers[2], works(teachers[2]))
    first, second = tune.ask(), tune.ask()
    assert [job.trial.teacher.model for job in (first, second)] == ["resnet20"] * 2  # the only one that is ready
    tune.end(teachers[0], works(teachers[0]))
    assert [tune.ask().trial.teacher.model for _ in range(3)] == ["resnet14", "resnet14", "resnet14"]
    assert tune.ask().trial.teacher.model == "resnet20"  # its last: three under way there, and two here
    assert tune.ask() is None  # both budgets are spent


def test_ends_when_the_budgets_are_spent_and_the_best_of_each_study_are_confirmed(todo, tmp_path):
    jobs = Tune(SweepSearch(todo())).play(works)
    assert Counter(kinds(jobs)) == {
        **{f"teacher {name}": 2 for name in ("resnet14", "resnet20")},
        **{f"search {number}": 2 for number in range(3)},
        **{f"confirm {number}": 2 for number in (1, 2)},
    }
    assert len({job.key for job in jobs}) == len(jobs)
    confirmed = [job for job in jobs if job.searched.get("phase") == "confirm"]
    assert {(job.trial.data.val_size, job.trial.seed) for job in confirmed} == {(0, 11)}
    for job in confirmed:
        (own,) = {other.id for other in jobs if other.id == job.trial.teacher.id}
        assert own in Store(str(tmp_path), TEACHERS).ids("models")
        (point,) = [other for other in jobs if other.searched == {**job.searched, "phase": "search"}]
        assert (job.trial.method, job.searched["point"]) == (point.trial.method, point.searched["point"])
    assert len(rows(tmp_path)) == 10
    assert left_over(tmp_path) == []
    again = todo()
    assert (again.trials, again.done, again.jobs) == (0, 10, [])


def test_confirmations_begin_when_all_points_of_their_study_have_ended_and_not_before(todo):
    tune = ready(Tune(SweepSearch(todo(altered(ONE_PAIR)))))
    points = [tune.ask() for _ in range(3)]
    for job in (points[2], points[0]):
        tune.end(job, works(job))
        assert tune.ask() is None
    tune.end(points[1], works(points[1]))
    assert kinds([tune.ask(), tune.ask()]) == ["confirm 2", "confirm 1"]
    assert tune.ask() is None
    assert tune.finished


def test_points_are_asked_for_while_the_teachers_of_confirmations_train(todo):
    tune = Tune(SweepSearch(todo(altered(ONE_PAIR))))
    own, whole = tune.ask(), tune.ask()
    tune.end(own, works(own))
    for number in range(3):
        job = tune.ask()
        assert kinds([job]) == [f"search {number}"]
        tune.end(job, works(job))
    assert (tune.ask(), tune.idled) == (None, 1)  # the confirmations wait
    tune.end(whole, works(whole))
    assert kinds([tune.ask(), tune.ask()]) == ["confirm 2", "confirm 1"]


def test_within_the_limit_of_trials_at_once(todo):
    search = SweepSearch(todo(altered(ONE_PAIR)))
    limited = ConcurrencyLimiter(search, max_concurrent=2)
    first, second = limited.suggest("a"), limited.suggest("b")
    assert "job" in first
    assert "job" in second
    assert limited.suggest("c") is None
    leave(search.jobs["a"], Status.COMPLETED)
    limited.on_trial_complete("a", works(search.jobs["a"]))
    assert kinds([Job.model_validate_json(limited.suggest("d")["job"])]) == ["search 0"]
    assert limited.suggest("e") is None
    assert [len(study.points) for study in search.studies.values()] == [1]


def test_methods_without_a_teacher_are_one_study_in_all_pairs(todo):
    # The pairs differ in what vanilla does not look at, and it has nothing to search: one point.
    jobs = Tune(SweepSearch(todo(altered(('"kd"', '"vanilla"'))))).play(works)
    assert kinds(jobs) == ["search 0", "confirm 0"]


def test_stopped_trial_gets_its_row_and_nothing_of_it_is_left(todo, tmp_path):
    tune = ready(Tune(SweepSearch(todo(altered(ONE_PAIR, ("trials = 3", "trials = 1"), ("top = 2", "top = 1"))))))
    job = tune.ask()
    assert left_over(tmp_path) == [f"{job.id}.json"]
    assert [other.id for other in asked(job.store)] == [job.id]
    job.store.write_bytes(b"state", "checkpoints", f"{job.id}.pt")
    tune.end(job, STOPPED)
    (row,) = rows(tmp_path)
    assert {key: row[key] for key in ("trial_id", "status", "val_acc", "epochs_done", "train_seconds", "device")} == {
        "trial_id": job.id, "status": "stopped", "val_acc": 20.0, "epochs_done": 2, "train_seconds": 2.0,
        "device": "cpu",
    }  # fmt: skip
    assert (row["phase"], row["number"], row["origin"], row["test_top1"]) == ("search", 0, "start", None)
    assert json.loads(row["point"]) == {"alpha": 0.9, "tau": 4.0}
    assert row["started_at"] <= row["ended_at"]
    assert left_over(tmp_path) == []
    assert tune.ask() is None
    assert tune.finished  # no point has completed, so there is none to confirm


def test_optuna_knows_the_last_epoch_of_a_stopped_trial_and_each_before(todo):
    search = SweepSearch(todo(altered(ONE_PAIR, ("trials = 3", "trials = 2"))))
    tune = ready(Tune(search))
    (study,) = search.studies.values()
    job = tune.ask()
    # Tune tells of an epoch unless the trial is stopped by it.
    search.on_trial_result(next(iter(tune.running)), {**STOPPED, "trained": 1, "acc": 10.0, "done": False})
    tune.end(job, STOPPED)
    (trial,) = study.optuna.get_trials()
    assert (trial.state.name, trial.intermediate_values, trial.value) == ("PRUNED", {1: 10.0, 2: 20.0}, 20.0)


@pytest.mark.parametrize(("status", "error"), [("diverged", False), ("failed", False), (None, True)])
def test_points_that_diverge_or_fail_are_told_as_failed_and_count(todo, tmp_path, status, error):
    search = SweepSearch(todo(altered(ONE_PAIR)))
    tune = ready(Tune(search))
    (study,) = search.studies.values()
    bad = tune.ask()
    tune.end(bad, None if error else {**COMPLETED, "status": status}, error=error)
    assert [trial.state.name for trial in study.optuna.get_trials()] == ["FAIL"]
    jobs = tune.play(works)
    assert kinds(jobs)[2:] == ["search 0", "search 1", "search 2", "confirm 2", "confirm 1"]


def test_point_whose_worker_died_after_its_row_keeps_its_accuracy(todo, tmp_path):
    search = SweepSearch(todo(altered(ONE_PAIR)))
    tune = ready(Tune(search))
    (study,) = search.studies.values()
    job = tune.ask()
    leave(job, Status.COMPLETED, 61.0)
    job.store.write_bytes(b"{}", "asked", f"{job.id}.json")  # it died before it could remove this
    trainable = TrialTrainable.__new__(TrialTrainable)  # that of the next worker, without Tune's logging set-up
    trainable.setup({"job": job.model_dump_json()})
    told = trainable.step()
    assert left_over(tmp_path) == []
    search.on_trial_complete(next(iter(tune.running)), told)
    assert study.optuna.get_trials()[0].value == 61.0


def test_failed_confirmation_is_not_replaced(todo):
    def outcome(job: Job) -> dict[str, Any]:
        return works(job) if job.searched.get("phase") != "confirm" else {**COMPLETED, "status": "diverged"}

    jobs = Tune(SweepSearch(todo(altered(ONE_PAIR)))).play(outcome)
    assert kinds(jobs)[-2:] == ["confirm 2", "confirm 1"]
    assert todo(altered(ONE_PAIR)).trials == 0
    assert todo(altered(ONE_PAIR), retry_failed=True).trials == 2


def fails(*students: str) -> Callable[[Job], dict[str, Any]]:
    """The training of these teachers diverges, and all else works."""

    def outcome(job: Job) -> dict[str, Any]:
        bad = job.role == "teacher" and job.trial.student in students
        return {**COMPLETED, "status": "diverged"} if bad else works(job)

    return outcome


def given_up(search: SweepSearch) -> list[tuple[str, int]]:
    return [(other.by, other.trials) for other in search.blocked if other.job.role != "teacher"]


def test_failed_teacher_gives_up_its_study_and_the_other_goes_on(todo):
    search = SweepSearch(todo())
    jobs = Tune(search).play(fails("resnet14"))
    # 3 points and 2 confirmations would still have run.
    assert given_up(search) == [("teacher resnet14 without 100 held-out images", 5)]
    assert Counter(job.trial.teacher.model for job in jobs if job.role == "student") == {"resnet20": 5}
    again = todo()
    assert [(other.by, other.trials) for other in again.blocked] == [
        ("teacher resnet14 without 100 held-out images", 5)
    ]
    assert again.trials == 0
    search = SweepSearch(todo(retry_failed=True))
    jobs = Tune(search).play(works)
    assert Counter(job.trial.teacher.model for job in jobs if job.role == "student") == {"resnet14": 5}
    assert search.blocked == []


def test_ray_is_not_started_for_what_cannot_be_run(todo, monkeypatch):
    Tune(SweepSearch(todo(OWN))).play(fails("resnet14"))
    left = todo(OWN)
    assert left.trials > 0  # whose teachers the plan does not know
    monkeypatch.setattr(run, "_start_ray", lambda: pytest.fail("Ray was started"))
    blocked = run.run(left, RunTable(), None, Cost(()), Console())
    assert [(other.by, other.trials) for other in blocked] == [("teacher resnet14 without 100 held-out images", 1)] * 3


def test_failed_teacher_on_all_images_gives_up_the_confirmations_alone(todo):
    def outcome(job: Job) -> dict[str, Any]:
        bad = job.role == "teacher" and job.trial.data.val_size == 0
        return {**COMPLETED, "status": "diverged"} if bad else works(job)

    search = SweepSearch(todo(altered(ONE_PAIR)))
    jobs = Tune(search).play(outcome)
    assert kinds(jobs)[2:] == ["search 0", "search 1", "search 2"]
    assert given_up(search) == [("teacher resnet14", 1)] * 2
    later = SweepSearch(todo(altered(ONE_PAIR)))  # knows of the failure from its row
    assert Tune(later).play(outcome) == []
    assert given_up(later) == [("teacher resnet14", 1)] * 2


def test_points_under_way_whose_teacher_fails_are_given_up_with_their_study(todo):
    text = altered(ONE_PAIR)
    tune = Tune(SweepSearch(todo(text)))
    teachers = [tune.ask(), tune.ask()]
    for job in teachers:
        tune.end(job, works(job))
    assert kinds([tune.ask()]) == ["search 0"]
    for job in teachers:  # killed here, and the weights are lost
        job.store.delete("models", f"{job.id}.safetensors")
    search = SweepSearch(todo(text))
    jobs = Tune(search).play(fails("resnet14"))
    assert kinds(jobs) == ["teacher resnet14"] * 2
    # The point under way, then the other two and the two confirmations.
    by = "teacher resnet14 without 100 held-out images"
    assert given_up(search) == [(by, 1), (by, 4)]


OWN = altered(ONE_PAIR, ('["kd"]', '[{ name = "dgkd", assistants = ["wrn_16_1"] }]'))


def test_teachers_of_points_are_trained_before_them_and_shared(todo, tmp_path):
    # One teacher for all points, and one for the confirmations, which see all images.
    text = altered(ONE_PAIR, ('["kd"]', '["tf_kd"]'))
    jobs = Tune(SweepSearch(todo(text))).play(works)
    assert kinds(jobs) == [
        "teacher resnet8", "search 0", "search 1", "search 2", "teacher resnet8", "confirm 2", "confirm 1"
    ]  # fmt: skip
    assert [job.trial.data.val_size for job in jobs] == [100] * 4 + [0] * 3
    assert left_over(tmp_path) == []
    assert todo(text).trials == 0


def test_assistants_learn_with_the_parameters_of_their_point(todo, tmp_path):
    jobs = Tune(SweepSearch(todo(OWN))).play(works)
    assert Counter(kind.rpartition(" ")[0] for kind in kinds(jobs)) == {"teacher": 7, "search": 3, "confirm": 2}
    assert Counter(job.trial.student for job in jobs) == {"resnet14": 2, "wrn_16_1": 5, "resnet8": 5}
    for i, job in enumerate(jobs):
        assert job.requirements <= {other.id for other in jobs[:i]}
    assert left_over(tmp_path) == []
    assert todo(OWN).trials == 0


def test_points_with_other_recipes_have_teachers_of_their_own(todo):
    text = altered(ONE_PAIR, ('["kd"]', '["tf_kd"]')) + "[search.space.train]\nlr = [0.1, 0.2, 0.4]\n"
    text += "[search.space.tf_kd]\nalpha = [0.5]\n"
    jobs = Tune(SweepSearch(todo(text))).play(works)
    assert Counter(kind.partition(" ")[0] for kind in kinds(jobs)) == {"teacher": 5, "search": 3, "confirm": 2}
    for i, job in enumerate(jobs):
        assert job.requirements <= {other.id for other in jobs[:i]}
    teachers = [job.trial for job in jobs if job.role == "teacher"]
    assert {(trial.train.lr, trial.data.val_size) for trial in teachers} >= {(lr, 100) for lr in (0.1, 0.2, 0.4)}


def test_failed_teacher_of_a_point_fails_the_point_and_the_study_goes_on(todo):
    text = altered(ONE_PAIR, ('["kd"]', '["tf_kd"]')) + "[search.space.train]\nlr = [0.1, 0.2, 0.4]\n"
    text += "[search.space.tf_kd]\nalpha = [0.5]\n"

    def outcome(job: Job) -> dict[str, Any]:
        bad = job.role == "teacher" and job.trial.train.lr == 0.2
        return {**COMPLETED, "status": "diverged"} if bad else works(job)

    search = SweepSearch(todo(text))
    jobs = Tune(search).play(outcome)
    assert Counter(kind.partition(" ")[0] for kind in kinds(jobs)) == {"teacher": 5, "search": 2, "confirm": 2}
    assert given_up(search) == [("teacher resnet8 fraction 0.02 without 100 held-out images", 1)]
    assert {job.trial.train.lr for job in jobs if job.role == "student"} == {0.1, 0.4}
    # It has no row, as trials of a grid whose teacher failed: it is tried when the teacher is.
    assert len(asked(jobs[0].store)) == 0  # the teachers' folder
    later = SweepSearch(todo(text))
    assert Tune(later).play(works) == []
    assert given_up(later) == given_up(search)
    again = Tune(SweepSearch(todo(text, retry_failed=True))).play(works)
    assert [job.trial.train.lr for job in again][:2] == [0.2, 0.2]
    assert Counter(kind.partition(" ")[0] for kind in kinds(again))["search"] == 1


@pytest.mark.parametrize("bad", ["resnet14", "wrn_16_1"])
def test_failed_teacher_of_all_points_fails_each_and_the_study_ends(todo, bad):
    search = SweepSearch(todo(OWN))
    jobs = Tune(search).play(fails(bad))
    assert {job.role for job in jobs} == {"teacher"}
    assert [trials for _, trials in given_up(search)] == [1, 1, 1]
    assert search.studies == {}


def test_assistants_whose_teacher_is_lost_are_not_waited_for(todo):
    # Each recipe has its own assistant, and all of them learn from the one teacher that fails.
    text = OWN + "[search.space.train]\nlr = [0.1, 0.2, 0.4]\n[search.space.dgkd]\nlam = [0.5]\n"
    search = SweepSearch(todo(text))
    jobs = Tune(search).play(fails("resnet14"))
    assert kinds(jobs) == ["teacher resnet14"]
    assert given_up(search) == [("teacher resnet14 without 100 held-out images", 1)] * 3


def test_teacher_of_a_point_that_failed_in_an_earlier_run_is_not_trained_again(todo):
    Tune(SweepSearch(todo(OWN))).play(fails("wrn_16_1"))
    search = SweepSearch(todo(OWN))
    assert Tune(search).play(works) == []
    assert len(given_up(search)) == 3
    jobs = Tune(SweepSearch(todo(OWN, retry_failed=True))).play(works)
    assert Counter(kinds(jobs)) == {
        "teacher wrn_16_1": 5, "teacher resnet14": 1, **{f"search {i}": 1 for i in range(3)},
        "confirm 1": 1, "confirm 2": 1,
    }  # fmt: skip


SEEDS = altered(
    ONE_PAIR, ("seed = [1]", "seed = [1, 2, 3, 4, 5, 6]"), ("top = 2", "top = 1"),
    ("trials = 3", 'trials = 2\nscore = "mean_over_seeds"'),
)  # fmt: skip


def wilcoxon(todo: Callable[..., Missing]) -> Missing:
    return todo(SEEDS.replace("[confirm]", '[scheduler]\nname = "wilcoxon"\n[confirm]'))


def test_all_seeds_of_a_point_run_at_once_and_the_mean_is_told(todo, tmp_path):
    # Without a scheduler there is nothing to be spared; the check of specs wants wilcoxon beside mean_over_seeds only.
    search = SweepSearch(todo(SEEDS.replace("trials = 2", "trials = 1")))
    (study,) = search.studies.values()
    tune = ready(Tune(search))
    jobs = [tune.ask() for _ in range(6)]
    assert [(job.searched["number"], job.trial.seed) for job in jobs] == [(0, seed) for seed in range(1, 7)]
    assert len(asked(jobs[0].store)) == 6
    for job in jobs:
        assert study.optuna.get_trials()[0].state.name == "RUNNING"
        tune.end(job, {**COMPLETED, "acc": 10.0 * job.trial.seed})
    assert study.optuna.get_trials()[0].value == 35.0  # (10 + ... + 60) / 6
    assert kinds([tune.ask()]) == ["confirm 0"]
    assert left_over(tmp_path) == []


def test_seeds_run_one_by_one_where_some_may_be_spared(todo, tmp_path):
    search = SweepSearch(wilcoxon(todo), p_threshold=0.1)
    tune = ready(Tune(search))
    for seed in range(1, 7):
        job = tune.ask()
        assert (job.searched["number"], job.trial.seed) == (0, seed)
        tune.end(job, {**COMPLETED, "acc": 50.0 + seed})
    lost = []
    while (job := tune.ask()) is not None and job.searched["phase"] == "search":
        lost.append(job.trial.seed)
        tune.end(job, {**COMPLETED, "acc": 10.0})
    # Worse with each seed: the p of n differences of one sign is 2^-n, which is below 0.1 from the fourth on.
    assert lost == [1, 2, 3, 4]
    assert [other.trial.seed for other in search.skipped] == [5, 6]
    assert kinds([job]) == ["confirm 0"]
    second = [row for row in rows(tmp_path) if row["number"] == 1]
    assert {row["seed"]: (row["status"], row["epochs_done"], row["val_acc"]) for row in second} == {
        **dict.fromkeys((1, 2, 3, 4), ("completed", 6, 10.0)),
        **dict.fromkeys((5, 6), ("stopped", 0, None)),
    }
    assert {row["trial_id"] for row in second if row["seed"] > 4} == {other.id for other in search.skipped}
    assert left_over(tmp_path) == []
    assert wilcoxon(todo).done == 12


def test_seeds_of_a_point_whose_teacher_failed_are_given_up_one_after_the_other(todo):
    text = SEEDS.replace('["kd"]', '["tf_kd"]').replace("[confirm]", '[scheduler]\nname = "wilcoxon"\n[confirm]')
    search = SweepSearch(todo(text), p_threshold=0.1)
    jobs = Tune(search).play(fails("resnet8"))
    assert kinds(jobs) == ["teacher resnet8"]
    assert len(given_up(search)) == 12  # 2 points with 6 seeds


def test_failed_seed_fails_its_point_and_the_other_seeds_still_run(todo):
    text = SEEDS.replace("trials = 2", "trials = 1")
    search = SweepSearch(todo(text))
    (study,) = search.studies.values()
    tune = ready(Tune(search))
    jobs = [tune.ask() for _ in range(6)]
    for job in jobs:
        bad = job.trial.seed == 2
        tune.end(job, {**COMPLETED, "status": "diverged"} if bad else {**COMPLETED, "acc": 60.0})
    assert study.optuna.get_trials()[0].state.name == "FAIL"
    assert tune.ask() is None
    assert tune.finished
    again = [job for job in Tune(SweepSearch(todo(text, retry_failed=True))).play(works) if job.role == "student"]
    assert [(job.searched["phase"], job.trial.seed) for job in again] == [("search", 2), ("confirm", 11)]


def test_store_that_fails_in_a_worker_begins_nothing_more(todo):
    tune = ready(Tune(SweepSearch(todo(altered(ONE_PAIR)))))
    first, second = tune.ask(), tune.ask()
    tune.end(first, {"done": True, "store_error": "cannot write x: No space left on device."})
    tune.search.on_trial_result(next(iter(tune.running)), {**STOPPED, "done": False})  # the other one goes on
    tune.end(second, None)
    assert tune.ask() is None
    assert tune.finished
    assert tune.search.store_error == "cannot write x: No space left on device."


@pytest.mark.parametrize("at", ["asking", "stopping"])
def test_store_that_fails_in_the_driver_begins_nothing_more(todo, monkeypatch, at):
    tune = ready(Tune(SweepSearch(todo(altered(ONE_PAIR)))))
    first, second = tune.ask(), tune.ask()

    def full(self, data: bytes, *parts: str) -> None:
        raise StoreError("cannot write y: No space left on device.")

    monkeypatch.setattr(Store, "write_bytes", full)
    if at == "asking":
        assert tune.ask() is None
    else:
        tune.end(first, STOPPED)
    tune.search.on_trial_result("3", {**STOPPED, "done": False})
    tune.search.on_trial_complete("3", STOPPED)
    assert tune.search.suggest("last") == SweepSearch.FINISHED
    assert tune.search.store_error == "cannot write y: No space left on device."
    assert second is not None


def test_two_objectives_are_told_in_their_order_and_the_front_is_confirmed(todo, tmp_path):
    text = altered(
        ("resnet14/resnet8", "resnet14/*"), (', "resnet20/resnet8"', ""), ('"random"', '"grid"'), ("trials = 3", ""),
        ("[confirm]", "[search.space.kd]\ntau = [4.0]\n[confirm]"),
        ("[confirm]", "[search.space.student]\nresnet = { depth = [8, 14, 20] }\n[confirm]"),
    ).replace("[search]", '[search]\nobjectives = ["val_acc", "params"]')  # fmt: skip
    search = SweepSearch(todo(text))
    (study,) = search.studies.values()
    accuracies = {"resnet8": 50.0, "resnet14": 60.0, "resnet20": 55.0}

    def outcome(job: Job) -> dict[str, Any]:
        return {**COMPLETED, "acc": accuracies[job.trial.student]}

    tune = ready(Tune(search))
    jobs = tune.play(lambda job: outcome(job) if job.role == "student" else works(job))
    told = {trial.params["resnet.depth"]: trial.values for trial in study.optuna.get_trials()}
    assert [values[0] for _, values in sorted(told.items())] == [50.0, 60.0, 55.0]
    params = [values[1] for _, values in sorted(told.items())]
    assert params == sorted(params)
    # resnet20 is larger and worse than resnet14: it is not of the front.
    confirmed = [job.trial.student for job in jobs if job.searched.get("phase") == "confirm"]
    assert confirmed == ["resnet14", "resnet8"]
    found = {row["student"]: row for row in rows(tmp_path) if row["phase"] == "search"}
    assert all(row["student_macs"] > 0 and row["objectives"] == ["val_acc", "params"] for row in found.values())


def test_replayed_search_needs_no_teacher(todo, tmp_path):
    text = altered(ONE_PAIR) + f"[run]\nreplay = 'stored'\nresults = '{tmp_path}'\n"
    spec = parse_text(text)
    plan = expand(spec)
    own = Store(str(tmp_path), "tuned")
    found = searches(spec, plan, own, [])
    jobs = Tune(SweepSearch(missing(spec, text, plan, False, found))).play(works)
    assert kinds(jobs) == ["search 0", "search 1", "search 2", "confirm 2", "confirm 1"]
    assert {job.replay for job in jobs} == {"stored"}


def test_no_trial_is_handed_out_twice_whatever_the_order_of_ends(todo):
    tune = Tune(SweepSearch(todo()))
    jobs = []
    while not tune.finished or tune.running:
        while (job := tune.ask()) is not None:
            jobs.append(job)
        if tune.running:
            last = list(tune.running.values())[-1]
            tune.end(last, works(last))
    assert Counter(kind.partition(" ")[0] for kind in kinds(jobs)) == {"teacher": 4, "search": 6, "confirm": 4}
    assert len({job.key for job in jobs}) == 14


def each_kill(todo: Callable[..., Missing], text: str) -> Iterator[list[Job]]:
    """Runs that are killed after 0, 1, 2, ... ends, one after the other on the same results."""
    for ends in range(100):
        tune, n = Tune(SweepSearch(todo(text))), 0
        while not tune.finished or tune.running:
            while len(tune.running) < 2 and tune.ask() is not None:
                pass
            if n == ends:
                break
            if tune.running:
                job = next(iter(tune.running.values()))
                tune.end(job, works(job))
                n += 1
        yield tune.handed
        if tune.finished and not tune.running:
            return


@pytest.mark.parametrize("text", [TEXT, OWN, SEEDS])
def test_killed_after_each_number_of_ends_nothing_is_lost_or_doubled(todo, tmp_path, text):
    assert len(list(each_kill(todo, text))) > 3
    wanted: dict[str, int] = {TEXT: 10, OWN: 5, SEEDS: 13}
    found = rows(tmp_path)
    assert len(found) == wanted[text]
    points = [(row["study"], row["point"], row["seed"]) for row in found if row["phase"] == "search"]
    assert len(set(points)) == len(points)
    assert left_over(tmp_path) == []
    assert todo(text).trials == 0

"""What is left of searches: from rows, and from what was asked for and has no row yet."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from kdtrain.build import trial_id
from kdtrain.config import ConfigError
from kdtrain.methods import METHODS
from kdtrain.record import TrialResult
from sweeps import changes
from sweeps.cost import NOTHING_KNOWN
from sweeps.ended import end
from sweeps.job import Job, asked, maker, missing, tidy
from sweeps.plan import Plan, expand
from sweeps.points import Tried
from sweeps.schema import Status
from sweeps.search import SweepSearch
from sweeps.searches import Search, remember_spaces, searches
from sweeps.sharing import share
from sweeps.spec import parse_text
from sweeps.store import Store
from sweeps.tables import Spec

TEXT = """
[sweep]
name = "tuned"
[data]
dataset = "fashion_mini"
val_size = 100
[train]
epochs = 4
[grid]
pair = ["resnet14/resnet8"]
method = ["kd"]
fraction = [0.02]
seed = [1]
[search]
sampler = "random"
trials = 4
[search.space.kd]
alpha = { low = 0.1, high = 10.0, log = true }
[confirm]
top = 2
seed = [11, 12]
"""
SEEDS = TEXT.replace("seed = [1]", "seed = [1, 2]").replace("trials = 4", 'trials = 4\nscore = "mean_over_seeds"')


@dataclass(frozen=True)
class Loaded:
    """A spec on the results of a folder."""

    spec: Spec
    text: str
    plan: Plan
    own: Store

    def searches(self, **how: bool) -> list[Search]:
        return searches(self.spec, self.plan, self.own, [job.asked for job in asked(self.own)], **how)

    def one(self, **how: bool) -> Search:
        (search,) = self.searches(**how)
        return search

    def job(self, point: dict[str, Any], number: int, seed: int = 1, phase: str = "search") -> Job:
        search = self.one(accept_changes=True)
        cell = search.study.cell
        trial, _ = (cell.trial if phase == "search" else cell.confirmation)(point, seed)
        make = maker(self.spec, self.text, (), share(self.spec, self.plan, [search], NOTHING_KNOWN))
        return make("student", trial, search.columns(Tried(number, point, "start"), phase))

    def put(self, point: dict[str, Any], number: int, acc: float | None = None, **how: Any) -> Job:
        """The row of a trial of a point; of one without an accuracy the asked file alone."""
        status = how.pop("status", Status.COMPLETED)
        job = self.job(point, number, **how)
        if acc is None and status == Status.COMPLETED:
            job.store.write_bytes(job.model_dump_json().encode(), "asked", f"{job.id}.json")
        else:
            leave(job, status, acc)
        return job


def leave(job: Job, status: Status, acc: float | None) -> None:
    result = TrialResult(
        test_top1=60.0, test_top5=90.0, test_nll=1.0, test_ece=1.0, test_aurc=1.0, test_eaurc=1.0,
        class_recall=(60.0,) * 10, val_acc=acc, best_epoch=4, best_acc=60.0, best_split="val", n_train=118,
        student_params=1000, train_seconds=6.0,
    )  # fmt: skip
    end(
        job, status, epochs_done=4, device="cpu", started_at=datetime(2026, 1, 1, tzinfo=UTC),
        result=result if status == Status.COMPLETED else None,
        error=("Error", "Error: broken") if status in (Status.FAILED, Status.DIVERGED) else None,
    )  # fmt: skip


@pytest.fixture
def load(tmp_path) -> Callable[..., Loaded]:
    def load(text: str = TEXT, *changes: tuple[str, str]) -> Loaded:
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        text += f"[run]\nresults = '{tmp_path}'\n"
        spec = parse_text(text)
        return Loaded(spec, text, expand(spec), Store(str(tmp_path), spec.sweep.name))

    return load


def test_of_nothing_all_is_left(load):
    search = load().one()
    assert (search.budget, search.left, search.next_number, search.open, search.over) == (4, 4, 0, [], False)
    # 4 points, and the best 2 of them with 2 seeds.
    assert (search.search_trials_left, search.confirmations_left, search.trials_left, search.done) == (4, 4, 8, 0)


def test_rows_count_in_the_order_of_asking_and_numbers_go_on(load):
    loaded = load()
    for number, alpha, acc in ((2, 4.0, 50.0), (0, 1.0, 40.0)):
        loaded.put({"alpha": alpha}, number, acc)
    loaded.put({"alpha": 2.0}, 1, status=Status.STOPPED)
    search = loaded.one()
    assert [(each.number, each.point, each.status((1,))) for each in search.tried] == [
        (0, {"alpha": 1.0}, "completed"), (1, {"alpha": 2.0}, "stopped"), (2, {"alpha": 4.0}, "completed")
    ]  # fmt: skip
    assert (search.left, search.next_number, search.trials_left, search.done) == (1, 3, 5, 3)


def handed(loaded: Loaded, n: int, **how: bool) -> list[Job]:
    """The first n jobs of another run, with all teachers trained."""
    todo = missing(loaded.spec, loaded.text, loaded.plan, how.get("retry_failed", False), loaded.searches(**how))
    teachers = {job.id for job in todo.jobs if job.role == "teacher"}
    others = [job for job in todo.jobs if job.role != "teacher"]
    search = SweepSearch(replace(todo, jobs=others, trained=todo.trained | teachers))
    for key in range(n):
        search.suggest(str(key))
    return list(search.jobs.values())


def test_points_under_way_are_handed_out_again_as_the_same_trials(load):
    loaded = load()
    loaded.put({"alpha": 1.0}, 0, 40.0)
    half_done = [loaded.put({"alpha": alpha}, number) for number, alpha in ((1, 2.0), (2, 4.0))]
    search = loaded.one()
    assert [(each.number, each.ended((1,))) for each in search.tried] == [(0, True), (1, False), (2, False)]
    assert (search.left, search.next_number, search.over) == (1, 3, False)
    jobs = handed(loaded, 4)
    assert jobs[:2] == half_done
    assert [job.searched["number"] for job in jobs] == [1, 2, 3]
    assert jobs[2].id not in {job.id for job in half_done}
    assert {job.id for job in asked(loaded.own)} == {job.id for job in jobs}


def test_trial_with_a_row_is_not_under_way_though_it_was_killed_before_it_said_so(load):
    loaded = load()
    job = loaded.put({"alpha": 1.0}, 0)
    job.store.write_bytes(b"state", "checkpoints", f"{job.id}.pt")
    other = loaded.put({"alpha": 2.0}, 1)
    other.store.write_bytes(b"state", "checkpoints", f"{other.id}.pt")
    names = (("asked", f"{job.id}.json"), ("checkpoints", f"{job.id}.pt"))
    kept = {name: loaded.own.read_bytes(*name) for name in names}
    leave(job, Status.COMPLETED, 40.0)
    for name, content in kept.items():
        loaded.own.write_bytes(content, *name)
    assert [each.id for each in asked(loaded.own)] == [other.id]
    assert loaded.one().left == 2
    tidy(loaded.own)
    assert loaded.own.ids("asked") == loaded.own.ids("checkpoints") == {other.id}


def test_point_with_some_of_its_seeds_is_open_and_the_others_are_left(load):
    loaded = load(SEEDS)
    loaded.put({"alpha": 1.0}, 0, 40.0, seed=2)
    search = loaded.one()
    assert ([each.number for each in search.open], search.left, search.search_trials_left) == ([0], 3, 7)
    jobs = handed(loaded, 3)
    assert [(job.searched["number"], job.trial.seed) for job in jobs] == [(0, 1), (1, 1), (1, 2)]


def four(loaded: Loaded) -> None:
    for number, acc in enumerate((10.0, 40.0, 30.0, 20.0)):
        loaded.put({"alpha": 1.0 + number}, number, acc)


def test_when_all_points_have_ended_the_best_are_confirmed(load):
    loaded = load()
    four(loaded)
    loaded.put({"alpha": 2.0}, 1, 90.0, seed=11, phase="confirm")
    search = loaded.one()
    assert search.over
    assert [(each.number, seed) for each, seed in search.missing(search.tried)] == [(1, 12), (2, 11), (2, 12)]
    assert (search.trials_left, search.done) == (3, 5)


def test_raised_budget_goes_on_and_winners_may_change(load):
    four(load())
    for number, alpha in ((1, 2.0), (2, 3.0)):
        for seed in (11, 12):
            load().put({"alpha": alpha}, number, 90.0, seed=seed, phase="confirm")
    assert load().one().trials_left == 0
    loaded = load(TEXT, ("trials = 4", "trials = 6"))
    search = loaded.one()
    assert (search.left, search.next_number, search.over, search.trials_left) == (2, 4, False, 6)
    loaded.put({"alpha": 7.0}, 4, 35.0)
    loaded.put({"alpha": 8.0}, 5, 1.0)
    search = loaded.one()
    # Point 4 has taken the place of point 2; what point 1 has stays.
    assert [(each.number, seed) for each, seed in search.missing(search.tried)] == [(4, 11), (4, 12)]
    assert (search.trials_left, search.done) == (2, 8)


def test_lowered_budget_asks_for_nothing_and_drops_nothing(load):
    four(load())
    loaded = load(TEXT, ("trials = 4", "trials = 2"))
    search = loaded.one()
    assert (search.left, search.over, len(search.tried)) == (0, True, 4)
    assert [each.number for each, _ in search.missing(search.tried)] == [1, 1, 2, 2]


def test_point_under_way_beyond_a_lowered_budget_is_finished(load):
    load().put({"alpha": 1.0}, 0, 40.0)
    load().put({"alpha": 2.0}, 1, 50.0)
    half_done = load().put({"alpha": 3.0}, 2)
    loaded = load(TEXT, ("trials = 4", "trials = 2"))
    assert handed(loaded, 1) == [half_done.model_copy(update={"source": handed(loaded, 1)[0].source})]
    assert not loaded.one().over


@pytest.mark.parametrize("status", [Status.FAILED, Status.DIVERGED])
def test_failed_points_run_again_as_the_same_trials_if_wanted(load, status):
    loaded = load()
    bad = loaded.put({"alpha": 1.0}, 0, status=status)
    loaded.put({"alpha": 2.0}, 1, status=Status.STOPPED)
    assert [each.number for each in loaded.one().open] == []
    search = loaded.one(retry_failed=True)
    assert ([each.number for each in search.open], search.left) == ([0], 2)
    assert handed(loaded, 1, retry_failed=True) == [bad]
    # Killed meanwhile: without --retry-failed it has failed, as before.
    assert loaded.one().open == []


def test_failed_confirmation_runs_again_if_wanted(load):
    loaded = load()
    four(loaded)
    for number in (1, 2):
        for seed in (11, 12):
            status = Status.FAILED if (number, seed) == (2, 12) else Status.COMPLETED
            loaded.put({"alpha": 1.0 + number}, number, 90.0, seed=seed, phase="confirm", status=status)
    assert loaded.one().trials_left == 0
    (job,) = handed(loaded, 3, retry_failed=True)
    assert (job.searched["phase"], job.searched["number"], job.trial.seed) == ("confirm", 2, 12)


def test_rows_of_another_version_of_the_method_are_not_counted(load, monkeypatch):
    loaded = load()
    four(loaded)
    loaded.put({"alpha": 9.0}, 4)
    monkeypatch.setattr(METHODS["kd"], "version", 99)
    search = load().one()
    assert (search.tried, search.left) == ([], 4)
    changes.check(load().spec, load().text, load().plan, loaded.own)


def test_rows_of_other_studies_are_not_counted(load):
    loaded = load()
    four(loaded)
    found = load(TEXT, ('"resnet14/resnet8"', '"resnet14/resnet8", "resnet20/resnet8"')).searches()
    assert [search.left for search in found] == [0, 4]


CHANGED = ("low = 0.1, high = 10.0", "low = 1.5, high = 20.0")


def test_changed_space_is_refused_with_the_difference(load):
    four(load())
    with pytest.raises(
        ConfigError,
        match=r"the space of pair = resnet14/resnet8, method = kd, fraction = 0\.02, seed = 1 has changed since 4 "
        r"trials of it ended: alpha 0\.1\.\.10 log -> 1\.5\.\.20 log\. .* --accept-space-change to keep the 3 that",
    ):
        load(TEXT, CHANGED).searches()


def test_accepted_change_keeps_the_points_that_fit_and_the_total_is_the_budget(load):
    four(load())  # alpha 1, 2, 3 and 4
    loaded = load(TEXT, CHANGED)
    search = loaded.one(accept_changes=True)
    assert [each.point["alpha"] for each in search.tried] == [2.0, 3.0, 4.0]
    assert (search.left, search.next_number) == (1, 4)  # numbers are not used twice
    (new,) = handed(loaded, 1, accept_changes=True)
    assert new.searched["number"] == 4
    leave(new, Status.COMPLETED, 5.0)
    assert loaded.one(accept_changes=True).left == 0
    # From now on the newest point says what the space is: there is nothing to accept, and the old ones still fit.
    assert [each.number for each in load(TEXT, CHANGED).one().tried] == [1, 2, 3, 4]


def test_other_dimensions_fit_no_old_point(load):
    four(load())
    loaded = load(TEXT, ("[confirm]", "tau = [2.0, 4.0]\n[confirm]"))
    with pytest.raises(ConfigError, match=r"ended: tau not searched -> \[2\.0, 4\.0\]\. .* keep the 0 that still fit"):
        loaded.searches()
    assert (loaded.one(accept_changes=True).tried, loaded.one(accept_changes=True).left) == ([], 4)


def test_space_may_change_before_any_trial_has_ended(load):
    load().put({"alpha": 0.5}, 0)
    search = load(TEXT, CHANGED).one()
    assert (search.tried, search.next_number) == ([], 1)


def test_points_of_a_list_are_as_many_as_there_are(load):
    grid = ("alpha = { low = 0.1, high = 10.0, log = true }", "alpha = [1.0, 2.0, 4.0]")
    assert load(TEXT, grid).one().budget == 3
    assert load(TEXT, grid, ("trials = 4", "trials = 2")).one().budget == 2


def test_command_line_refuses_a_changed_space_and_takes_it_if_accepted(load, tmp_path, cli, monkeypatch):
    four(load())
    file = tmp_path / "spec.toml"
    loaded = load(TEXT, CHANGED)
    file.write_text(loaded.text)
    ended = cli("run", file)
    assert (ended.code, ended.out) == (2, "")
    assert "alpha 0.1..10 log -> 1.5..20 log" in ended.err
    assert cli("status", file).code == 0  # who only looks need not accept
    assert cli("plan", file).code == 2  # what `run` refuses, `plan` refuses
    seen = []
    monkeypatch.setattr("sweeps.run.run", lambda todo, *_: seen.append(todo) or [])
    assert cli("run", file, "--accept-space-change").code == 0
    (todo,) = seen
    assert [search.left for search in todo.searches] == [1]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("epochs = 4", "epochs = 5", r"train\.epochs 4 -> 5"),
        ("val_size = 100", "val_size = 200", r"data\.val_size 100 -> 200"),
        ("[train]", "[train]\nlr = 0.2", r"train\.lr unset -> 0\.2"),
    ],
)
def test_spec_changed_otherwise_is_refused_with_the_key(load, old, new, told):
    loaded = load()
    changes.remember(loaded.text, loaded.plan, loaded.own)
    four(loaded)
    now = load(TEXT, (old, new))
    with pytest.raises(ConfigError, match=rf"the spec of 'tuned' has changed since 1 trial of it ended: {told}\. Put"):
        changes.check(now.spec, now.text, now.plan, now.own)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("trials = 4", "trials = 9"),
        ('"random"', '"tpe"'),
        ("top = 2", "top = 1"),
        ("[confirm]", '[scheduler]\nname = "asha"\n[confirm]'),
        ('["kd"]', '["kd", "cid"]'),
        CHANGED,  # which `searches` refuses in its own words
    ],
)
def test_budget_sampler_scheduler_and_confirmations_may_change(load, old, new):
    loaded = load()
    changes.remember(loaded.text, loaded.plan, loaded.own)
    four(loaded)
    now = load(TEXT, (old, new))
    changes.check(now.spec, now.text, now.plan, now.own)
    assert {study.id for study in loaded.plan.studies} <= {study.id for study in now.plan.studies}
    assert len(now.searches(accept_changes=True)[0].tried) == (3 if (old, new) == CHANGED else 4)


def test_what_is_searched_may_have_another_default_in_the_recipe(load):
    text = TEXT.replace("[confirm]", "[search.space.train]\nlr = [0.05, 0.1, 0.2]\n[confirm]")
    text = text.replace("kd", "cs_kd")  # has no teacher, whose recipe would change with it
    loaded = load(text)
    changes.remember(loaded.text, loaded.plan, loaded.own)
    loaded.put({"alpha": 1.0, "train.lr": 0.1}, 0, 40.0)
    now = load(text, ("[train]", "[train]\nlr = 0.2"))
    changes.check(now.spec, now.text, now.plan, now.own)
    assert now.one().left == 3


def test_grid_that_becomes_a_search_is_refused_and_the_difference_named(load, end):
    override = ("[grid]", "[[override]]\nset = { alpha = 2.0 }\n[grid]")  # else the study has the name of the trial
    loaded = load(TEXT.partition("[search]")[0], override)
    changes.remember(loaded.text, loaded.plan, loaded.own)
    for trial in loaded.plan.trials.values():
        end(loaded.own, trial, "student", Status.COMPLETED)
    now = load(TEXT, override)
    with pytest.raises(ConfigError, match=r"since 1 trial of it ended: .*search\.trials unset -> 4"):
        changes.check(now.spec, now.text, now.plan, now.own)


def test_asked_file_says_all_that_a_row_does(load):
    loaded = load()
    job = loaded.put({"alpha": 1.0}, 0)
    (again,) = asked(loaded.own)
    assert again == job
    assert job.asked == {**job.searched, "trial_id": trial_id(job.trial), "seed": 1, "status": None}
    assert json.loads(job.searched["point"]) == {"alpha": 1.0}
    assert job.label == "kd alpha=1.0 resnet14/resnet8 fraction 0.02 seed 1"
    confirmation = loaded.job({"alpha": 1.0}, 0, seed=11, phase="confirm")
    assert confirmation.label == "confirm kd alpha=1.0 resnet14/resnet8 fraction 0.02 seed 11"
    assert not confirmation.is_search


def test_accepted_space_is_remembered_by_the_run(load):
    four(load())
    loaded = load(TEXT, CHANGED)
    remember_spaces(loaded.plan, loaded.own)
    assert loaded.one().left == 1
    with pytest.raises(ConfigError, match=r"alpha 1\.5\.\.20 log -> 0\.1\.\.10 log"):
        load().searches()


def test_more_confirmations_than_points_of_a_list_are_refused(load):
    alpha = ("alpha = { low = 0.1, high = 10.0, log = true }", "alpha = [1.0]")
    with pytest.raises(ConfigError, match=r"confirm\.top must be at most the 1 points of pair = .*, but got 2"):
        load(TEXT, alpha).searches()


STUDENTS = (
    ("resnet14/resnet8", "resnet14/*"),
    ("trials = 4", 'trials = 4\nobjectives = ["val_acc", "params"]'),
    ("[search.space.kd]\nalpha = { low = 0.1, high = 10.0, log = true }", "[search.space.kd]\n"
     "[search.space.student]\nresnet = { depth = [8, 14, 20] }"),
)  # fmt: skip


def depth(n: int) -> dict[str, Any]:
    return {"family": "resnet", "resnet.depth": n}


def test_points_beyond_tightened_limits_count_no_more(load):
    loaded = load(TEXT, *STUDENTS)
    for number, n in enumerate((20, 8)):
        loaded.put(depth(n), number, 50.0 - n)
    tight = load(TEXT, *STUDENTS, ("trials = 4", "trials = 4\nlimits = { params = 200_000 }"))
    search = tight.one()
    assert [each.point for each in search.tried] == [depth(8)]
    assert (search.budget, search.left) == (2, 1)


def test_objectives_may_change_though_old_rows_did_not_weigh_them(load):
    loaded = load(TEXT, *STUDENTS)
    loaded.put(depth(8), 0, 50.0)
    changed = load(TEXT, *STUDENTS, ('"params"]', '"latency_ms"]'))
    changed.own.write_bytes(b'{"resnet8": 1.5, "resnet14": 2.5, "resnet20": 3.5}', "latencies.json")
    (tried,) = changed.one().tried
    assert tried.values((1,), ["val_acc", "latency_ms"]) == [50.0, 1.5]


def test_latencies_are_measured_once_and_the_same_for_all_who_ask(load, monkeypatch):
    times = iter((1.5, 2.5, 3.5))
    monkeypatch.setattr("sweeps.student_costs.latency", lambda *_, **__: SimpleNamespace(median=next(times)))
    loaded = load(TEXT, *STUDENTS, ('"params"]', '"latency_ms"]'))
    assert math.isnan(loaded.one().costs["resnet8"]["latency_ms"])
    measured = loaded.one(to_run=True).costs
    assert [measured[name]["latency_ms"] for name in ("resnet8", "resnet14", "resnet20")] == [1.5, 2.5, 3.5]
    assert loaded.one().costs == loaded.one(to_run=True).costs == measured


def test_curves_of_trials_that_ended_are_read_for_a_run(load):
    loaded = load()
    job = loaded.put({"alpha": 2.0}, 0, status=Status.STOPPED)
    record = {"lr": 0.1, "terms": {}, "train_acc": 1.0, "test_acc": None, "seconds": 1.0, "trial_id": job.id}
    rows = [{**record, "stage": "pretrain", "epoch": 1, "val_acc": None, "train_acc": None}]
    rows += [{**record, "stage": "train", "epoch": n, "val_acc": 10.0 * n} for n in (1, 2)]
    loaded.own.write_epochs(job.id, rows)
    assert loaded.one(to_run=True).curves == {job.id: {1: 10.0, 2: 20.0}}
    assert loaded.one().curves == {}


def test_what_a_killed_retry_left_is_kept(load):
    loaded = load()
    kept = loaded.put({"alpha": 2.0}, 0, status=Status.FAILED)
    gone = loaded.put({"alpha": 3.0}, 1, 50.0)
    for job in (kept, gone):
        loaded.own.write_bytes(b"state", "checkpoints", f"{job.id}.pt")
    tidy(loaded.own)
    assert loaded.own.ids("checkpoints") == {kept.id}

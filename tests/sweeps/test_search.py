"""The order in which jobs are handed out; Tune is played by the test."""

from types import MappingProxyType

import pytest

from kdtrain.config import Where
from sweeps.job import Job, Missing, missing
from sweeps.plan import expand
from sweeps.schema import Status
from sweeps.search import SweepSearch
from sweeps.sharing import ALONE
from sweeps.spec import parse_text
from sweeps.store import TEACHERS, Store
from sweeps.trainable import TrialTrainable

COMPLETED = {"status": "completed", "done": True}


@pytest.fixture
def jobs(spec_text, tmp_path) -> list[Job]:
    """The teacher, two vanilla and two kd trials."""
    spec = parse_text(spec_text.replace("[grid]", f"[run]\nresults = '{tmp_path}'\n[grid]"))
    return missing(spec, spec_text, expand(spec), retry_failed=False).jobs


def searcher(jobs, trained, weights=MappingProxyType({})) -> SweepSearch:
    """A search of planned jobs alone."""
    todo = Missing(
        jobs=list(jobs), published=[], trained=set(trained), blocked=[], done=0, searches=[], maker=lambda *_: None,
        sharing=ALONE, retry_failed=False, replays=False,
    )  # fmt: skip
    return SweepSearch(todo, weights)


def handed(search: SweepSearch, key: str) -> str:
    given = search.suggest(key)
    if isinstance(given, dict) and "job" in given:
        return Job.model_validate_json(given["job"]).trial.method.name + "/" + search.jobs[key].role
    return "idle" if isinstance(given, dict) else str(given)


def test_teachers_first_then_students_without_one_then_the_rest_when_the_teacher_is_trained(jobs):
    search = searcher(jobs, trained=[])
    assert [handed(search, key) for key in "abc"] == ["vanilla/teacher", "vanilla/student", "vanilla/student"]
    assert [handed(search, key) for key in "de"] == ["idle", "idle"]
    assert handed(search, "f") == "None"  # two wait for the teacher: a third worker would never have work
    search.on_trial_complete("a", COMPLETED)
    assert [handed(search, key) for key in "gh"] == ["kd/student", "kd/student"]
    assert handed(search, "i") == "FINISHED"
    assert search.blocked == []


@pytest.fixture
def chain(spec_text, tmp_path) -> list[Job]:
    """The teacher, an assistant, one more that learns from both, and two vanilla and two dgkd trials."""
    text = spec_text.replace("[grid]", f"[run]\nresults = '{tmp_path}'\n[grid]")
    text = text.replace('"kd"]', '{ name = "dgkd", assistants = ["wrn_16_1", "wrn_10_1"] }]')
    spec = parse_text(text)
    return missing(spec, text, expand(spec), retry_failed=False).jobs


def student(search: SweepSearch, key: str) -> str:
    """The network that the job handed out trains; "idle" where it idles."""
    given = search.suggest(key)
    return search.jobs[key].trial.student if "job" in given else "idle"


def test_assistants_and_students_wait_for_all_whom_they_learn_from(chain):
    search = searcher(reversed(chain), trained=[])
    assert [student(search, key) for key in "abcd"] == ["resnet8", "resnet8", "resnet8", "idle"]
    assert [search.jobs[key].role for key in "abc"] == ["teacher", "student", "student"]
    search.on_trial_complete("d", {"done": True})
    search.on_trial_complete("a", COMPLETED)
    assert [student(search, key) for key in "ef"] == ["wrn_16_1", "idle"]
    search.on_trial_complete("f", {"done": True})
    search.on_trial_complete("e", COMPLETED)
    assert [student(search, key) for key in "gh"] == ["wrn_10_1", "idle"]
    search.on_trial_complete("g", COMPLETED)
    assert [handed(search, key) for key in "ijk"] == ["dgkd/student", "dgkd/student", "FINISHED"]
    assert search.blocked == []


def test_failed_assistant_gives_up_those_after_it_and_their_students(chain):
    search = searcher(chain, trained=[])
    for key in "abc":
        search.suggest(key)
    search.on_trial_complete("a", COMPLETED)
    assert student(search, "d") == "wrn_16_1"
    search.on_trial_complete("d", {"status": "diverged"})
    assert handed(search, "e") == "FINISHED"
    assert [(other.job.role, other.by) for other in search.blocked] == [
        (role, "assistant wrn_16_1 of resnet8 fraction 0.02") for role in ("teacher", "student", "student")
    ]


def test_trained_teachers_let_their_students_go_at_once(jobs):
    students = [job for job in jobs if job.role == "student"]
    search = searcher(students, trained=[jobs[0].id])
    assert [handed(search, key) for key in "abcde"] == ["vanilla/student"] * 2 + ["kd/student"] * 2 + ["FINISHED"]


@pytest.mark.parametrize(
    ("result", "error"), [({"status": "diverged"}, False), ({"status": "failed"}, False), (None, True), ({}, False)]
)
def test_students_of_a_failed_teacher_are_blocked(jobs, result, error):
    search = searcher(jobs, trained=[])
    for key in "abc":
        search.suggest(key)
    search.on_trial_complete("a", result, error)
    assert handed(search, "d") == "FINISHED"
    assert [(other.job.trial.method.name, other.by) for other in search.blocked] == [
        ("kd", "teacher resnet8 fraction 0.02")
    ] * 2


def test_nothing_is_handed_out_once_results_cannot_be_written(jobs):
    search = searcher(jobs, trained=[])
    search.suggest("a")
    search.on_trial_complete("a", {"store_error": "cannot write x: No space left on device."})
    assert handed(search, "b") == "FINISHED"
    assert search.store_error == "cannot write x: No space left on device."


def named(job: Job, key: str, needs: str | None = None) -> Job:
    """A job with another id, and with another teacher if it has one."""
    teacher = job.trial.teacher and job.trial.teacher.model_copy(update={"id": needs})
    return job.model_copy(update={"id": key, "trial": job.trial.model_copy(update={"teacher": teacher})})


class Workers:
    """Two workers whose trials take as long as they weigh, on a clock that jumps from end to end."""

    def __init__(self, search: SweepSearch, seconds: dict[str, float]) -> None:
        self.search, self.seconds = search, seconds
        self.begun: list[tuple[float, str]] = []
        self.under_way: list[tuple[float, str]] = []  # when they end

    def play(self) -> list[tuple[float, str]]:
        """When each job began."""
        now, asked = 0.0, 0
        while True:
            while len(self.under_way) < 2 and self._begin(now, str(asked := asked + 1)):
                pass
            if not self.under_way:
                return self.begun
            now, key = min(self.under_way)
            self.under_way.remove((now, key))
            self.search.on_trial_complete(key, COMPLETED)

    def _begin(self, now: float, key: str) -> bool:
        given = self.search.suggest(key)
        if isinstance(given, dict) and "idle" in given:
            self.search.on_trial_complete(key, {"done": True})
            return False
        if not isinstance(given, dict):
            return False
        job = self.search.jobs[key]
        self.begun.append((now, job.id))
        self.under_way.append((now + self.seconds[job.key], key))
        return True


def test_longest_trials_are_handed_out_first_and_of_equals_those_planned_first(jobs):
    vanilla = next(job for job in jobs if job.trial.method.name == "vanilla" and job.role == "student")
    seconds = {"student a": 1.0, "student b": 5.0, "student c": 2.0, "student d": 5.0}
    search = searcher([named(vanilla, key) for key in "abcd"], trained=[], weights=seconds)
    for key in "abcd":
        search.suggest(key)
    assert [search.jobs[key].id for key in "abcd"] == ["b", "d", "c", "a"]


def test_students_whose_teacher_is_ready_train_beside_teachers_of_others(jobs):
    teacher, kd = jobs[0], next(job for job in jobs if job.requirements)
    todo = [named(teacher, key) for key in ("T1", "T2")]
    todo += [named(kd, "a", "T1"), named(kd, "b", "T1"), named(kd, "c", "T2"), named(kd, "d", "T2")]
    seconds = {"teacher T1": 2.0, "teacher T2": 9.0}
    seconds |= {"student a": 3.0, "student b": 4.0, "student c": 5.0, "student d": 1.0}
    begun = Workers(searcher(todo, trained=[], weights=seconds), seconds).play()
    # By hand: T2 on one worker until 9; on the other T1 until 2, b until 6, a until 9; then c until 14 and d until 10.
    assert begun == [(0.0, "T2"), (0.0, "T1"), (2.0, "b"), (6.0, "a"), (9.0, "c"), (9.0, "d")]


def test_no_worker_idles_while_a_trial_could_run(jobs):
    teacher, vanilla = (
        jobs[0],
        next(job for job in jobs if job.trial.method.name == "vanilla" and job.role == "student"),
    )
    kd = next(job for job in jobs if job.requirements)
    todo = [named(teacher, "T"), *(named(kd, key, "T") for key in "ab"), *(named(vanilla, key) for key in "cd")]
    seconds = {"teacher T": 4.0, "student a": 9.0, "student b": 6.0, "student c": 2.0, "student d": 3.0}
    begun = Workers(searcher(todo, trained=[], weights=seconds), seconds).play()
    # d and c train beside the teacher, though a and b are longer; a, the longest, begins the moment the teacher ends.
    assert begun == [(0.0, "T"), (0.0, "d"), (3.0, "c"), (4.0, "a"), (5.0, "b")]


def test_probes_come_after_all_students(jobs):
    vanilla = next(job for job in jobs if job.trial.method.name == "vanilla" and job.role == "student")
    probe = named(vanilla, "p").model_copy(update={"role": "probe"})
    search = searcher([probe, named(vanilla, "a")], trained=[], weights={"probe p": 9.0, "student a": 1.0})
    for key in "xy":
        search.suggest(key)
    assert [search.jobs[key].id for key in "xy"] == ["a", "p"]


def test_idle_trials_last_a_share_of_the_time_idled_within_limits(jobs, monkeypatch):
    clock = iter([1000.0, 1000.0, 1200.0, 9000.0, 9000.1])
    monkeypatch.setattr("sweeps.search.time.monotonic", lambda: next(clock))
    search = searcher(jobs, trained=[])
    for key in "abc":
        search.suggest(key)
    lasts = []
    for key in "def":  # idle since 0, 200 and 8000 s
        lasts.append(search.suggest(key)["idle"])
        search.on_trial_complete(key, {"done": True})
    assert lasts == pytest.approx([0.3, 6.0, 60.0])


def test_idle_trial_waits_and_is_done(monkeypatch):
    slept = []
    monkeypatch.setattr("sweeps.trainable.time.sleep", slept.append)
    trainable = TrialTrainable.__new__(TrialTrainable)  # without Tune's logging set-up
    trainable.setup({"idle": 0.3})
    assert (trainable.step(), slept) == ({"done": True}, [0.3])


def test_dead_teacher_blocks_its_students_though_workers_idle(jobs):
    search = searcher(jobs, trained=[])
    for key in "abcd":
        search.suggest(key)
    search.on_trial_complete("a", None, error=True)
    search.on_trial_complete("d", {"done": True})
    assert handed(search, "e") == "FINISHED"


def test_completed_trial_is_not_trained_again_when_its_worker_died_after_its_row(jobs, end):
    vanilla = next(job for job in jobs if job.trial.method.name == "vanilla" and job.role == "student")
    end(vanilla.store, vanilla.trial, "student", Status.COMPLETED)
    vanilla.store.write_bytes(b"state", "checkpoints", f"{vanilla.id}.pt")
    assert step(vanilla) == {"done": True, "status": "completed", "epoch": 2, "acc": None}
    assert not vanilla.store.ids("epochs") | vanilla.store.ids("checkpoints")


def test_trial_that_a_grid_has_run_is_run_again_as_a_point_of_a_search(jobs, end):
    vanilla = next(job for job in jobs if job.trial.method.name == "vanilla" and job.role == "student")
    end(vanilla.store, vanilla.trial, "student", Status.COMPLETED)
    point = vanilla.model_copy(update={"searched": {"phase": "search", "study": "s", "number": 0}})
    assert step(point)["epoch"] == 1


def test_damaged_checkpoint_means_from_the_start(jobs):
    vanilla = next(job for job in jobs if job.trial.method.name == "vanilla" and job.role == "student")
    vanilla.store.write_bytes(b"junk", "checkpoints", f"{vanilla.id}.pt")
    assert step(vanilla)["epoch"] == 1


def test_teacher_whose_weights_are_gone_is_trained_again(spec_text, tmp_path, end):
    spec = parse_text(spec_text.replace("[grid]", f"[run]\nresults = '{tmp_path}'\n[grid]"))
    plan = expand(spec)
    ((key, teacher),) = plan.teachers.items()
    store = Store(str(tmp_path), TEACHERS)
    end(store, teacher, "teacher", Status.COMPLETED)
    again = missing(spec, spec_text, plan, retry_failed=False).jobs
    assert [job.role for job in again][:2] == ["teacher", "student"]
    assert step(again[0])["status"] == "completed"
    assert store.exists("models", f"{key}.safetensors")
    assert store.read_trials().to_pylist()[0]["test_top1"] is not None  # the row is new, too
    store.write_bytes(b"weights", "models", f"{key}.safetensors")
    assert {job.role for job in missing(spec, spec_text, plan, retry_failed=False).jobs} == {"student"}


def step(job: Job) -> dict[str, object]:
    trainable = TrialTrainable.__new__(TrialTrainable)
    trainable.setup({"job": job.model_dump_json()})
    return trainable.step()


def test_error_in_a_trial_becomes_a_row_with_class_and_traceback(jobs, tmp_path):
    kd = next(job for job in jobs if job.trial.method.name == "kd")  # its teacher's weights are not there
    assert step(kd) == {"done": True, "status": "failed", "epoch": 0, "epochs": 2}
    (row,) = kd.store.read_trials().to_pylist()
    assert (row["status"], row["error_type"], row["epochs_done"]) == ("failed", "ConfigError", 0)
    assert "Traceback" in row["error"]
    assert row["test_top1"] is None


def test_full_disk_in_a_trial_is_told_to_the_driver(jobs, monkeypatch):
    def full(self, source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sweeps.store.os.replace", lambda source, target: full(None, source, target))
    told = step(next(job for job in jobs if job.trial.method.name == "vanilla" and job.role == "student"))
    assert told["done"] is True
    assert "No space left on device" in str(told["store_error"])


def run_all(jobs: list[Job]) -> None:
    """Run jobs in the order of the searcher, in this process."""
    search = searcher(jobs, trained=[])
    for number in range(len(jobs)):
        search.suggest(str(number))
        trainable = TrialTrainable.__new__(TrialTrainable)
        trainable.setup({"job": search.jobs[str(number)].model_dump_json()})
        while not (result := trainable.step())["done"]:
            pass
        search.on_trial_complete(str(number), result)
    assert len(search.waiting) == 0


def test_students_of_assistants_are_trained_to_their_end(chain, tmp_path):
    run_all(chain)
    rows = chain[-1].store.read_trials().to_pylist()
    assert [row["status"] for row in rows] == ["completed"] * 4
    teacher, first, second = (job.id for job in chain[:3])
    assert [row["assistant_ids"] for row in rows if row["method"] == "dgkd"] == [[first, second]] * 2
    assert [row["assistant_ids"] for row in rows if row["method"] == "vanilla"] == [None] * 2
    teachers = {row["trial_id"]: row for row in Store(str(tmp_path), TEACHERS).read_trials().to_pylist()}
    assert [(teachers[key]["role"], teachers[key]["status"]) for key in (teacher, first, second)] == [
        ("teacher", "completed")
    ] * 3
    assert [teachers[key]["teacher_id"] for key in (teacher, first, second)] == [None, teacher, teacher]
    assert [teachers[key]["assistant_ids"] for key in (teacher, first, second)] == [None, None, [first]]


def test_stage_before_the_recipes_epochs_is_stored_and_reported(spec_text, tmp_path):
    text = spec_text.replace("[grid]", f"[run]\nresults = '{tmp_path}'\n[grid]").replace('["vanilla", "kd"]', '["fsp"]')
    spec = parse_text(text.replace("seed = [1, 2]", "seed = [1]"))
    teacher, fsp = missing(spec, text, expand(spec), retry_failed=False).jobs
    run_all([teacher])
    trainable = TrialTrainable.__new__(TrialTrainable)
    trainable.setup({"job": fsp.model_dump_json()})
    # An eighth of 2 epochs is one epoch at least.
    told = trainable.step()
    assert {key: told[key] for key in ("done", "epoch", "epochs", "trained", "acc")} == {
        "done": False, "epoch": 1, "epochs": 3, "trained": 0, "acc": None
    }  # fmt: skip
    assert trainable.step()["epoch"] == 2
    assert trainable.step()["status"] == "completed"
    epochs = fsp.store.read_epochs().to_pylist()
    assert [(row["stage"], row["epoch"]) for row in epochs] == [("pretrain", 1), ("train", 1), ("train", 2)]
    assert [row["train_acc"] is None for row in epochs] == [True, False, False]
    (row,) = fsp.store.read_trials().to_pylist()
    assert (row["epochs"], row["epochs_done"]) == (2, 3)


def test_trials_share_what_they_see_of_their_teacher_and_say_where_they_cannot(spec_text, tmp_path):
    (tmp_path / "file").write_text("")
    for cache in ("cache", "file"):
        run_table = f"[run]\nresults = '{tmp_path / 'of' / cache}'\ncache = '{tmp_path / cache}'\n[grid]"
        text = spec_text.replace("[grid]", run_table).replace('["vanilla", "kd"]', '["kd", "dkd"]')
        spec = parse_text(text.replace("seed = [1, 2]", "seed = [1]"))
        teacher, *students = missing(spec, text, expand(spec), retry_failed=False).jobs
        run_all([teacher])
        warnings = []
        for job in students:
            trainable = TrialTrainable.__new__(TrialTrainable)
            trainable.setup({"job": job.model_dump_json()})
            told = [trainable.step() for _ in range(2)]
            assert told[-1]["status"] == "completed"
            warnings.append({each["warning"] for each in told})
        found = sorted(row["teacher_epochs"] for row in students[0].store.read_trials().to_pylist())
        kept = list((tmp_path / "cache").rglob("teacher_outputs/*/*.safetensors"))
        if cache == "cache":
            assert (found, warnings, len(kept)) == ([0, 2], [{None}, {None}], 2)
        else:
            assert (found, len(kept)) == ([2, 2], 2)
            assert all("(Not a directory): each trial computes its own." in text for one in warnings for text in one)


def test_where_points_at_absolute_folders(jobs, tmp_path):
    assert all(job.results == str(tmp_path) for job in jobs)
    assert all(job.where == Where(data_root=job.where.data_root, cpus=1) for job in jobs)
    assert all(job.where.data_root.startswith("/") for job in jobs)


def test_a_student_that_is_the_same_trial_as_a_teacher_does_not_stand_for_it(jobs):
    teacher, student = jobs[0], jobs[1]
    twin = student.model_copy(update={"id": teacher.id, "trial": teacher.trial})
    pupil = next(job for job in jobs if job.requirements)
    search = searcher([teacher, twin, pupil], trained=[])
    assert [handed(search, key) for key in "ab"] == ["vanilla/teacher", "vanilla/student"]
    search.on_trial_complete("b", COMPLETED)
    assert handed(search, "c") == "idle"
    search.on_trial_complete("a", COMPLETED)
    assert handed(search, "d") == "kd/student"


def test_a_student_that_is_the_same_trial_as_a_trained_teacher_does_not_undo_it(jobs):
    teacher, student = jobs[0], jobs[1]
    twin = student.model_copy(update={"id": teacher.id, "trial": teacher.trial})
    pupil = next(job for job in jobs if job.requirements)
    search = searcher([twin, pupil], trained=[teacher.id])
    assert handed(search, "a") == "vanilla/student"
    search.on_trial_complete("a", {"status": "failed"})
    assert handed(search, "b") == "kd/student"

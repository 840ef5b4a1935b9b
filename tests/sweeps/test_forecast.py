"""What the rest of a sweep will cost."""

from random import Random
from typing import Any

import pytest

from sweeps.cost import Cost
from sweeps.forecast import Forecast, Task, amount, forecast, makespan, predictions
from sweeps.job import missing
from sweeps.plan import expand
from sweeps.searches import searches
from sweeps.spec import parse_text
from sweeps.store import Store


def task(name: str, seconds: float, *needs: str, rank: int = 0) -> Task:
    return Task(name, seconds, frozenset(needs), rank)


class TestMakespan:
    def test_no_tasks_take_no_time(self):
        assert makespan([], 2) == 0

    def test_one_worker_takes_the_sum(self):
        assert makespan([task("a", 1.0), task("b", 2.0, "a"), task("c", 4.0)], 1) == 7

    def test_the_longest_goes_first(self):
        # 2 beside 1 and 1; in the order given it would be 1 beside 1, then 2.
        assert makespan([task("a", 1.0), task("b", 1.0), task("c", 2.0)], 2) == 2

    def test_a_lower_rank_goes_before_what_is_longer(self):
        # a and b, c at 1, d at 3. By length they would be b and c, a at 3, d at 4.
        tasks = [task("a", 1.0), task("b", 3.0, rank=1), task("c", 3.0, rank=1), task("d", 1.0, "a", rank=2)]
        assert makespan(tasks, 2) == 4
        assert makespan([each._replace(rank=0) for each in tasks], 2) == 5

    def test_students_wait_for_their_teacher(self):
        # The teacher until 5 beside what needs none until 4, then two students at once.
        tasks = [task("s", 1.0, "t"), task("u", 1.0, "t"), task("t", 5.0), task("v", 4.0)]
        assert makespan(tasks, 2) == 6

    def test_a_chain_takes_as_long_with_any_number_of_workers(self):
        assert makespan([task("c", 4.0, "b"), task("b", 2.0, "a"), task("a", 1.0)], 100) == 7

    def test_all_that_is_needed_is_waited_for(self):
        assert makespan([task("a", 1.0), task("b", 3.0), task("c", 1.0, "a", "b")], 2) == 4

    def test_what_is_not_among_the_tasks_is_there(self):
        assert makespan([task("a", 1.0, "trained")], 1) == 1

    def test_tasks_without_time_count_as_ended_at_once(self):
        assert makespan([task("a", 0.0), task("b", 0.0, "a"), task("c", 2.0, "b")], 1) == 2


def simulated(tasks: list[Task], slots: int) -> float:
    """The same by looking at all tasks again whenever one has ended."""
    names, ends, now = {each.name for each in tasks}, dict[str, float](), 0.0
    while True:
        over = {name for name, when in ends.items() if when <= now}
        ready = [each for each in tasks if each.name not in ends and each.needs & names <= over]
        ready.sort(key=lambda each: (each.rank, -each.seconds))
        for each in ready[: slots - (len(ends) - len(over))]:
            ends[each.name] = now + each.seconds
        later = [when for when in ends.values() if when > now]
        if not later:
            return now
        now = min(later)


def chain(tasks: list[Task]) -> float:
    """The longest time of tasks that wait for one another; they come after what they need."""
    until = dict[str, float]()
    for each in tasks:
        until[each.name] = each.seconds + max((until.get(name, 0.0) for name in each.needs), default=0.0)
    return max(until.values())


def test_makespan_of_random_tasks_is_that_of_a_simulation():
    draws = Random(0)
    for _ in range(200):
        names = [f"t{i}" for i in range(draws.randint(1, 12))]
        tasks = [
            task(name, draws.uniform(0.1, 10), *(other for other in names[:i] if draws.random() < 0.2), "elsewhere",
                 rank=draws.randint(0, 2))
            for i, name in enumerate(names)
        ]  # fmt: skip
        slots = draws.randint(1, 4)
        given = draws.sample(tasks, len(tasks))
        found, total = makespan(given, slots), sum(each.seconds for each in tasks)
        assert found == pytest.approx(simulated(tasks, slots))
        assert max(chain(tasks), total / slots) <= found * (1 + 1e-9)
        assert makespan(given, 1) == pytest.approx(total)
        assert makespan(given, len(tasks)) == pytest.approx(chain(tasks))


TEXT = """
[sweep]
name = "costly"
[data]
dataset = "fashion_mini"
view_seed = 7
[train]
epochs = 2
[teacher]
epochs = 1
[grid]
pair = ["resnet14/resnet8"]
method = ["vanilla", "kd"]
seed = [1, 2]
[run]
"""


def row(seconds: float, method: str = "vanilla", student: str = "resnet8", **columns: Any) -> dict[str, Any]:
    """Of ten epochs on all 6000 images."""
    return {
        "dataset": "fashion_mini", "fraction": 1.0, "val_size": 0, "image_size": None, "student": student,
        "teacher": None if method == "vanilla" else "resnet14", "method": method, "precision": "fp32", "cpus": 1,
        "device": "cpu", "n_train": 6000, "epochs": 10, "train_seconds": seconds, "teacher_seconds": 0.0,
        "shared_seconds": 0.0, "teacher_epochs": 0, "assistant_ids": None, "source_id": None, "replayed": None,
        "status": "completed", **columns,
    }  # fmt: skip


# An epoch takes vanilla resnet8 3 s, vanilla resnet14 7 s, and kd 5 s; resnet14's outputs for one take 2 s to compute
# and half a second to read.
KD = row(70.0, "kd", teacher_seconds=20.0, teacher_epochs=10)
READ = row(55.0, "kd", shared_seconds=5.0)
ROWS = [row(30.0), row(70.0, student="resnet14"), KD, READ]


def told(text: str, rows: list[dict[str, Any]], tmp_path: Any, slots: int = 1) -> Forecast:
    spec = parse_text(f"{text}results = '{tmp_path}'\n")
    plan, cost = expand(spec), Cost(rows)
    found = searches(spec, plan, Store(str(tmp_path), "costly"), [])
    return forecast(missing(spec, text, plan, retry_failed=False, found=found, cost=cost), cost, 1, slots)


def seconds(text: str, rows: list[dict[str, Any]], tmp_path: Any) -> float:
    return told(text, rows, tmp_path).slot_seconds


class TestForecast:
    def test_outputs_that_are_shared_are_computed_once_and_read_by_the_others(self, tmp_path):
        # The teacher 7, vanilla 2 * 6; kd 10 and 4 for the teacher's outputs, the other 10 and 1.
        assert seconds(TEXT, ROWS, tmp_path) == pytest.approx(7 + 12 + 14 + 11)
        assert seconds(TEXT, ROWS[:3], tmp_path) == pytest.approx(7 + 12 + 14 + 10)  # nobody has read any yet

    def test_outputs_that_are_not_shared_are_computed_by_each(self, tmp_path):
        live = 7 + 12 + 14 + 14
        assert seconds(TEXT + "cache_gb = 0\n", ROWS, tmp_path) == pytest.approx(live)
        assert seconds(TEXT.replace("view_seed = 7\n", ""), ROWS, tmp_path) == pytest.approx(live)

    def test_without_augmentation_they_are_computed_for_one_epoch(self, tmp_path):
        text = TEXT.replace("epochs = 2", "epochs = 2\naugment = false")
        assert seconds(text, ROWS, tmp_path) == pytest.approx(7 + 12 + 12 + 11)

    def test_each_key_is_computed_once(self, tmp_path):
        # Without a view seed kd and dkd share by seed: for two seeds 4 each; steps of dkd take as long as those of kd.
        text = TEXT.replace("view_seed = 7\n", "").replace('"kd"', '"kd", "dkd"')
        rows = [*ROWS, row(50.0, "dkd")]
        assert seconds(text, rows, tmp_path) == pytest.approx(7 + 12 + 4 * 10 + 2 * (4 + 1))

    def test_a_teacher_that_is_asked_in_each_step_is_part_of_the_step(self, tmp_path):
        text, rows = TEXT.replace('"kd"', '"fitnet"'), [*ROWS, row(90.0, "fitnet")]
        assert seconds(text, rows, tmp_path) == pytest.approx(7 + 12 + 2 * 18)

    def test_trials_at_a_time(self, tmp_path):
        # Of two workers one has the teacher until 7, then kd until 21; the other vanilla until 6 and 12, then kd until
        # 23, reading what the first one computes.
        found = told(TEXT, ROWS, tmp_path, slots=2)
        assert found == Forecast(pytest.approx(44.0), pytest.approx(23.0), 0, 0)

    def test_a_quick_teacher_goes_first_then_the_longest(self, tmp_path):
        # The teacher until 1, then kd until 15 and vanilla until 21; the other vanilla until 6, then kd until 17.
        rows = [ROWS[0], row(10.0, student="resnet14"), *ROWS[2:]]
        assert told(TEXT, rows, tmp_path, slots=2).wall_seconds == pytest.approx(21.0)

    def test_unlike_and_unknown_trials_are_counted(self, tmp_path):
        assert told(TEXT, [row(30.0)], tmp_path).by_work == 3  # the teacher and both of kd
        assert told(TEXT, [], tmp_path) == Forecast(0, 0, 0, 5)
        assert told(TEXT, [row(30.0, precision="bf16")], tmp_path) == Forecast(0, 0, 0, 5)
        mixed = TEXT.replace("seed = [1, 2]", "seed = [1, 2]\nprecision = ['fp32', 'bf16']")
        found = told(mixed, ROWS, tmp_path)
        assert (found.by_work, found.unknown) == (0, 4)
        assert found.slot_seconds == pytest.approx(44.0)

    def test_a_student_that_is_the_same_trial_as_its_teacher_is_trained_too(self, tmp_path):
        text = TEXT.replace("view_seed = 7\n", "").replace("[teacher]\nepochs = 1\n", "").replace("[1, 2]", "[0]")
        text = text.replace("resnet14/resnet8", "resnet14/resnet14")
        rows = [row(70.0, student="resnet14"), row(50.0, "kd", student="resnet14")]
        # The teacher 14, the same as a student 14, kd 10: kd waits for the teacher, and nobody for the student.
        assert told(text, rows, tmp_path) == Forecast(pytest.approx(38.0), pytest.approx(38.0), 0, 0)
        assert told(text, rows, tmp_path, slots=2).wall_seconds == pytest.approx(24.0)

    def test_probes_take_nothing(self, tmp_path):
        probe = "[[probe]]\ndataset = 'fashion_mini'\n"
        text = TEXT.replace("[run]\n", probe.replace("fashion_mini", "cifar10") + "[run]\n")
        assert told(text, ROWS, tmp_path) == Forecast(pytest.approx(44.0), pytest.approx(44.0), 0, 0)


SEARCH = """
[search]
sampler = "random"
trials = 3
[confirm]
top = 2
seed = [11, 12]
[run]
"""


class TestForecastOfSearches:
    """3 points of kd on 5000 of the images, and 2 confirmed with 2 seeds on all."""

    TEXT = TEXT.replace('"vanilla", ', "").replace("[1, 2]", "[1]").replace("[run]\n", SEARCH)
    TEXT = TEXT.replace("[train]", "val_size = 1000\n[train]")

    def test_points_and_confirmations_have_their_own_teachers(self, tmp_path):
        # Times are proportional to images. Points: the teacher 35/6, outputs 20/6, kd 3 * 50/6, reading 2 * 5/6.
        points = [35 / 6, 20 / 6, 3 * 50 / 6, 2 * 5 / 6]
        # Confirmations: the teacher 7, outputs 4, kd 4 * 10, reading 3 * 1.
        confirmations = [7, 4, 40, 3]
        found = told(self.TEXT, ROWS, tmp_path)
        assert found.slot_seconds == pytest.approx(sum(points) + sum(confirmations))
        assert found.wall_seconds == pytest.approx(found.slot_seconds)

    def test_confirmations_wait_for_all_points_and_their_teacher(self, tmp_path):
        # Points all at once, of which the first computes what the others read; then confirmations, likewise.
        assert told(self.TEXT, ROWS, tmp_path, slots=9).wall_seconds == pytest.approx(35 / 6 + 70 / 6 + 14)
        # With a teacher of 100 s an epoch they wait for it: it begins at once.
        rows = [*ROWS[:1], row(1000.0, student="resnet14"), *ROWS[2:]]
        text = self.TEXT.replace("val_size = 1000", "val_size = 5000")
        assert told(text, rows, tmp_path, slots=9).wall_seconds == pytest.approx(100 + 14)

    def test_each_seed_sees_views_of_its_own_unless_told_otherwise(self, tmp_path):
        text = self.TEXT.replace("view_seed = 7\n", "")
        text = text.replace("seed = [1]", "seed = [1, 2]").replace(
            "trials = 3", "trials = 3\nscore = 'mean_over_seeds'"
        )
        # Of each seed the first computes: 2 of 6 points' trials and 2 of 4 confirmations.
        points = [35 / 6, 2 * 20 / 6, 6 * 50 / 6, 4 * 5 / 6]
        confirmations = [7, 2 * 4, 40, 2 * 1]
        assert seconds(text, ROWS, tmp_path) == pytest.approx(sum(points) + sum(confirmations))


@pytest.mark.parametrize(
    ("cpus", "gpus", "expected"),
    [
        (1, 0, (2.0, "core-hours")),
        (4, 0, (8.0, "core-hours")),
        (4, 1, (2.0, "GPU-hours")),
        (4, 0.25, (0.5, "GPU-hours")),
    ],
)
def test_hours_are_of_gpus_where_trials_use_any(cpus, gpus, expected):
    assert amount(7200.0, cpus, gpus) == expected


def test_predictions_are_of_completed_trials_without_their_teachers_time():
    rows = [
        {"status": status, "predicted_seconds": predicted, "train_seconds": 70.0, "teacher_seconds": teacher,
         "shared_seconds": shared}
        for status, predicted, teacher, shared in [
            ("completed", 50.0, 8.0, 2.0),
            ("completed", 80.0, None, None),
            ("completed", None, 8.0, 2.0),
            ("stopped", 50.0, None, None),
        ]
    ]  # fmt: skip
    assert predictions(rows) == [(50.0, 60.0), (80.0, 70.0)]
    assert predictions([{**rows[0], "status": "failed", "train_seconds": None}]) == []

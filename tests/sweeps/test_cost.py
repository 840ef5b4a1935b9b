"""Estimates from earlier rows."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from kdtrain.config import DataConfig, FolderRef, MethodRef, Probe, Recipe, TeacherRef, TrialConfig
from sweeps import cost as module
from sweeps.cost import Cost, learned, multiply_adds
from sweeps.plan import expand
from sweeps.schema import Status
from sweeps.spec import parse_text
from sweeps.store import TEACHERS, Store

PETS = DataConfig(dataset="folder:/x/pets", folder=FolderRef(sha256="e" * 64, num_classes=3), image_size=32)


def trial(fraction: float, epochs: int, method: str = "vanilla", **fields: Any) -> TrialConfig:
    return TrialConfig(
        data=DataConfig(dataset="cifar10", fraction=fraction), train=Recipe(epochs=epochs), student="resnet8",
        method=MethodRef(name=method),
    ).model_copy(update=fields)  # fmt: skip


def taught(fraction: float, epochs: int, method: str = "kd", teacher: str = "resnet14", **fields: Any) -> TrialConfig:
    return trial(fraction, epochs, method, teacher=TeacherRef(model=teacher, id="a" * 16), **fields)


def row(fraction: float, seconds: float | None, epochs: int = 10, **columns: Any) -> dict[str, Any]:
    """Of vanilla resnet8 on 50,000 images, unless `columns` say otherwise."""
    return {
        "dataset": "cifar10", "fraction": fraction, "val_size": 0, "image_size": None, "student": "resnet8",
        "teacher": None, "method": "vanilla", "precision": "fp32", "cpus": 1, "device": "cpu",
        "n_train": round(50_000 * fraction), "epochs": epochs, "train_seconds": seconds, "teacher_seconds": 0.0,
        "shared_seconds": 0.0, "teacher_epochs": 0, "assistant_ids": None, "source_id": None, "replayed": None,
        "status": "completed", **columns,
    }  # fmt: skip


def kd_row(seconds: float, teacher: float | None, shared: float | None, epochs: int | None, **columns: Any) -> dict:
    """Of kd on half of the images in 10 epochs. `epochs`: for how many the teacher's outputs were computed."""
    told = {"teacher_seconds": teacher, "shared_seconds": shared, "teacher_epochs": epochs}
    return row(0.5, seconds, **{"method": "kd", "teacher": "resnet14", **told, **columns})


def test_as_many_images_take_the_median_of_like_trials():
    # 2, 3 and 10 s an epoch: the median is 3.
    cost = Cost([row(0.5, 20.0), row(0.5, 30.0), row(0.5, 100.0)])
    assert cost.estimate(trial(0.5, 7), cpus=1) == (pytest.approx(21.0), True)
    assert cost.seconds(trial(0.501, 7), cpus=1) == pytest.approx(21.0)  # 50 images more: within a hundredth
    assert cost.estimate(trial(0.5, 7), cpus=2) is None
    assert cost.estimate(trial(0.5, 7, train=Recipe(epochs=7, precision="bf16")), cpus=1) is None


def test_another_number_of_images_is_proportional_to_one_size():
    assert Cost([row(0.5, 20.0), row(0.5, 30.0), row(0.5, 100.0)]).seconds(trial(1.0, 7), 1) == pytest.approx(42.0)


def test_two_sizes_give_a_line():
    # 5,000 images take 2 s an epoch (the median of 1, 2, 9) and 10,000 take 3: 1 s and 1 s for each 5,000.
    cost = Cost([row(0.1, 10.0), row(0.1, 20.0), row(0.1, 90.0), row(0.2, 30.0)])
    assert cost.seconds(trial(0.8, 2), 1) == pytest.approx(2 * 9.0)
    assert cost.seconds(trial(0.1, 2), 1) == pytest.approx(2 * 2.0)


def test_more_sizes_give_the_line_of_least_squares():
    # 3, 4 and 6 s for one, two and three times 5,000 images: slope 3/2, mean 13/3 at two; four times take 13/3 + 3.
    cost = Cost([row(0.1, 30.0), row(0.2, 40.0), row(0.3, 60.0)])
    assert cost.seconds(trial(0.4, 1), 1) == pytest.approx(22 / 3)


@pytest.mark.parametrize(
    ("small", "large", "seconds"),
    [
        (2.0, 6.0, 20.0),  # a line through them would begin at -2 s: 0.4 and 0.6 ms an image, 0.5 in the middle
        (3.0, 2.0, 16.0),  # more images take less: 0.6 and 0.2 ms an image, 0.4 in the middle
    ],
)
def test_a_line_that_cannot_be_is_not_taken(small, large, seconds):
    cost = Cost([row(0.1, 10 * small), row(0.2, 10 * large)])
    assert cost.seconds(trial(0.8, 1), 1) == pytest.approx(seconds)


class TestTeacher:
    def test_its_seconds_and_those_of_sharing_are_no_part_of_a_trials_own(self):
        cost = Cost([kd_row(100.0, 30.0, 10.0, 10)])  # 10 s - 3 s - 1 s an epoch
        assert cost.estimate(taught(0.5, 7), 1) == (pytest.approx(42.0), True)

    def test_outputs_are_counted_by_the_epochs_that_they_were_computed_for(self):
        cost = Cost([kd_row(100.0, 6.0, 5.0, 2), kd_row(100.0, 40.0, 5.0, 10), kd_row(100.0, 0.0, 5.0, 0)])
        assert cost.teacher_seconds(taught(0.5, 7), 1) == pytest.approx(3.5)  # the median of 6 / 2 and 40 / 10
        assert cost.teacher_seconds(taught(1.0, 7), 1) == pytest.approx(7.0)
        assert cost.reading_seconds(taught(1.0, 7), 1) == pytest.approx(1.0)  # 0.5 for half of the images

    def test_they_are_the_same_for_all_methods_and_students_and_no_other_teacher(self):
        cost = Cost([kd_row(100.0, 30.0, 0.0, 10, student="resnet20")])
        assert cost.teacher_seconds(taught(0.5, 7, "cid"), 1) == pytest.approx(3.0)
        assert cost.teacher_seconds(taught(0.5, 7, teacher="resnet32"), 1) is None
        assert cost.teacher_seconds(trial(0.5, 7), 1) is None
        assert cost.reading_seconds(taught(0.5, 7), 1) is None

    def test_trials_with_assistants_do_not_tell_what_one_teacher_takes(self):
        cost = Cost([kd_row(100.0, 30.0, 10.0, 10, assistant_ids=["b" * 16])])
        assert cost.teacher_seconds(taught(0.5, 7), 1) is None
        assert cost.seconds(taught(0.5, 7), 1) == pytest.approx(42.0)

    def test_rows_of_before_these_columns_tell_their_whole_time(self):
        cost = Cost([kd_row(100.0, None, None, None)])
        assert cost.seconds(taught(0.5, 7), 1) == pytest.approx(70.0)
        assert cost.teacher_seconds(taught(0.5, 7), 1) is None


class TestDevice:
    def test_rows_of_others_are_left_out(self):
        cost = Cost([row(0.5, 30.0), *(row(0.5, 1.0, device="H100") for _ in range(3))], "cpu")
        assert cost.seconds(trial(0.5, 1), 1) == pytest.approx(3.0)
        assert (cost.device, cost.is_of_asked_device, cost.measured) == ("cpu", True, True)

    def test_without_a_row_of_the_one_asked_for_it_is_that_of_most(self):
        rows = [row(0.5, 30.0, device="A100"), row(0.5, 1.0, device="H100"), row(0.5, 1.0, device="H100")]
        cost = Cost(rows, "cpu")
        assert cost.seconds(trial(0.5, 1), 1) == pytest.approx(0.1)
        assert (cost.device, cost.is_of_asked_device, cost.measured) == ("H100", False, True)
        probe = row(0.5, 1.0, source_id="a" * 16)  # of the device asked for, and tells nothing of training
        assert Cost([*rows, probe], "cpu").device == "H100"

    def test_before_any_row_nothing_is_measured(self):
        cost = Cost([], "cpu")
        assert (cost.device, cost.measured, cost.seconds(trial(0.5, 1), 1)) == ("cpu", False, None)


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "stopped"},
        {"status": "failed", "train_seconds": None},
        {"status": "diverged"},
        {"replayed": f"stored/{'a' * 16}"},
        {"source_id": "a" * 16},
        {"train_seconds": None},
        {"n_train": None},
    ],
)
def test_rows_that_say_nothing_of_training_do_not_count(columns):
    assert not Cost([row(0.5, 9000.0, **columns)]).measured
    assert Cost([row(0.5, 30.0), row(0.5, 9000.0, **columns)]).seconds(trial(0.5, 7), 1) == pytest.approx(21.0)


def test_probes_take_nothing():
    probe = Probe(source="a" * 16, dataset="cifar10", num_classes=10, lrs=(0.1,), holdout=0.1)
    assert Cost([]).estimate(trial(1.0, 1, probe=probe), 1) == (0.0, True)


class TestFolder:
    """Of pets, half of the images beside 20 held out are 90: there are 200."""

    ROW = row(0.5, 30.0, dataset="folder:pets", image_size=32, n_train=90, val_size=20)

    def of(self, **data: Any) -> TrialConfig:
        return trial(1.0, 7, data=PETS.model_copy(update=data))

    def test_rows_tell_how_many_images_there_are(self):
        cost = Cost([self.ROW])
        assert cost.images(self.of()) == 200
        assert cost.images(self.of(fraction=0.25, val_size=100)) == 25
        assert cost.seconds(self.of(fraction=0.5, val_size=20), 1) == pytest.approx(21.0)
        assert cost.seconds(self.of(), 1) == pytest.approx(21.0 * 200 / 90)

    @pytest.mark.parametrize("order", [1, -1])
    def test_the_row_of_most_images_tells_it_best(self, order):
        # A 100th of 180 images is one of each of 3 classes.
        rows = [self.ROW, row(0.01, 5.0, dataset="folder:pets", image_size=32, n_train=3, val_size=20)]
        assert Cost(rows[::order]).images(self.of()) == 200

    def test_without_rows_they_are_unknown(self):
        cost = Cost([row(0.5, 30.0)])
        assert (cost.images(self.of()), cost.estimate(self.of(), 1)) == (None, None)

    def test_what_an_unlike_trial_takes_is_unknown(self):
        other = self.of().model_copy(update={"method": MethodRef(name="ls")})
        assert Cost([self.ROW, row(0.5, 30.0)]).estimate(other, 1) is None


class TestUnlikeTrials:
    """Multiply-adds are those of TestMultiplyAdds; vanilla resnet8 takes 2 s an epoch of 25,000 images.

    Steps beside the plain one, without the teacher: kd 1.25, fitnet 1.5.
    """

    ROW = row(0.5, 20.0)

    @pytest.fixture(autouse=True)
    def steps(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        ratios = {"vanilla": [0.9, 1.0, 1.1], "kd": [1.0, 1.25, 1.3], "fitnet": [1.4, 1.5, 1.9]}
        costs = {"pairs": {"t/s": {name: {"without_teacher": ratio} for name, ratio in ratios.items()}}}
        monkeypatch.setattr(module, "measured", lambda: costs)
        module._work.cache_clear()
        yield
        module._work.cache_clear()

    def test_methods_differ_by_their_steps(self):
        cost = Cost([self.ROW])
        assert cost.estimate(taught(0.5, 7), 1) == (pytest.approx(7 * 2 * 1.25), False)
        assert cost.estimate(taught(1.0, 7), 1) == (pytest.approx(7 * 4 * 1.25), False)
        assert cost.estimate(trial(0.5, 7, "ls"), 1) == (pytest.approx(7 * 2), False)  # not measured

    def test_a_teacher_that_is_asked_in_each_step_counts(self):
        student, teacher = TestMultiplyAdds.RESNET8, TestMultiplyAdds.RESNET14
        ratio = (3 * student * 1.5 + teacher) / (3 * student)
        assert Cost([self.ROW]).seconds(taught(0.5, 7, "fitnet"), 1) == pytest.approx(7 * 2 * ratio)
        both = (3 * student * 1.75 + teacher) / (3 * student)
        assert Cost([self.ROW]).seconds(taught(0.5, 7, "kd+fitnet"), 1) == pytest.approx(7 * 2 * both)

    def test_students_differ_by_their_multiply_adds(self):
        ratio = TestMultiplyAdds.RESNET14 / TestMultiplyAdds.RESNET8
        found = Cost([self.ROW]).estimate(trial(0.5, 7, student="resnet14"), 1)
        assert found == (pytest.approx(7 * 2 * ratio), False)

    def test_the_same_student_tells_more_than_others(self):
        slow = row(0.5, 9000.0, student="resnet14")
        assert Cost([slow, self.ROW]).seconds(taught(0.5, 7), 1) == pytest.approx(7 * 2 * 1.25)
        assert Cost([slow, self.ROW]).seconds(trial(0.5, 7, student="resnet14"), 1) == pytest.approx(7 * 900)

    def test_of_other_students_it_is_the_median(self):
        # As much for a multiply-add, 2.5 times and 100 times as much.
        ratio = TestMultiplyAdds.RESNET14 / TestMultiplyAdds.RESNET8
        rows = [self.ROW, row(0.5, 50.0 * ratio, student="resnet14"), row(0.5, 1e6, student="resnet32")]
        found = Cost(rows).seconds(trial(0.5, 7, student="resnet20"), 1)
        twenty = TestMultiplyAdds.RESNET8 + 12 * 1024 * 9 * 256
        assert found == pytest.approx(7 * 5 * twenty / TestMultiplyAdds.RESNET8)

    def test_other_images_count_by_their_size(self):
        # At 16 x 16 convolutions cost a quarter, and the linear layer as much.
        small = trial(0.5, 7, data=DataConfig(dataset="cifar10", fraction=0.5, image_size=16))
        ratio = ((TestMultiplyAdds.RESNET8 - 640) / 4 + 640) / TestMultiplyAdds.RESNET8
        assert Cost([self.ROW]).estimate(small, 1) == (pytest.approx(7 * 2 * ratio), False)

    def test_other_precisions_and_threads_do_not_compare(self):
        rows = [row(0.5, 20.0, precision="bf16"), row(0.5, 20.0, cpus=2)]
        assert Cost(rows).seconds(taught(0.5, 7), 1) is None
        assert Cost(rows).seconds(taught(0.5, 7), 2) == pytest.approx(7 * 2 * 1.25)


KINDS = [(student, method) for student in ("resnet8", "resnet14", "resnet20") for method in ("vanilla", "kd", "fitnet")]


def law(place: int, images: int) -> float:
    """Seconds an epoch: a constant and something an image, both of the kind of trial."""
    return 0.5 + 0.25 * place + images * (1 + place) * 1e-4


def _kind(student: str, method: str, fraction: float) -> TrialConfig:
    made = trial if method == "vanilla" else taught
    return made(fraction, 30, method, student=student)


def _rows(fractions: tuple[float, ...], noise: Callable[[], float]) -> list[dict[str, Any]]:
    """One calibration trial a kind and fraction."""
    return [
        row(fraction, 10 * law(place, round(50_000 * fraction)) * noise(), student=student, method=method,
            teacher=None if method == "vanilla" else "resnet14")
        for place, (student, method) in enumerate(KINDS)
        for fraction in fractions
    ]  # fmt: skip


def test_a_linear_law_is_found():
    cost = Cost(_rows((0.1, 0.4), lambda: 1.0))
    for place, (student, method) in enumerate(KINDS):
        for fraction in (0.02, 0.1, 0.25, 0.4, 1.0):
            exact = 30 * law(place, round(50_000 * fraction))
            assert cost.estimate(_kind(student, method, fraction), 1) == (pytest.approx(exact, rel=1e-9), True)


@pytest.mark.parametrize(
    ("calibrated", "asked"), [((0.2,), (0.2,)), ((0.2, 1.0), (0.1, 0.4, 0.6, 1.0))], ids=["one size", "two sizes"]
)
def test_error_after_one_calibration_trial_a_kind(calibrated, asked):
    # Each trial takes 3 % more or less than its law says; the bound on the mean absolute percentage error is 15 %.
    draws = np.random.default_rng(0)
    cost = Cost(_rows(calibrated, lambda: 1 + 0.03 * draws.standard_normal()))
    errors = []
    for place, (student, method) in enumerate(KINDS):
        for fraction in asked:
            took = 30 * law(place, round(50_000 * fraction)) * (1 + 0.03 * draws.standard_normal())
            guess = cost.seconds(_kind(student, method, fraction), 1)
            assert guess is not None
            errors.append(abs(guess - took) / took)
    assert np.mean(errors) <= 0.15


class TestLearned:
    """From the rows in a folder of results."""

    @pytest.fixture
    def spec(self, spec_text, tmp_path):
        return parse_text(spec_text.replace("[grid]", f"[run]\nresults = '{tmp_path}'\ngpus = 0\n[grid]"))

    def test_of_the_sweep_and_of_teachers_and_before_any_of_all_other_sweeps(self, spec, tmp_path, end):
        plan = expand(spec)
        vanilla = plan.trials[plan.cells[0].trial_id]
        (teacher,) = plan.teachers.values()
        end(Store(str(tmp_path), "other"), vanilla, "student", Status.COMPLETED, seconds=20.0)
        assert learned(spec).seconds(vanilla, 1) == pytest.approx(20.0)
        end(Store(str(tmp_path), TEACHERS), teacher, "teacher", Status.COMPLETED, seconds=20.0)  # of one epoch
        assert learned(spec).seconds(vanilla, 1) == pytest.approx(30.0)  # the median of 10 and 20 s an epoch, twice
        end(Store(str(tmp_path), "small"), vanilla, "student", Status.COMPLETED, seconds=60.0)
        assert learned(spec).seconds(vanilla, 1) == pytest.approx(50.0)  # of 20 and 30

    def test_before_any_row(self, spec):
        cost = learned(spec)
        assert (cost.measured, cost.device) == (False, "cpu")


class TestMultiplyAdds:
    """An image of 32 x 32 costs resnet8 with 10 classes 12,501,632 multiply-adds, and resnet14 26,657,408.

    Of resnet8: 3 x 3 convolutions 3 -> 16 and two 16 -> 16 at 32 x 32; 16 -> 32, 32 -> 32 at 16 x 16; 32 -> 64,
    64 -> 64 at 8 x 8; 1 x 1 shortcuts 16 -> 32 and 32 -> 64; a linear layer 64 -> 10.
    """

    RESNET8 = (
        1024 * 9 * (3 * 16 + 2 * 16 * 16) + 256 * (9 * (16 * 32 + 32 * 32) + 16 * 32)
        + 64 * (9 * (32 * 64 + 64 * 64) + 32 * 64) + 64 * 10
    )  # fmt: skip
    # Six more convolutions of equal widths, two a stage: each 1024 * 9 * 256.
    RESNET14 = RESNET8 + 6 * 1024 * 9 * 256

    def test_student_alone_is_counted_three_times(self):
        assert multiply_adds([trial(0.5, 7)]) == 7 * 25_000 * 3 * self.RESNET8

    def test_teacher_is_counted_once(self):
        assert multiply_adds([taught(1.0, 2)]) == 2 * 50_000 * (3 * self.RESNET8 + self.RESNET14)

    def test_turned_images_and_partners_are_counted(self):
        turned = taught(1.0, 1, "sskd", "resnet8")
        assert multiply_adds([turned]) == 50_000 * 4 * 4 * self.RESNET8
        assert multiply_adds([trial(1.0, 1, "cs_kd")]) == 50_000 * 4 * self.RESNET8

    def test_held_out_images_are_not_trained_on(self):
        held = trial(1.0, 1)
        held = held.model_copy(update={"data": held.data.model_copy(update={"val_size": 10_000})})
        assert multiply_adds([held]) == 40_000 * 3 * self.RESNET8

    def test_probes_cost_nothing_and_folders_are_unknown(self):
        probe = Probe(source="a" * 16, dataset="cifar10", num_classes=10, lrs=(0.1,), holdout=0.1)
        assert multiply_adds([trial(1.0, 1, probe=probe)]) == 0
        assert multiply_adds([trial(1.0, 1, data=PETS)]) is None

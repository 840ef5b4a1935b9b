"""Estimates from earlier rows."""

import pytest

from kdtrain.config import DataConfig, FolderRef, MethodRef, Probe, Recipe, TeacherRef, TrialConfig
from sweeps.cost import Cost, multiply_adds
from sweeps.words import count, duration


def trial(fraction: float, epochs: int, method: str = "vanilla") -> TrialConfig:
    return TrialConfig(
        data=DataConfig(dataset="cifar10", fraction=fraction), train=Recipe(epochs=epochs), student="resnet8",
        method=MethodRef(name=method),
    )  # fmt: skip


def row(fraction: float, seconds: float | None, epochs: int) -> dict[str, object]:
    return {
        "dataset": "cifar10", "image_size": None, "student": "resnet8", "teacher": None, "method": "vanilla",
        "precision": "fp32", "cpus": 1, "fraction": fraction, "train_seconds": seconds, "epochs": epochs,
        "source_id": None,
    }  # fmt: skip


def test_median_of_like_trials_then_scaled_by_fraction_then_unknown():
    # 2, 3 and 10 s an epoch at fraction 0.5: the median is 3.
    cost = Cost([row(0.5, 20.0, 10), row(0.5, 30.0, 10), row(0.5, 100.0, 10), row(0.5, None, 10)])
    assert cost.seconds(trial(0.5, 7), cpus=1) == pytest.approx(21.0)
    assert cost.seconds(trial(1.0, 7), cpus=1) == pytest.approx(42.0)  # 6 s an epoch on all images
    assert cost.seconds(trial(0.5, 7, "kd"), cpus=1) is None
    assert cost.seconds(trial(0.5, 7), cpus=2) is None
    assert cost.total([trial(0.5, 1), trial(1.0, 1), trial(0.5, 1, "kd")], 1) == (pytest.approx(9.0), 1)


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
        taught = trial(1.0, 2, "kd").model_copy(update={"teacher": TeacherRef(model="resnet14", id="a" * 16)})
        assert multiply_adds([taught]) == 2 * 50_000 * (3 * self.RESNET8 + self.RESNET14)

    def test_turned_images_and_partners_are_counted(self):
        turned = trial(1.0, 1, "sskd").model_copy(update={"teacher": TeacherRef(model="resnet8", id="a" * 16)})
        assert multiply_adds([turned]) == 50_000 * 4 * 4 * self.RESNET8
        assert multiply_adds([trial(1.0, 1, "cs_kd")]) == 50_000 * 4 * self.RESNET8

    def test_held_out_images_are_not_trained_on(self):
        held = trial(1.0, 1)
        held = held.model_copy(update={"data": held.data.model_copy(update={"val_size": 10_000})})
        assert multiply_adds([held]) == 40_000 * 3 * self.RESNET8

    def test_probes_cost_nothing_and_folders_are_unknown(self):
        probe = Probe(source="a" * 16, dataset="cifar10", num_classes=10, lrs=(0.1,), holdout=0.1)
        assert multiply_adds([trial(1.0, 1).model_copy(update={"probe": probe})]) == 0
        folder = DataConfig(dataset="folder:/x", folder=FolderRef(sha256="e" * 64, num_classes=3), image_size=32)
        assert multiply_adds([trial(1.0, 1).model_copy(update={"data": folder})]) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_count():
    assert [count(number, "trial") for number in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]

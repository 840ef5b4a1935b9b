"""Estimates from earlier rows."""

import pytest

from kdtrain.config import DataConfig, MethodRef, Recipe, TrialConfig
from sweeps.cost import Cost
from sweeps.words import count, duration


def trial(fraction: float, epochs: int, method: str = "vanilla") -> TrialConfig:
    return TrialConfig(
        data=DataConfig(dataset="cifar10", fraction=fraction), train=Recipe(epochs=epochs), student="resnet8",
        method=MethodRef(name=method),
    )  # fmt: skip


def row(fraction: float, seconds: float | None, epochs: int) -> dict[str, object]:
    return {
        "dataset": "cifar10", "student": "resnet8", "teacher": None, "method": "vanilla", "precision": "fp32",
        "cpus": 1, "fraction": fraction, "train_seconds": seconds, "epochs": epochs, "source_id": None,
    }  # fmt: skip


def test_median_of_like_trials_then_scaled_by_fraction_then_unknown():
    # 2, 3 and 10 s an epoch at fraction 0.5: the median is 3.
    cost = Cost([row(0.5, 20.0, 10), row(0.5, 30.0, 10), row(0.5, 100.0, 10), row(0.5, None, 10)])
    assert cost.seconds(trial(0.5, 7), cpus=1) == pytest.approx(21.0)
    assert cost.seconds(trial(1.0, 7), cpus=1) == pytest.approx(42.0)  # 6 s an epoch on all images
    assert cost.seconds(trial(0.5, 7, "kd"), cpus=1) is None
    assert cost.seconds(trial(0.5, 7), cpus=2) is None
    assert cost.total([trial(0.5, 1), trial(1.0, 1), trial(0.5, 1, "kd")], 1) == (pytest.approx(9.0), 1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_count():
    assert [count(number, "trial") for number in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]

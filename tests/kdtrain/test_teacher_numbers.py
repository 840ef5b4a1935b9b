"""How many numbers an image methods look at of their teachers.

Of 28 x 28 images in 10 classes resnet14 shows 10 logits, 64 pooled features and maps of 16 x 28 x 28, 32 x 14 x 14 and
64 x 7 x 7 after a stem of 16 x 28 x 28.
"""

from typing import Any

import pytest

from kdtrain.build import teacher_numbers
from kdtrain.config import DataConfig, MethodRef, TeacherRef, TrialConfig

ATTENTION = {"at:0:28": 28 * 28, "at:1:14": 14 * 14, "at:2:7": 7 * 7}


def trial(method: str, teacher: str | None = "resnet14", data: str = "fashion_mini", **params: Any) -> TrialConfig:
    return TrialConfig(
        data=DataConfig(dataset=data), student="resnet8", method=MethodRef(name=method, params=params),
        teacher=None if teacher is None else TeacherRef(model=teacher, id="a" * 16),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "numbers"),
    [
        ("kd", {"logits": 10}),
        ("rkd", {"pooled": 64}),
        ("srrl", {"logits": 10, "pooled": 64}),
        ("at", ATTENTION),
        ("kd+at", {"logits": 10, **ATTENTION}),
        # Matrices of the channels at both ends of a stage.
        ("fsp", {"fsp:0": 16 * 16, "fsp:1": 16 * 32, "fsp:2": 32 * 64}),
        ("sp", {}),
        ("kd+sp", {"logits": 10}),
    ],
)
def test_by_method(method, numbers):
    assert teacher_numbers(trial(method)) == numbers


def test_by_parameters_classes_and_teacher():
    assert teacher_numbers(trial("kd", data="cifar100")) == {"logits": 100}
    assert teacher_numbers(trial("rkd", teacher="wrn_16_2")) == {"pooled": 128}
    assert teacher_numbers(trial("vanilla", teacher=None)) == {}


def test_of_assistants_nothing_is_counted():
    dgkd = trial("dgkd", assistants=["resnet14"]).model_copy(
        update={
            "teacher": TeacherRef(model="resnet20", id="a" * 16),
            "assistants": (TeacherRef(model="resnet14", id="b" * 16),),
        }
    )
    assert teacher_numbers(dgkd) == {"logits": 10}

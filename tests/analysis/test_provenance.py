from datetime import UTC, datetime

from analysis.load import load
from analysis.provenance import Failure, Teacher, build_provenance


def test_facts(results):
    results.add(host="node-2", git_commit=None)
    # Two CPUs for an hour each; the failed one has only its start and end, also an hour.
    results.add(seed=2, status="failed", ended_at=datetime(2026, 3, 1, 13, 0, tzinfo=UTC))
    facts = dict(build_provenance(load(results.path, "demo")).facts)
    assert facts == {
        "Trials": "1 completed, 1 failed",
        "Spec": "ffffffffffff (SHA-256)",
        "kdsweep": "0.1.0",
        "Git commit": "0123456789ab with local changes, unknown",
        "PyTorch": "2.8.0",
        "Python": "3.11.9",
        "Hosts": "node-1, node-2",
        "Devices": "cpu",
        "First start": "2026-03-01 12:00 UTC",
        "Last end": "2026-03-01 13:00 UTC",
        "Core-hours": "4.00 (CPUs × time of training)",
    }


def test_teachers(results):
    results.add_teacher()
    results.add()
    results.add(teacher="vgg13", teacher_id="b" * 64)
    assert build_provenance(load(results.path, "demo")).teachers == (
        Teacher(
            id=results.teacher_id, model="ResNet-56", training="CIFAR-100, 100 %, 240 epochs, seed 1", accuracy=72.34
        ),
        Teacher(id="b" * 64, model="VGG-13", training="", accuracy=None),
    )


def test_teachers_of_other_methods_and_assistants_are_told(results):
    first, second = "b" * 16, "c" * 16
    results.add_teacher(method="ls", params={"epsilon": 0.1})
    results.add_teacher(trial_id=first, student="resnet32", method="dgkd", teacher="resnet56", params={"lam": 0.5})
    results.add(method="dgkd", assistant_ids=[first, second])
    told = [(teacher.model, teacher.training) for teacher in build_provenance(load(results.path, "demo")).teachers]
    assert told == [
        ("ResNet-32", "CIFAR-100, 100 %, 240 epochs, seed 1, DGKD (lam=0.5)"),
        ("ResNet-56", "CIFAR-100, 100 %, 240 epochs, seed 1, LS (epsilon=0.1)"),
        ("unknown", ""),
    ]


def test_weights_from_elsewhere_are_told_by_their_file(results):
    results.add_published("s3://weights/resnet56.pth", test_top1=72.3)
    results.add()
    (teacher,) = build_provenance(load(results.path, "demo")).teachers
    assert (teacher.training, teacher.accuracy) == ("weights from s3://weights/resnet56.pth", 72.3)


def test_a_teacher_that_is_only_probed_is_told(results):
    results.add_teacher()
    results.add_probe(results.teacher_id, teacher=None, student="resnet56", method="vanilla")
    (teacher,) = build_provenance(load(results.path, "demo")).teachers
    assert (teacher.id, teacher.model) == (results.teacher_id, "ResNet-56")


def test_a_failed_probe_is_told_from_its_student(results):
    results.add_probe(results.add(), status="failed", error_type="E")
    (failure,) = build_provenance(load(results.path, "demo")).failures
    assert failure.what == "KD, ResNet-56 → ResNet-20, CIFAR-100 → STL-10, 100 %, seed 1"


def test_failures(results):
    results.add(
        status="failed", error_type="OSError", error="Traceback:\n  line 1\nOSError: disk full\n", epochs_done=7
    )
    results.add(seed=2, status="diverged", error_type="DivergedError", error="kdtrain.record.DivergedError: kd is NaN")
    results.add(seed=3, status="failed", error_type="WorkerDied", error=None)
    results.add(seed=4, status="stopped")
    what = "KD, ResNet-56 → ResNet-20, 100 %, seed"
    assert build_provenance(load(results.path, "demo")).failures == (
        Failure(id=f"{1:016x}", what=f"{what} 1", status="failed", error="OSError: disk full", epochs_done=7),
        Failure(
            id=f"{2:016x}",
            what=f"{what} 2",
            status="diverged",
            error="kdtrain.record.DivergedError: kd is NaN",
            epochs_done=240,
        ),
        Failure(id=f"{3:016x}", what=f"{what} 3", status="failed", error="WorkerDied", epochs_done=240),
    )


def test_nothing_ended(results):
    results.add_epochs("c" * 16, test=[1.0])
    provenance = build_provenance(load(results.path, "demo"))
    assert provenance.facts == (("Trials", "no completed trial yet: 1 under way"),)

"""The training loop: repeatable, resumable bit for bit, honest about divergence."""

import math
from dataclasses import asdict

import pytest
import torch

from kdtrain import data, loop
from kdtrain.config import ConfigError, DataConfig, MethodRef, Recipe, TeacherRef, TrialConfig, Where
from kdtrain.data.dataset import Info
from kdtrain.data.memory import Arrays, opener
from kdtrain.loop import Training, lr_at, train
from kdtrain.record import DivergedError, EpochRecord

METHODS = ["vanilla", "kd", "fitnet+kd", "sp", "cid", "ipwd"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of 96 + 60 images, 12x12, 3 classes that differ in brightness."""
    generator = torch.Generator().manual_seed(0)

    def images(labels: torch.Tensor) -> torch.Tensor:
        noise = torch.randint(0, 60, (len(labels), 1, 12, 12), generator=generator)
        return (noise + 80 * labels[:, None, None, None]).to(torch.uint8)

    labels = torch.arange(96) % 3, torch.arange(60) % 3
    arrays = Arrays(images(labels[0]), labels[0], images(labels[1]), labels[1])
    info = Info(
        name="tiny", num_classes=3, in_channels=1, image_size=12, mean=(0.4,), std=(0.3,),
        open=opener(lambda where: arrays),
    )  # fmt: skip
    monkeypatch.setitem(data.DATASETS, "tiny", info)


@pytest.fixture
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[TeacherRef, Where]:
    """A resnet14 trained for one epoch, and where its weights lie."""
    training = Training(config("vanilla", student="resnet14", epochs=1), Where())
    training.run_epoch()
    path = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    path.write_bytes(training.weights())
    return TeacherRef(model="resnet14", id=training.id), Where(teacher_weights=str(path))


def config(method: str, teacher: TeacherRef | None = None, student: str = "resnet8", **fields: object) -> TrialConfig:
    recipe = {"epochs": 4, "batch_size": 20, "lr": 0.05, **fields}
    images = {key: recipe.pop(key) for key in ("fraction", "val_size") if key in recipe}
    params = recipe.pop("params", {})
    return TrialConfig(
        data=DataConfig(dataset="tiny", **images),
        train=Recipe(**recipe),
        teacher=teacher if method != "vanilla" else None,
        student=student,
        method=MethodRef(name=method, params=params),
        seed=3,
    )


@pytest.mark.parametrize("method", METHODS)
def test_resumed_run_equals_uninterrupted_one_bit_for_bit(outcome, method, teacher):
    ref, where = teacher
    trial = config(method, ref)
    whole = Training(trial, where)
    packed = []
    while not whole.done:
        whole.run_epoch()
        packed.append(whole.pack())
    for state in packed:  # killed after each epoch, also after the last
        resumed = Training(trial, where, state)
        torch.manual_seed(999)  # whatever the process did before must not matter
        while not resumed.done:
            resumed.run_epoch()
        assert outcome(resumed) == outcome(whole)


def test_resume_with_a_teacher_in_train_mode_keeps_its_running_statistics(outcome, teacher):
    ref, where = teacher
    trial = config("ipwd", ref, params={"teacher_bn": "train"}, epochs=2)
    whole = Training(trial, where)
    whole.run_epoch()
    resumed = Training(trial, where, whole.pack())
    for training in (whole, resumed):
        training.run_epoch()
    assert outcome(resumed) == outcome(whole)


def test_two_runs_are_equal_and_another_seed_is_not(outcome, teacher):
    ref, where = teacher
    trial = config("cid", ref)
    first, second, other = (Training(t, where) for t in (trial, trial, trial.model_copy(update={"seed": 4})))
    for training in (first, second, other):
        while not training.done:
            training.run_epoch()
    assert outcome(first) == outcome(second)
    assert outcome(first)[0] != outcome(other)[0]


def test_methods_start_from_one_student_and_see_one_order_of_views_at_one_seed(teacher):
    ref, where = teacher
    trainings = [Training(config(method, ref), where) for method in METHODS]
    students = [training.student.state_dict() for training in trainings]
    for student in students[1:]:
        assert all(torch.equal(student[name], students[0][name]) for name in student)
    shown = [torch.cat([batch.images for batch, _ in training.batches.epoch(2, 2)]) for training in trainings]
    assert all(torch.equal(images, shown[0]) for images in shown[1:])


def test_learning_rate_drops_after_each_milestone():
    recipe = Recipe(epochs=240, lr=0.05)
    # RepDistiller: milestones 150, 180, 210; the first reduced epochs are 151, 181 and 211.
    wanted = {1: 0.05, 150: 0.05, 151: 0.005, 180: 0.005, 181: 0.0005, 210: 0.0005, 211: 0.00005, 240: 0.00005}
    assert {epoch: lr_at(recipe, epoch) for epoch in wanted} == pytest.approx(wanted)


def test_weights_follow_sgd_with_the_recipes_momentum_and_decay():
    trial = config("vanilla", epochs=1, batch_size=96, momentum=0.9, weight_decay=0.1, augment=False)
    training = Training(trial, Where())
    before = training.student.fc.weight.detach().clone()
    (batch,) = training.batches.plain("train")
    training.student.train()
    loss = torch.nn.functional.cross_entropy(training.student(batch.images).logits, batch.labels)
    (gradient,) = torch.autograd.grad(loss, training.student.fc.weight)
    training.run_epoch()
    # The first step of SGD: the momentum buffer is the gradient plus decay.
    expected = before - 0.05 * (gradient + 0.1 * before)
    torch.testing.assert_close(training.student.fc.weight.detach(), expected, rtol=1e-4, atol=1e-6)


def test_records_hold_the_mean_of_each_term_over_images_and_accuracy_in_percent(teacher):
    ref, where = teacher
    trial = config("kd", ref, epochs=1, lr=1e-12, batch_size=40, augment=False, momentum=0.0)
    training = Training(trial, where)
    record = training.run_epoch()
    assert set(record.terms) == {"ce", "kd"}
    assert record.epoch == 1
    # With no learning to speak of, the terms are batch means weighted by 40, 40 and 16 images.
    training.student.train()
    total, right = 0.0, 0
    for batch, _ in training.batches.epoch(1, 1):
        logits, labels = training.student(batch.images).logits, batch.labels
        total += 0.1 * torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        right += (logits.argmax(1) == labels).sum().item()
    assert record.terms["ce"] == pytest.approx(total / 96, rel=1e-4)
    assert record.train_acc == pytest.approx(100 * right / 96)


def test_validation_split_is_evaluated_each_epoch_and_the_test_set_only_at_last():
    training = Training(config("vanilla", epochs=3, val_size=12), Where())
    records = []
    while not training.done:
        records.append(training.run_epoch())
    assert [record.test_acc is None for record in records] == [True, True, False]
    assert all(record.val_acc is not None for record in records)
    result = training.result()
    accs = [record.val_acc for record in records]
    assert (result.best_split, result.best_acc) == ("val", max(accs))
    assert result.best_epoch == accs.index(max(accs)) + 1
    assert result.val_acc == records[-1].val_acc
    assert result.n_train == 84
    assert not set(training.batches.train.tolist()) & set(training.batches.val.tolist())


def test_last_epoch_is_primary_and_best_epoch_is_recorded(monkeypatch):
    accs = iter([50.0, 80.0, 80.0, 60.0, 61.0])  # the last is asked for again at the end
    monkeypatch.setattr(loop.metrics, "top1", lambda logits, labels: next(accs))
    training = Training(config("vanilla"), Where())
    while not training.done:
        training.run_epoch()
    result = training.result()
    assert (result.best_epoch, result.best_acc, result.best_split) == (2, 80.0, "test")
    assert result.test_top1 == 61.0


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_nan_or_inf_stops_the_trial_as_diverged(lr):
    with pytest.raises(DivergedError, match=r"the loss term 'ce' became (nan|inf) in epoch [12]"):
        train(config("vanilla", lr=lr, epochs=2), Where(), lambda record: None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_accuracy_of_the_last_epoch_and_of_the_result_are_one_number(precision):
    training = Training(config("vanilla", precision=precision, epochs=1, lr=1e-9), Where())
    record = training.run_epoch()
    assert training.result().test_top1 == record.test_acc


def test_network_that_breaks_in_its_last_step_is_diverged():
    training = Training(config("vanilla", epochs=1, batch_size=96, lr=1e30), Where())
    training.run_epoch()  # one step, whose loss was finite
    with pytest.raises(DivergedError, match="the predictions became NaN or infinite in epoch 1"):
        training.result()


def test_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="device must be one of this machine, but got 'foo'"):
        Training(config("vanilla"), Where(device="foo"))


def test_train_tells_every_epoch_and_learns_the_bright_classes():
    records: list[EpochRecord] = []
    result = train(config("vanilla", epochs=6, lr=0.02), Where(), records.append)
    assert [record.epoch for record in records] == [1, 2, 3, 4, 5, 6]
    assert result.test_top1 > 60  # 33 by chance
    assert result.train_seconds == pytest.approx(sum(record.seconds for record in records))
    assert all(math.isfinite(value) for value in asdict(result).values() if isinstance(value, float))


def test_teacher_in_eval_mode_is_untouched(teacher):
    ref, where = teacher
    training = Training(config("sp", ref, epochs=1), where)
    before = {name: tensor.clone() for name, tensor in training.teacher.state_dict().items()}
    training.run_epoch()
    assert all(torch.equal(before[name], tensor) for name, tensor in training.teacher.state_dict().items())


@pytest.mark.parametrize(
    ("method", "asked"), [("fsp", [1, 0]), ("fsp+kd", [1, 1]), ("kd", [1]), ("sp", [5]), ("kd+sp", [5])]
)
def test_the_teacher_is_asked_only_while_a_loss_looks_at_it(method, asked, teacher):
    ref, where = teacher
    training = Training(config(method, ref, epochs=1), where)
    calls = []
    training.teacher.register_forward_hook(lambda module, inputs, output: calls.append(1))
    counts = []
    while not training.done:  # an epoch has 5 batches, which are one for a teacher that is asked for all at once
        before = len(calls)
        training.run_epoch()
        counts.append(len(calls) - before)
    assert counts == asked


def test_the_stage_before_the_epochs_trains_its_modules_alone_and_has_views_of_its_own(teacher):
    ref, where = teacher
    training = Training(config("ft", ref, epochs=4, params={"pretrain_epochs": 2}), where)
    student = {name: tensor.clone() for name, tensor in training.student.state_dict().items()}
    first = {name: tensor.clone() for name, tensor in training.method.named_parameters()}
    shown = []
    epoch = training.batches.epoch
    training.batches.epoch = lambda *numbers: shown.append(numbers) or epoch(*numbers)
    for _ in range(2):
        assert training.run_epoch().train_acc is None
    assert all(torch.equal(tensor, student[name]) for name, tensor in training.student.state_dict().items())
    moved = {name for name, tensor in training.method.named_parameters() if not torch.equal(tensor, first[name])}
    assert moved == {name for name in first if name.startswith("paraphraser")}
    while not training.done:
        training.run_epoch()
    assert [(record.stage, record.epoch) for record in training.records] == [
        ("pretrain", 1), ("pretrain", 2), ("train", 1), ("train", 2), ("train", 3), ("train", 4)
    ]  # fmt: skip
    assert shown == [(1, 5), (2, 6), (1, 1), (2, 2), (3, 3), (4, 4)]
    assert [record.lr for record in training.records[:2]] == [0.01, 0.01]  # of FT for a ResNet student
    # Best among the recipe's epochs, numbered as they are.
    assert training.result().best_epoch in range(1, 5)


@pytest.mark.parametrize("method", ["vanilla", "fitnet+kd", "cid", "ipwd"])
def test_bf16_runs_forward_in_bfloat16_and_terms_in_float32(method, teacher):
    ref, where = teacher
    training = Training(config(method, ref, epochs=2, precision="bf16"), where)
    seen = []
    training.student.conv1.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    training.teachers.begin(1, 1)
    terms, _ = training._step(*next(training.batches.epoch(1, 1)))
    assert seen == [torch.bfloat16]
    assert {term.dtype for term in terms.values()} == {torch.float32}


def test_checkpoint_of_another_trial_is_refused():
    training = Training(config("vanilla"), Where())
    training.run_epoch()
    with pytest.raises(ConfigError, match=r"the checkpoint must be of the trial .*, but is of"):
        Training(config("vanilla", lr=0.01), Where(), training.pack())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_trial_runs_on_cuda(teacher):
    ref, where = teacher
    result = train(config("cid", ref), where.model_copy(update={"device": "cuda"}), lambda record: None)
    assert math.isfinite(result.test_nll)

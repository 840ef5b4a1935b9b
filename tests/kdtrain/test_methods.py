"""The contract of all methods, on real networks of the smallest kind."""

from typing import Any, ClassVar

import pytest
import torch

from kdtrain import build, methods
from kdtrain.config import ConfigError, DataConfig, MethodRef, Recipe, TeacherRef, TrialConfig
from kdtrain.methods.base import Batch, Method

NAMES = [*methods.METHODS, "fitnet+kd", "cid+sp"]
NEEDS = {name: {part for part in name.split("+") if part != "vanilla"} for name in NAMES}
CPU = torch.device("cpu")
EPOCHS = 4  # of which one is initial for cid, so that in epoch 2 all terms are active
# Three classes of the ten, two of them with two samples.
LABELS = torch.tensor([0, 0, 1, 1, 2])


class Run:
    """A method with its networks: a batch of noise in the shape of fashion_mini."""

    def __init__(self, name, seed=0):
        trial = TrialConfig(
            data=DataConfig(dataset="fashion_mini"),
            train=Recipe(epochs=EPOCHS),
            teacher=TeacherRef(model="resnet14", id="0" * 16) if NEEDS[name] else None,
            student="resnet8",
            method=MethodRef(name=name),
            seed=seed,
        )
        setting, self.method = build.networks(trial, CPU, lambda teacher: None)
        self.student, self.teacher = setting.student.train(), setting.teacher
        self.method.train()
        if self.teacher is not None:
            self.teacher.train(self.method.teacher_trains)
        self.images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))

    def teach(self):
        if self.teacher is None:
            return None
        with torch.no_grad():
            return self.teacher(self.images)

    def terms(self, epoch):
        batch = Batch(self.images, LABELS, torch.arange(5), epoch)
        return self.method.loss(batch, self.student(self.images), self.teach())

    def train_epoch(self, epoch):
        """Start an epoch of two batches; the terms of the second."""
        self.method.start_epoch(epoch)
        self.terms(epoch)
        return self.terms(epoch)


@pytest.fixture(params=NAMES)
def run(request):
    return Run(request.param)


def test_terms_are_finite_scalars_of_float32(run):
    for epoch in (1, 2, EPOCHS):
        terms = run.train_epoch(epoch)
        assert terms
        for name, term in terms.items():
            assert term.shape == (), name
            assert term.dtype == torch.float32, name
            assert torch.isfinite(term), name
            assert term >= 0, name


def test_gradients_reach_every_parameter_of_student_and_method(run):
    run.train_epoch(1)
    sum(run.train_epoch(2).values()).backward()
    modules = {"student": run.student, "method": run.method}
    for owner, module in modules.items():
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, f"{owner}: {key}"
            assert parameter.grad.abs().sum() > 0, f"{owner}: {key}"


def test_the_teacher_stays_as_it_is(run):
    if run.teacher is None:
        return
    before = {key: value.clone() for key, value in run.teacher.state_dict().items()}
    run.train_epoch(1)
    sum(run.train_epoch(2).values()).backward()
    assert all(parameter.grad is None for parameter in run.teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in run.teacher.state_dict().items())


def test_groups_hold_every_trained_parameter_once(run):
    grouped = [parameter for group in run.method.param_groups() for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {parameter for parameter in run.method.parameters() if parameter.requires_grad}
    own = set(run.student.parameters()) | set(run.teacher.parameters() if run.teacher is not None else ())
    assert own.isdisjoint(run.method.parameters())
    assert {key for group in run.method.param_groups() for key in group} <= {"params", "weight_decay", "lr_scale"}


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_instance_goes_on_from_the_saved_state(name):
    old, new = Run(name, seed=0), Run(name, seed=1)
    old.train_epoch(1)
    for mine, its in ((new.student, old.student), (new.teacher, old.teacher), (new.method, old.method)):
        if mine is not None:
            mine.load_state_dict(its.state_dict())
    expected, found = old.train_epoch(2), new.train_epoch(2)
    assert {key: term.item() for key, term in found.items()} == {key: term.item() for key, term in expected.items()}


def test_predictions_are_logits_for_every_class(run):
    run.train_epoch(1)
    run.train_epoch(2)
    run.student.eval()
    run.method.eval()
    with torch.inference_mode():
        logits = run.method.predict(run.student(run.images))
    assert logits.shape == (5, 10)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_predicting_changes_no_state(run):
    run.train_epoch(1)
    before = {key: value.clone() for key, value in run.method.state_dict().items()}
    with torch.inference_mode():
        run.method.predict(run.student(run.images))
    assert all(torch.equal(value, before[key]) for key, value in run.method.state_dict().items())


def test_preparing_takes_the_plain_images_with_the_teachers_outputs(run):
    batch = Batch(run.images, LABELS, torch.arange(5), 0)
    run.method.prepare([(batch, run.teach())] * 2)
    assert all(torch.isfinite(term) for term in run.train_epoch(1).values())


class TestRegistry:
    def test_names_and_classes(self):
        classes = {name: cls.__name__ for name, cls in methods.METHODS.items()}
        assert classes == {
            "vanilla": "Vanilla", "kd": "KD", "fitnet": "FitNet", "sp": "SP", "cid": "CID", "ipwd": "IPWD"
        }  # fmt: skip

    def test_methods_are_final_and_use_the_base_alone(self):
        assert all(cls.__bases__ == (Method,) for cls in methods.METHODS.values())

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("vanilla", set()),
            ("kd", {"logits"}),
            ("ipwd", {"logits"}),
            ("fitnet", {"stages"}),
            ("sp", {"stages"}),
            ("cid", {"logits", "pooled"}),
            ("vanilla+kd", {"logits"}),
            ("cid+sp", {"logits", "pooled", "stages"}),
        ],
    )
    def test_needs(self, name, expected):
        assert methods.needs(MethodRef(name=name)) == expected

    @pytest.mark.parametrize(
        ("name", "expected"), [("kd", False), ("cid", True), ("cid+kd", True), ("fitnet+kd", False), ("vanilla", False)]
    )
    def test_nesterov(self, name, expected):
        assert methods.nesterov(MethodRef(name=name)) is expected

    def test_nesterov_is_the_first_methods(self, monkeypatch):
        monkeypatch.setattr(methods.METHODS["kd"], "nesterov", True)
        assert [methods.nesterov(MethodRef(name=name)) for name in ("kd+sp", "sp+kd")] == [True, False]

    def test_version(self, monkeypatch):
        monkeypatch.setattr(methods.METHODS["kd"], "version", 3)
        assert [methods.version(MethodRef(name=name)) for name in ("kd", "fitnet+kd", "kd+sp")] == ["3", "1+3", "3+1"]

    # The weights and temperatures of the papers' CIFAR-100 runs.
    DEFAULTS: ClassVar[dict[str, dict[str, Any]]] = {
        "vanilla": {},
        "kd": {"gamma": 0.1, "alpha": 0.9, "tau": 4.0},
        "fitnet": {"beta": 100.0, "hint": 2},
        "sp": {"beta": 3000.0},
        "cid": {
            "alpha": 10.0, "beta": 1.0, "tau": 4.0, "init_epochs": None, "centre_momentum": 0.0,
            "sr": True, "cr": True, "inv": True, "sr_loss": "nm_mse",
        },
        "ipwd": {
            "alpha": 5.0, "tau": 10.0, "cls_head": True, "norm": "sample", "weights": "sample", "main_ce": True,
            "joint": False, "correction": 1, "detach": True, "floor": 1e-7, "w_max": None, "power": 1.0,
            "unit_mean": False, "tau_h": 1.0, "start_epoch": 1, "ema": 0.0, "cls_lr_scale": 1.0,
            "cls_weight_decay": None, "teacher_bn": "eval",
        },
    }  # fmt: skip

    @pytest.mark.parametrize("name", DEFAULTS)
    def test_default_parameters(self, name):
        assert methods.resolve(MethodRef(name=name))[name].model_dump() == self.DEFAULTS[name]

    @pytest.mark.parametrize("name", methods.METHODS)
    def test_parameters_that_are_none_are_left_out(self, name):
        defaults = methods.METHODS[name].Config().model_dump(mode="json")
        expected = {key: value for key, value in defaults.items() if value is not None}
        assert methods.params(MethodRef(name=name)) == expected
        assert methods.params(MethodRef(name=name, params=defaults)) == expected

    def test_parameters_that_are_none_are_left_out_of_every_part(self):
        parts = methods.params(MethodRef(name="cid+ipwd", params={"ipwd": {"w_max": 20.0}}))
        assert parts.keys() == {"cid", "ipwd"}
        assert parts["cid"].keys() == self.DEFAULTS["cid"].keys() - {"init_epochs"}
        assert parts["ipwd"].keys() == self.DEFAULTS["ipwd"].keys() - {"cls_weight_decay"}
        assert parts["ipwd"]["w_max"] == 20.0

    @pytest.mark.parametrize("name", NAMES)
    def test_full_parameters_say_the_same_as_none(self, name):
        full = methods.params(MethodRef(name=name))
        assert methods.params(MethodRef(name=name, params=full)) == full
        assert list(methods.resolve(MethodRef(name=name))) == name.split("+")

    @pytest.mark.parametrize("name", methods.METHODS)
    def test_unknown_parameters_list_the_known(self, name):
        known = ", ".join(sorted(methods.METHODS[name].Config.model_fields))
        with pytest.raises(ConfigError, match=rf"^unknown key 'qqq' at {name}\.qqq\. Known: {known}\.$"):
            methods.resolve(MethodRef(name=name, params={"qqq": 1}))

    def test_unknown_methods_list_the_known(self):
        known = ", ".join(sorted(methods.METHODS))
        message = rf"^unknown method 'ipdw' at method\. Did you mean 'ipwd'\? Known: {known}\.$"
        with pytest.raises(ConfigError, match=message):
            methods.resolve(MethodRef(name="ipdw"))

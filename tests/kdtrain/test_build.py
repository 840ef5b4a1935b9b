import hashlib
import time
from dataclasses import replace

import pytest
import torch

from kdtrain import build, data, methods
from kdtrain.config import ConfigError, DataConfig, MethodRef, Recipe, TeacherRef, TrialConfig, parse

CPU = torch.device("cpu")
BASE = {
    "data": {"dataset": "fashion_mini"},
    "train": {"epochs": 240},
    "teacher": {"model": "resnet14", "id": "a" * 16},
    "student": "resnet8",
    "method": {"name": "kd"},
    "seed": 1,
}
REF, OTHER = {"model": "resnet14", "id": "b" * 16}, {"model": "resnet8", "id": "c" * 16}


def trial(**changes):
    """BASE with dotted keys replaced: trial(train__lr=0.1)."""
    tables = {key: dict(value) if isinstance(value, dict) else value for key, value in BASE.items()}
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = tables
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return parse(TrialConfig, tables)


def identity(**changes):
    return build.trial_id(trial(**changes))


def same(one, other):
    """Whether two state dicts are equal bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class TestTrialId:
    def test_by_hand(self):
        # What is hashed is part of the contract: results on disk carry these ids for ever.
        vanilla = TrialConfig(
            data=DataConfig(dataset="fashion_mini"), student="resnet8", method=MethodRef(name="vanilla"), seed=3
        )
        text = (
            '{"data":{"dataset":"fashion_mini","fraction":1.0,"subset_seed":0,"val_size":0},'
            '"method":{"name":"vanilla","params":{},"version":"1"},"seed":3,"student":"resnet8",'
            '"train":{"augment":true,"batch_size":64,"epochs":240,"lr":0.05,"lr_gamma":0.1,'
            '"lr_milestones":[150,180,210],"momentum":0.9,"nesterov":false,"precision":"fp32","weight_decay":0.0005},'
            '"view_seed":3}'
        )
        assert build.trial_id(vanilla) == hashlib.sha256(text.encode()).hexdigest()[:16]

    CHANGES = (
        ("data__dataset", "fashion_mnist"),
        ("data__fraction", 0.5),
        ("data__subset_seed", 1),
        ("data__val_size", 100),
        ("data__image_size", 32),
        ("data__channels", 3),
        ("data__mean", [0.5]),
        ("data__std", [0.5]),
        ("data__folder", {"sha256": "e" * 64, "num_classes": 10}),
        ("train__epochs", 120),
        ("train__batch_size", 128),
        ("train__lr", 0.01),
        ("train__lr_milestones", [150, 180]),
        ("train__lr_gamma", 0.2),
        ("train__momentum", 0.5),
        ("train__nesterov", True),
        ("train__warmup_epochs", 1),
        ("train__drop_last", True),
        ("train__weight_decay", 0.0),
        ("train__augment", False),
        ("train__precision", "bf16"),
        ("teacher__model", "resnet20"),
        ("teacher__id", "b" * 16),
        ("assistants", [{"model": "resnet8", "id": "c" * 16}]),
        ("student", "resnet14"),
        ("method__name", "sp"),
        ("method__params", {"alpha": 0.5}),
        ("seed", 2),
        ("view_seed", 2),
        ("probe", {"source": "f" * 16, "dataset": "cifar10", "num_classes": 10, "lrs": [0.1], "holdout": 0.1}),
    )

    @pytest.mark.parametrize(("path", "value"), CHANGES)
    def test_every_field_counts(self, path, value):
        assert identity(**{path: value}) != identity()

    def test_no_field_is_missing_from_that_table(self):
        fields = set()
        inner = {"data": DataConfig, "train": Recipe, "teacher": TeacherRef, "method": MethodRef}
        for name in TrialConfig.model_fields:
            fields |= {f"{name}__{field}" for field in inner[name].model_fields} if name in inner else {name}
        assert {path for path, _ in self.CHANGES} == fields

    def test_all_of_these_differ(self):
        ids = [identity(**{path: value}) for path, value in self.CHANGES]
        assert len(set(ids)) == len(ids)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({}, {"train__lr_milestones": [150, 180, 210]}),
            ({}, {"train__lr_milestones": [210, 0.75, 150.0]}),
            ({"train__epochs": 8}, {"train__epochs": 8, "train__lr_milestones": [5, 6, 7]}),
            ({}, {"view_seed": 1}),
            ({}, {"assistants": None}),
            ({}, {"train__nesterov": False}),
            ({"method__name": "cid"}, {"method__name": "cid", "train__nesterov": True}),
            (  # without momentum there is nothing to look ahead with
                {"train__momentum": 0, "train__nesterov": True},
                {"train__momentum": 0, "train__nesterov": False},
            ),
            ({"train__lr": 1}, {"train__lr": 1.0}),
            ({}, {"method__params": {"alpha": 0.9, "tau": 4}}),
            ({}, {"method__params": {"gamma": 0.1}}),
            (
                {"method__name": "fitnet+kd"},
                {"method__name": "fitnet+kd", "method__params": {"kd": {"alpha": 1.0}, "fitnet": {"hint": 2}}},
            ),
            ({"method__name": "ipwd"}, {"method__name": "ipwd", "method__params": {"w_max": None}}),
        ],
    )
    def test_equal_trials_have_one_id(self, one, other):
        assert identity(**one) == identity(**other)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({"method__name": "fitnet+kd"}, {"method__name": "kd+fitnet"}),
            ({"method__name": "cid"}, {"method__name": "cid", "train__nesterov": False}),
            ({"seed": 1, "view_seed": 2}, {"seed": 2, "view_seed": 1}),
            ({"assistants": [REF, OTHER]}, {"assistants": [OTHER, REF]}),
            ({"assistants": [REF]}, {"assistants": [{**REF, "id": "d" * 16}]}),
        ],
    )
    def test_other_trials_have_another(self, one, other):
        assert identity(**one) != identity(**other)

    def test_the_order_of_keys_does_not_matter(self):
        params = {"gamma": 0.5, "alpha": 0.25, "tau": 2.0}
        backwards = dict(reversed(params.items()))
        assert identity(method__params=params) == identity(method__params=backwards)
        assert build.trial_id(parse(TrialConfig, dict(reversed(BASE.items())))) == identity()

    def test_a_new_version_of_the_method_is_another_trial(self, monkeypatch):
        before = identity(), identity(method__name="sp")
        monkeypatch.setattr(methods.METHODS["kd"], "version", 2)
        assert identity() != before[0]
        assert identity(method__name="sp") == before[1]

    def test_a_field_that_a_method_gains_with_the_default_none_changes_no_id(self, monkeypatch):
        class Grown(methods.KD.Config):
            cap: float | None = None

        before = identity()
        monkeypatch.setattr(methods.KD, "Config", Grown)
        assert identity() == before
        assert identity(method__params={"cap": 2.0}) != before

    @pytest.mark.parametrize(
        ("name", "nesterov", "momentum", "expected"),
        [
            ("kd", None, 0.9, False),
            ("kd", True, 0.9, True),
            ("cid", None, 0.9, True),
            ("cid", False, 0.9, False),
            ("cid+kd", None, 0.9, True),
            ("fitnet+kd", None, 0.9, False),
            ("cid", None, 0.0, False),
            ("kd", True, 0.0, False),
        ],
    )
    def test_nesterov(self, name, nesterov, momentum, expected):
        assert build.nesterov(trial(method__name=name, train__nesterov=nesterov, train__momentum=momentum)) is expected


def built(load_teacher=lambda model, ref: None, **changes):
    return build.networks(trial(**changes), CPU, load_teacher)


class TestNetworks:
    @pytest.mark.parametrize("name", ["vanilla", "fitnet", "sp", "cid", "ipwd", "fitnet+kd"])
    def test_all_methods_start_from_the_same_student_at_one_seed(self, name):
        reference = built()[0].student.state_dict()
        assert same(built(method__name=name)[0].student.state_dict(), reference)
        assert not same(built(method__name=name, seed=2)[0].student.state_dict(), reference)

    @pytest.mark.parametrize("changes", [{"teacher": None, "method__name": "vanilla"}, {"teacher__model": "wrn_16_1"}])
    def test_the_student_does_not_depend_on_the_teacher(self, changes):
        assert same(built(**changes)[0].student.state_dict(), built()[0].student.state_dict())

    def test_the_methods_modules_do_not_depend_on_the_teachers_depth(self):
        one, other = (built(method__name="ipwd", teacher__model=model)[1] for model in ("resnet14", "resnet20"))
        assert same(one.state_dict(), other.state_dict())

    def test_the_methods_modules_depend_on_the_seed(self):
        one, again, other = (built(method__name="ipwd", seed=seed)[1].weights.head.weight for seed in (1, 1, 2))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)

    def test_the_largest_seed(self):
        reference = built()[0].student.state_dict()
        assert not same(built(seed=2**63 - 1)[0].student.state_dict(), reference)

    def test_the_random_state_of_before_does_not_matter(self):
        torch.manual_seed(5)
        one = built(method__name="cid")
        torch.manual_seed(6)
        other = built(method__name="cid")
        assert same(one[0].student.state_dict(), other[0].student.state_dict())
        assert same(one[1].state_dict(), other[1].state_dict())

    def test_the_teacher_is_loaded_and_frozen(self):
        loaded = []
        setting, _ = built(lambda model, ref: loaded.append((model, ref)))
        assert loaded == [(setting.teacher, TeacherRef(model="resnet14", id="a" * 16))]
        assert sum(parameter.numel() for parameter in setting.teacher.parameters()) == 174_970  # resnet14, 10 classes
        assert not any(parameter.requires_grad for parameter in setting.teacher.parameters())
        assert all(parameter.requires_grad for parameter in setting.student.parameters())

    def test_assistants_are_loaded_after_the_teacher_in_order_and_frozen(self):
        loaded = []
        setting, _ = built(
            lambda model, ref: loaded.append((model, ref)), teacher__model="resnet20", assistants=[REF, OTHER],
            method__name="dgkd", method__params={"assistants": ["resnet14", "resnet8"]},
        )  # fmt: skip
        assert [ref.id for _, ref in loaded] == ["a" * 16, "b" * 16, "c" * 16]
        assert [model for model, _ in loaded] == [setting.teacher, *setting.assistants]
        sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in setting.assistants]
        assert sizes == [174_970, 77_754]  # resnet14 and resnet8, 10 classes
        for model in setting.assistants:
            assert not model.training
            assert not any(parameter.requires_grad for parameter in model.parameters())

    def test_the_student_does_not_depend_on_assistants(self):
        setting, _ = built(assistants=[OTHER], method__name="dgkd", method__params={"assistants": ["resnet8"]})
        assert same(setting.student.state_dict(), built()[0].student.state_dict())

    def test_setting(self):
        setting, _ = built(student="wrn_16_1", train__epochs=8)
        assert setting.num_classes == 10
        assert setting.epochs == 8
        assert [tuple(stage.shape) for stage in setting.student_shapes.stages] == [
            (1, 16, 28, 28), (1, 32, 14, 14), (1, 64, 7, 7)
        ]  # fmt: skip
        assert tuple(setting.teacher_shapes.pooled.shape) == (1, 64)
        assert tuple(setting.student_shapes.logits.shape) == (1, 10)

    def test_measuring_the_shapes_leaves_the_statistics_of_batch_norm(self):
        student = built()[0].student.state_dict()
        assert student["bn1.running_mean"].abs().max() == 0
        assert student["bn1.num_batches_tracked"] == 0

    def test_no_teacher(self):
        setting, _ = built(teacher=None, method__name="vanilla")
        assert setting.teacher is setting.teacher_shapes is None


class TestCheck:
    @pytest.mark.parametrize("name", [*methods.METHODS, "fitnet+kd", "cid+sp+ipwd"])
    def test_known_methods_pass(self, name):
        changes = {
            "tf_kd": {"teacher__model": "resnet8"},
            "dgkd": {"assistants": [OTHER], "method__params": {"assistants": ["resnet8"]}},
        }
        build.check(trial(method__name=name, **changes.get(name, {})))

    def test_a_first_assistant_has_the_teacher_alone(self):
        build.check(trial(method__name="dgkd", method__params={"pupil": True}))

    @pytest.mark.parametrize("params", [{"ema": 0.9}, {"norm": "running"}, {"cls_head": False, "ema": 0.5}])
    def test_variants_of_ipwd_pass(self, params):
        build.check(trial(method__name="ipwd", method__params=params))

    def test_vanilla_needs_no_teacher(self):
        build.check(trial(teacher=None, method__name="vanilla"))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"data__dataset": "cifar1000"},
                r"^unknown data set 'cifar1000' at data\.dataset\. Did you mean 'cifar100'\? Known: cifar10, ",
            ),
            ({"student": "resnet_8"}, r"^unknown model 'resnet_8' at student\. Did you mean 'resnet8'\? Known: "),
            ({"student": "resnet9"}, r"^depth must be 6n\+2 with n >= 1, but got resnet9 at student\.$"),
            ({"teacher__model": "resnext50"}, r"^unknown model 'resnext50' at teacher\."),
            (
                {"method__name": "fitnets"},
                r"^unknown method 'fitnets' at method\. Did you mean 'fitnet'\? Known: ab, at, ",
            ),
            (
                {"method__name": "tf_kd"},
                r"^method 'tf_kd' needs a teacher of the student's architecture, resnet8, but got resnet14\.$",
            ),
            (
                {"method__name": "dgkd", "method__params": {"assistants": ["resnet8"]}},
                r"^method 'dgkd' needs the assistants resnet8, but got none\.$",
            ),
            (
                {
                    "method__name": "dgkd+sp",
                    "method__params": {"dgkd": {"assistants": ["resnet14", "resnet8"]}},
                    "assistants": [OTHER, REF],
                },
                r"^method 'dgkd\+sp' needs the assistants resnet14, resnet8, but got ",
            ),
            ({"assistants": [OTHER]}, r"^method 'kd' needs the assistants none, but got "),
            (
                {"method__name": "dgkd", "method__params": {"assistants": ["resnet9"]}},
                r"^depth must be 6n\+2 with n >= 1, but got resnet9 at dgkd\.assistants\.$",
            ),
            ({"method__params": {"taw": 1}}, r"^unknown key 'taw' at kd\.taw\. Did you mean 'tau'\?"),
            ({"teacher": None}, r"^method 'kd' needs a teacher \(its logits\), but got none\.$"),
            (
                {"teacher": None, "method__name": "cid+sp"},
                r"^method 'cid\+sp' needs a teacher \(its logits and pooled and stages\), but got none\.$",
            ),
            (
                {"method__name": "fitnet", "method__params": {"hint": 4}},
                r"^fitnet\.hint must be a stage of both networks, but got 4 of 3\.$",
            ),
            (
                {"method__name": "sp+fitnet", "method__params": {"fitnet": {"hint": 4}}},
                r"^fitnet\.hint must be a stage of both networks, but got 4 of 3\.$",
            ),
            (
                {"method__name": "cid", "train__epochs": 1},
                r"^cid needs an epoch after its 1 of init_epochs, but got epochs = 1\.$",
            ),
            (
                {"method__name": "cid", "method__params": {"init_epochs": 0.999}},
                r"^cid needs an epoch after its 240 of init_epochs, but got epochs = 240\.$",
            ),
            (
                {"method__name": "cid", "method__params": {"init_epochs": 2.5}},
                r"^cid\.init_epochs must be a whole number of epochs or a fraction of all epochs .*, but got 2\.5\.$",
            ),
            ({"method__name": "kd+cid"}, r"^cid must stand first in 'kd\+cid': it predicts with its own classifier\.$"),
        ],
    )
    def test_what_cannot_start(self, changes, message):
        with pytest.raises(ConfigError, match=message):
            build.check(trial(**changes))

    def test_a_check_that_passed_does_not_excuse_another_trial(self):
        build.check(trial(method__name="cid"))
        with pytest.raises(
            ConfigError, match=r"^cid needs an epoch after its 300 of init_epochs, but got epochs = 240\.$"
        ):
            build.check(trial(method__name="cid", method__params={"init_epochs": 300}))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"train__warmup_epochs": 241}, r"train\.warmup_epochs must be at most train\.epochs, 240, but got 241"),
            (  # a hundredth of 6,000 images
                {"train__drop_last": True, "data__fraction": 0.01},
                r"train\.drop_last needs a whole batch of 64 images, but got about 60",
            ),
        ],
    )
    def test_epochs_and_images_are_enough_for_the_recipe(self, change, message):
        with pytest.raises(ConfigError, match=message):
            build.check(trial(**change))

    def test_no_weights_are_allocated(self):
        # 16 n x 16 n x 9 weights of 4 bytes: hundreds of terabytes, if they were real.
        start = time.perf_counter()
        build.check(trial(student="wrn_16_20000", teacher__model="wrn_16_30000", method__name="cid+sp"))
        assert time.perf_counter() - start < 20

    def test_no_data_is_read(self, monkeypatch):
        def refuse(info, where, device):
            raise AssertionError("the data set was read")

        info = data.DATASETS["fashion_mini"]
        monkeypatch.setitem(data.DATASETS, "fashion_mini", replace(info, open=refuse))
        build.check(trial(method__params={"tau": 3.25}))

    def test_the_random_state_stays_as_it_is(self):
        # Epochs that no other test has: a check that has passed before would build nothing.
        torch.manual_seed(5)
        before = torch.get_rng_state()
        build.check(trial(method__name="cid+sp", train__epochs=77))
        assert torch.equal(torch.get_rng_state(), before)
        with pytest.raises(ConfigError, match="must stand first"):
            build.check(trial(method__name="kd+cid", train__epochs=77))
        assert torch.equal(torch.get_rng_state(), before)

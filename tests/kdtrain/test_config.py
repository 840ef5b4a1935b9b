import datetime
import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kdtrain.config import ConfigError, Recipe, TrialConfig, Where, canonical, digest, parse, part_of, unknown

fixed = settings(deadline=None, derandomize=True, database=None)
TRIAL = {"data": {"dataset": "cifar100"}, "student": "resnet20", "method": {"name": "kd"}}


def parsed(**changes):
    return parse(TrialConfig, {**TRIAL, **changes})


def recipe(**changes):
    return parse(Recipe, changes, "train")


class TestParse:
    def test_defaults_are_the_cifar_100_recipe(self):
        assert parsed().model_dump() == {
            "data": {
                "dataset": "cifar100", "fraction": 1.0, "subset_seed": 0, "val_size": 0, "image_size": None,
                "channels": None, "mean": None, "std": None, "folder": None,
            },
            "train": {
                "epochs": 240, "batch_size": 64, "lr": 0.05, "lr_milestones": (0.625, 0.75, 0.875), "lr_gamma": 0.1,
                "momentum": 0.9, "nesterov": None, "warmup_epochs": None, "drop_last": None, "weight_decay": 5e-4,
                "augment": True, "precision": "fp32",
            },
            "teacher": None, "assistants": None,
            "student": "resnet20",
            "method": {"name": "kd", "params": {}},
            "seed": 0,
            "view_seed": None,
            "probe": None,
        }  # fmt: skip

    def test_whole_numbers_are_numbers(self):
        assert recipe(lr=1).lr == 1.0
        assert isinstance(recipe(lr=1).lr, float)

    def test_values_survive_a_round_trip(self):
        changed = parsed(train={"lr_milestones": [3, 0.5], "epochs": 6}, teacher={"model": "resnet56", "id": "ab"})
        assert parse(TrialConfig, changed.model_dump(mode="json")) == changed

    def test_frozen(self):
        with pytest.raises(ValidationError, match="Instance is frozen"):
            parsed().seed = 1

    @pytest.mark.parametrize(("seed", "view_seed", "views"), [(3, None, 3), (3, 0, 0), (3, 7, 7)])
    def test_seed_of_the_views(self, seed, view_seed, views):
        assert parsed(seed=seed, view_seed=view_seed).views == views

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            # unknown keys
            (
                {"trian": {}},
                "unknown key 'trian' at trian. Did you mean 'train'? "
                "Known: assistants, data, method, probe, seed, student, teacher, train, view_seed.",
            ),
            (
                {"train": {"learning_rate": 0.1}},
                "unknown key 'learning_rate' at train.learning_rate. Known: augment, batch_size, drop_last, epochs, "
                "lr, lr_gamma, lr_milestones, momentum, nesterov, precision, warmup_epochs, weight_decay.",
            ),
            (
                {"data": {"dataset": "cifar10", "fractoin": 0.5}},
                "unknown key 'fractoin' at data.fractoin. Did you mean 'fraction'? "
                "Known: channels, dataset, folder, fraction, image_size, mean, std, "
                "subset_seed, val_size.",
            ),
            (
                {"method": {"name": "kd", "param": {}}},
                "unknown key 'param' at method.param. Did you mean 'params'? Known: name, params.",
            ),
            (
                {"teacher": {"model": "resnet56", "id": "ab", "idd": "cd"}},
                "unknown key 'idd' at teacher.idd. Did you mean 'id'? Known: id, model.",
            ),
            # missing keys
            ({"data": {}}, "data.dataset is required."),
            ({"method": {"params": {}}}, "method.name is required."),
            ({"teacher": {"model": "resnet56"}}, "teacher.id is required."),
            # wrong types
            ({"train": {"epochs": "240"}}, "train.epochs should be a valid integer, but got '240'."),
            ({"train": {"epochs": 2.5}}, "train.epochs should be a valid integer, but got 2.5."),
            ({"train": {"lr": "0.1"}}, "train.lr should be a valid number, but got '0.1'."),
            ({"train": {"lr": True}}, "train.lr should be a valid number, but got True."),
            ({"train": {"augment": 1}}, "train.augment should be a valid boolean, but got 1."),
            ({"train": {"nesterov": "yes"}}, "train.nesterov should be a valid boolean, but got 'yes'."),
            ({"train": {"lr_milestones": 0.5}}, "train.lr_milestones should be a valid array, but got 0.5."),
            ({"train": {"lr_milestones": [2, "x"]}}, "train.lr_milestones[1] should be a valid number, but got 'x'."),
            ({"train": 240}, "train should be an object, but got 240."),
            ({"seed": False}, "seed should be a valid integer, but got False."),
            ({"student": ["resnet8"]}, "student should be a valid string, but got ['resnet8']."),
            ({"teacher": {"model": 56, "id": "ab"}}, "teacher.model should be a valid string, but got 56."),
            # out of range
            ({"data": {"dataset": "a", "fraction": 0}}, "data.fraction should be greater than 0, but got 0."),
            (
                {"data": {"dataset": "a", "fraction": 1.5}},
                "data.fraction should be less than or equal to 1, but got 1.5.",
            ),
            (
                {"data": {"dataset": "a", "val_size": -1}},
                "data.val_size should be greater than or equal to 0, but got -1.",
            ),
            ({"train": {"epochs": 0}}, "train.epochs should be greater than or equal to 1, but got 0."),
            ({"train": {"batch_size": 0}}, "train.batch_size should be greater than or equal to 1, but got 0."),
            ({"train": {"lr": 0}}, "train.lr should be greater than 0, but got 0."),
            ({"train": {"lr": float("nan")}}, "train.lr should be a finite number, but got nan."),
            ({"train": {"lr": float("inf")}}, "train.lr should be a finite number, but got inf."),
            ({"train": {"lr_gamma": 1.5}}, "train.lr_gamma should be less than or equal to 1, but got 1.5."),
            ({"train": {"momentum": 1}}, "train.momentum should be less than 1, but got 1."),
            (
                {"train": {"weight_decay": -1e-4}},
                "train.weight_decay should be greater than or equal to 0, but got -0.0001.",
            ),
            ({"train": {"precision": "fp16"}}, "train.precision should be 'fp32' or 'bf16', but got 'fp16'."),
            ({"seed": -1}, "seed should be greater than or equal to 0, but got -1."),
            ({"view_seed": -1}, "view_seed should be greater than or equal to 0, but got -1."),
            # seeds have 63 bits
            ({"seed": 2**63}, "seed should be less than 9223372036854775808, but got 9223372036854775808."),
            ({"view_seed": 2**64}, "view_seed should be less than 9223372036854775808, but got 18446744073709551616."),
            (
                {"data": {"dataset": "a", "subset_seed": 2**63}},
                "data.subset_seed should be less than 9223372036854775808, but got 9223372036854775808.",
            ),
            (
                {"data": {"dataset": "a", "subset_seed": -1}},
                "data.subset_seed should be greater than or equal to 0, but got -1.",
            ),
        ],
    )
    def test_messages(self, changes, message):
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            parsed(**changes)

    def test_the_largest_seed(self):
        largest = parsed(seed=2**63 - 1, view_seed=2**63 - 1, data={"dataset": "cifar100", "subset_seed": 2**63 - 1})
        assert largest.seed == largest.views == largest.data.subset_seed == 9223372036854775807

    # 150 and 0.625 are meant; 150.5 would quietly be 150.
    @pytest.mark.parametrize("value", [150.5, 1.5, -1, -0.5])
    def test_milestones_are_whole_epochs_or_fractions_of_all(self, value):
        message = (
            r"^train\.lr_milestones\[1\] must be a whole number of epochs or a fraction of all epochs below 1, "
            rf"but got {value}\.$"
        )
        with pytest.raises(ConfigError, match=message):
            recipe(lr_milestones=[0.5, value])

    def test_a_milestone_before_the_first_epoch_is_refused(self):
        with pytest.raises(ConfigError, match=r"^train\.lr_milestones\[0\] should be greater than 0, but got 0\.$"):
            recipe(lr_milestones=[0])

    @pytest.mark.parametrize(
        ("path", "where"), [("", "lr"), ("train", "train.lr"), ("grid.train[2]", "grid.train[2].lr")]
    )
    def test_the_path_stands_in_front(self, path, where):
        with pytest.raises(ConfigError, match=f"^{re.escape(where)} should be greater than 0, but got 0\\.$"):
            parse(Recipe, {"lr": 0}, path)

    def test_the_first_error_is_told(self):
        with pytest.raises(ConfigError, match=r"^train\.epochs should be greater than or equal to 1, but got 0\.$"):
            parsed(train={"epochs": 0, "lr": 0})

    def test_dates_of_toml_are_no_numbers(self):
        with pytest.raises(ConfigError, match=r"^dates and times are no values here, but got 2021-12-06\.$"):
            parsed(train={"lr": datetime.date(2021, 12, 6)})

    def test_where_to_run(self):
        assert parse(Where, {}).device == "auto"
        with pytest.raises(ConfigError, match=r"^where\.cpus should be greater than or equal to 1, but got 0\.$"):
            parse(Where, {"cpus": 0}, "where")


class TestCanonical:
    @pytest.mark.parametrize(
        ("data", "text"),
        [
            ({"b": None, "a": [1, 2.5]}, '{"a":[1,2.5],"b":null}'),
            ({"z": {"y": True, "x": "a b"}, "lr": 0.0005}, '{"lr":0.0005,"z":{"x":"a b","y":true}}'),
            ({"name": "é"}, '{"name":"\\u00e9"}'),
            ((1, 2), "[1,2]"),
        ],
    )
    def test_text_and_digest(self, data, text):
        assert canonical(data) == text
        assert digest(data) == hashlib.sha256(text.encode("ascii")).hexdigest()[:16]

    def test_a_digest_that_must_never_change(self):
        # printf '{}' | sha256sum
        assert digest({}) == "44136fa355b3678a"

    def test_not_a_number_is_refused(self):
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical({"lr": float("nan")})

    @fixed
    @given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans()), min_size=2))
    def test_the_order_of_keys_does_not_matter(self, data):
        backwards = dict(reversed(data.items()))
        assert canonical(backwards) == canonical(data)

    def test_the_order_of_values_does(self):
        assert digest([1, 2]) != digest([2, 1])


class TestPartOf:
    @pytest.mark.parametrize(
        ("value", "total", "expected"),
        [
            (0, 240, 0),
            (20 / 240, 240, 20),
            (20 / 240, 120, 10),
            (20 / 240, 6, 1),  # 0.5 rounds to 0, but a part is at least 1
            (0.001, 10, 1),
            (0.99, 10, 10),
            (0.625, 240, 150),
            (1, 240, 1),
            (1.0, 240, 1),  # a count, not the whole
            (150, 240, 150),
            (300, 240, 300),
        ],
    )
    def test_table(self, value, total, expected):
        assert part_of(value, total) == expected
        assert isinstance(part_of(value, total), int)

    @fixed
    @given(st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True), st.integers(1, 1000))
    def test_a_fraction_is_between_one_and_all(self, value, total):
        assert 1 <= part_of(value, total) <= total
        assert abs(part_of(value, total) - value * total) <= max(0.5, 1 - value * total)


class TestMilestones:
    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, [150, 180, 210]),
            ({"epochs": 120}, [75, 90, 105]),
            ({"epochs": 8}, [5, 6, 7]),
            ({"lr_milestones": [150, 180, 210]}, [150, 180, 210]),
            ({"lr_milestones": [210, 0.625, 180]}, [150, 180, 210]),
            ({"lr_milestones": []}, []),
            ({"epochs": 30, "lr_milestones": [0.5]}, [15]),
        ],
    )
    def test_last_epoch_at_each_rate(self, changes, expected):
        assert recipe(**changes).milestones == expected


def test_names_in_capitals_are_near_to_ours():
    assert "Did you mean 'resnet20'?" in unknown("model", "RESNET20", ["resnet20", "vgg8"], "student")

"""The named recipes: their rates by epoch, what a table adds to them, what is refused."""

import tomllib
from importlib import resources
from itertools import pairwise

import pytest

from kdtrain import recipes
from kdtrain.config import ConfigError, Recipe, parse
from kdtrain.loop import lr_at

NAMES = list(tomllib.loads((resources.files("kdtrain") / "recipes.toml").read_text()))

# The first epoch (counted from 1) at each reduced rate in the authors' code.
FIRST_REDUCED = {
    "crd_cifar": [151, 181, 211],
    "cid_cifar": [151, 181, 211],
    "sskd": [151, 181, 211],
    "reviewkd_cifar": [152, 182, 212],
    "ofd_cifar": [101, 151],
    "ps_kd": [151, 226],
    "cs_kd": [102, 152],
    "tf_kd": [61, 121, 161],
    "imagenet_crd": [31, 61, 91],
    "imagenet_kd": [31, 61, 91],
    "imagenet_wsld": [31, 61, 91],
    "imagenet_srrl": [31, 61, 91],
    "ofd_imagenet": [30, 60, 90],
    "imagenet_torchdistill": [31, 61, 91],
}
# epochs, batch, rate, factor, weight decay, Nesterov
VALUES = {
    "crd_cifar": (240, 64, 0.05, 0.1, 5e-4, False),
    "cid_cifar": (240, 64, 0.05, 0.1, 5e-4, True),
    "sskd": (240, 64, 0.05, 0.1, 5e-4, False),
    "reviewkd_cifar": (240, 128, 0.1, 0.1, 5e-4, True),
    "ofd_cifar": (200, 128, 0.1, 0.1, 5e-4, True),
    "ps_kd": (300, 128, 0.1, 0.1, 5e-4, True),
    "cs_kd": (200, 128, 0.1, 0.1, 1e-4, False),
    "tf_kd": (200, 128, 0.1, 0.2, 5e-4, False),
    "imagenet_crd": (100, 256, 0.1, 0.1, 1e-4, False),
    "imagenet_kd": (100, 512, 0.2, 0.1, 1e-4, False),
    "imagenet_wsld": (101, 256, 0.1, 0.1, 1e-4, True),
    "imagenet_srrl": (100, 512, 0.2, 0.1, 1e-4, False),
    "ofd_imagenet": (100, 256, 0.1, 0.1, 1e-4, True),
    "imagenet_torchdistill": (100, 256, 0.1, 0.1, 1e-4, False),
}


def recipe(name, **own):
    return parse(Recipe, recipes.expanded({"recipe": name, **own}, "train"), "train")


def first_reduced(found):
    rates = [lr_at(found, epoch) for epoch in range(1, found.epochs + 1)]
    return [epoch for epoch, (before, now) in enumerate(pairwise(rates), start=2) if now < before]


def test_every_recipe_is_known_here():
    assert set(NAMES) == set(FIRST_REDUCED) == set(VALUES)


@pytest.mark.parametrize("name", NAMES)
class TestEach:
    def test_rate_falls_where_the_authors_let_it(self, name):
        assert first_reduced(recipe(name)) == FIRST_REDUCED[name]

    def test_values_are_the_authors(self, name):
        r = recipe(name)
        assert (r.epochs, r.batch_size, r.lr, r.lr_gamma, r.weight_decay, r.nesterov) == VALUES[name]
        assert (r.momentum, r.augment, r.precision) == (0.9, True, "fp32")

    def test_only_tf_kd_warms_up_and_only_wsld_drops_the_last_batch(self, name):
        assert recipe(name).warmup_epochs == (1 if name == "tf_kd" else None)
        assert recipe(name).drop_last == (True if name == "imagenet_wsld" else None)


def test_rates_of_tf_kd_by_stage():
    assert [round(lr_at(recipe("tf_kd"), epoch), 6) for epoch in (60, 61, 121, 161)] == [0.1, 0.02, 0.004, 0.0008]


def test_crd_cifar_is_the_default_recipe():
    found = recipe("crd_cifar")
    assert found.model_copy(update={"nesterov": None}) == Recipe()


class TestExpanded:
    def test_keys_beside_the_recipe_go_before(self):
        found = recipe("ps_kd", lr=0.01, precision="bf16", lr_milestones=[7])
        assert (found.lr, found.precision, found.milestones, found.batch_size) == (0.01, "bf16", [7], 128)

    def test_other_epochs_move_the_milestones(self):
        # 150, 180 and 210 of 240 are 5/8, 6/8 and 7/8.
        assert recipe("crd_cifar", epochs=80).milestones == [50, 60, 70]

    def test_no_recipe_is_no_change(self):
        table = {"epochs": 3, "lr": 0.2}
        assert recipes.expanded(table, "train") == table

    def test_the_table_is_left_alone(self):
        table = {"recipe": "crd_cifar", "epochs": 3}
        recipes.expanded(table, "train")
        assert table == {"recipe": "crd_cifar", "epochs": 3}

    def test_replaces_another_recipe_wholly(self):
        # As [teacher] does, whose keys go before those of [train].
        students, teachers = ({"recipe": name} for name in ("imagenet_wsld", "crd_cifar"))
        both = {**recipes.expanded(students, "train"), **recipes.expanded(teachers, "teacher")}
        assert parse(Recipe, both) == recipe("crd_cifar")

    def test_values_are_checked_under_their_own_path(self):
        with pytest.raises(ConfigError, match=r"^train\.lr should be greater than 0, but got -1\.$"):
            recipe("crd_cifar", lr=-1)

    @pytest.mark.parametrize("name", ["crd_cifr", 3, ["ps_kd"]])
    def test_unknown_names_are_refused_with_the_known_ones(self, name):
        with pytest.raises(ConfigError, match=r"^unknown recipe .* at teacher\.recipe\..*Known: .*crd_cifar.*ps_kd"):
            recipes.expanded({"recipe": name}, "teacher")

    def test_near_names_are_suggested(self):
        with pytest.raises(ConfigError, match="Did you mean 'imagenet_wsld'"):
            recipes.expanded({"recipe": "imagenet_wsdl"}, "train")

"""Named recipes: `recipe = "crd_cifar"` in a table stands for the keys of that table of recipes.toml."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from kdtrain.config import ConfigError, unknown

# What a recipe does not name, it does not have, also where [teacher] would inherit it from [train].
_ABSENT: Mapping[str, Any] = {"warmup_epochs": None, "drop_last": None}


def expanded(table: Mapping[str, Any], path: str) -> dict[str, Any]:
    """`table` without its key `recipe`, whose values are those of the recipe unless the table has others.

    The recipe's milestones become fractions of its epochs, so that they move along where something changes the epochs
    alone. A table without `recipe` stays as it is. `path`: its key path. ConfigError for an unknown recipe.
    """
    if "recipe" not in table:
        return dict(table)
    own = {key: value for key, value in table.items() if key != "recipe"}
    name, known = table["recipe"], _recipes()
    if not isinstance(name, str) or name not in known:
        raise ConfigError(unknown("recipe", str(name), known, f"{path}.recipe"))
    recipe = known[name]
    moving = {"lr_milestones": [milestone / recipe["epochs"] for milestone in recipe["lr_milestones"]]}
    return {**_ABSENT, **recipe, **moving, **own}


@cache
def _recipes() -> dict[str, dict[str, Any]]:
    text = resources.files("kdtrain").joinpath("recipes.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)

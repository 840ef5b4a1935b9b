"""From a cell of the grid to its trial, with the teachers that it needs."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from kdtrain.build import trial_id
from kdtrain.config import ConfigError, MethodRef, Recipe, TeacherRef, TrialConfig, parse, unknown
from kdtrain.methods import METHODS, assistants, for_assistant, needs, self_taught
from sweeps.published import Published
from sweeps.searched import placed, student_of
from sweeps.space import Point
from sweeps.spec import data_config
from sweeps.tables import Override, Spec, method_entry, split_pair

Axes = dict[str, Any]
Teachers = dict[str, TrialConfig]  # by id, each after those that it learns from itself


def trial_of(
    spec: Spec,
    axes: Axes,
    method: MethodRef,
    used: set[int],
    ready: Mapping[str, Published],
    point: Point | None = None,
) -> tuple[TrialConfig, Teachers]:
    """The trial of a cell, and those of its teacher and assistants. `ready`: teachers with weights.

    used: the overrides that matched a cell, to which those of this one are added. point: the values of what is searched
    in the cell, which go before overrides.
    """
    teacher_name, student = split_pair(axes["pair"])
    student = student_of(point or {}) or student
    recipe = {**spec.train.model_dump(), **{key: axes[key] for key in spec.recipe_axes}}
    params = dict(method.params)
    for i, override in enumerate(spec.override):
        if _matches(override, {**axes, "teacher": teacher_name, "student": student}, _axis_names(spec), i):
            used.add(i)
            if taken := override.set.keys() & _given(spec, method, override.set):
                raise ConfigError(f"override[{i}].set must not set what the grid says, but sets {min(taken)}.")
            _apply(override, i, recipe, params, method.name)
    ref = MethodRef(name=method.name, params=params)
    if point is not None:
        recipe, ref = placed(point, recipe, ref)
    trial = TrialConfig(
        data=data_config(spec, axes["fraction"]),
        train=parse(Recipe, recipe, "train"),
        student=student,
        method=ref,
        seed=axes["seed"],
        view_seed=spec.data.view_seed,
    )
    return _taught(spec, trial, teacher_name, ready)


def _taught(
    spec: Spec, trial: TrialConfig, teacher_name: str | None, ready: Mapping[str, Published]
) -> tuple[TrialConfig, Teachers]:
    """The trial with the teacher and the assistants that its method needs, and their trials.

    A teacher of the student's own architecture and assistants are part of the method: they see the trial's images and
    have its recipe.
    """
    own = {"seed": spec.teacher.seed, "view_seed": None}  # one for all trials of what is part of a method
    teachers: Teachers = {}
    if self_taught(trial.method):
        teacher = _add(trial.model_copy(update={**own, "method": MethodRef(name="vanilla")}), teachers)
    elif teacher_name is None or not needs(trial.method):
        return trial, {}
    elif teacher_name in ready:
        teacher = ready[teacher_name].ref
    else:
        teacher = _add(pair_teacher(spec, teacher_name), teachers)
    taught = trial.model_copy(update={"teacher": teacher})
    refs: list[TeacherRef] = []
    for model in assistants(trial.method):
        how = {"student": model, "method": for_assistant(trial.method, model), "assistants": tuple(refs) or None}
        refs.append(_add(taught.model_copy(update={**own, **how}), teachers))
    return taught.model_copy(update={"assistants": tuple(refs) or None}), teachers


def pair_teacher(spec: Spec, model: str) -> TrialConfig:
    """The trial of a teacher of the pairs."""
    return TrialConfig(
        data=data_config(spec, spec.teacher.fraction),
        train=spec.teacher_recipe,
        student=model,
        method=spec.teacher_method,
        seed=spec.teacher.seed,
    )


def _add(teacher: TrialConfig, teachers: Teachers) -> TeacherRef:
    key = trial_id(teacher)
    teachers[key] = teacher
    return TeacherRef(model=teacher.student, id=key)


def _given(spec: Spec, method: MethodRef, wanted: Mapping[str, Any]) -> set[str]:
    """The keys that the grid gives to trials of this method; tables of a part may be completed by `wanted`."""
    own = {
        key
        for key, value in method.params.items()
        if not (isinstance(value, Mapping) and isinstance(wanted.get(key), Mapping) and not value.keys() & wanted[key])
    }
    return own | spec.recipe_axes.keys() | spec.method_axes.get(method.name, {}).keys()


def _matches(override: Override, axes: Mapping[str, Any], known: set[str], i: int) -> bool:
    """Whether a cell is one that the override means; an axis that only other cells have does not match."""
    for key, wanted in override.when.items():
        if key not in known:
            raise ConfigError(unknown("axis", key, known, f"override[{i}].when"))
        options = wanted if isinstance(wanted, list) else [wanted]
        if key not in axes or not any(_equal(axes[key], option) for option in options):
            return False
    return True


def _equal(value: Any, option: Any) -> bool:
    """Whether a value is the one an override names; names may hold `*`."""
    if isinstance(value, str) and isinstance(option, str):
        return fnmatchcase(value, option)
    return bool(value == option)


def _axis_names(spec: Spec) -> set[str]:
    """Every key that `when` may name."""
    entries = {key for entry in spec.grid.method for key in method_entry(entry).params}
    tables = {key for table in spec.method_axes.values() for key in table}
    return {"pair", "teacher", "student", "method", "fraction", "seed"} | spec.recipe_axes.keys() | entries | tables


def _apply(override: Override, i: int, recipe: dict[str, Any], params: dict[str, Any], method: str) -> None:
    parts = method.split("+")
    for key, value in override.set.items():
        if key in Recipe.model_fields:
            recipe[key] = value
        elif len(parts) > 1 and key in parts and isinstance(value, dict):
            params[key] = {**params.get(key, {}), **value}
        elif len(parts) == 1 and key in METHODS[method].Config.model_fields:
            params[key] = value
        else:
            known = parts if len(parts) > 1 else METHODS[method].Config.model_fields
            raise ConfigError(unknown("key", key, [*Recipe.model_fields, *known], f"override[{i}].set"))

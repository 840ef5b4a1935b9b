"""Spec -> Plan: every trial of a sweep, with its teachers and its identity. Starts nothing."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from kdtrain.build import check, trial_id
from kdtrain.config import ConfigError, MethodRef, Recipe, TeacherRef, TrialConfig, parse, unknown
from kdtrain.methods import METHODS, assistants, for_assistant, needs, self_taught
from sweeps.probes import of_published, of_teacher, probes
from sweeps.published import Published, published
from sweeps.spec import data_config
from sweeps.tables import Override, Spec, method_entry, split_pair

Axes = dict[str, Any]
Teachers = dict[str, TrialConfig]  # by id, each after those that it learns from itself


@dataclass(frozen=True)
class Cell:
    """One point of the grid: the values of its axes and the trial that fills it.

    Two cells may share a trial: a method that looks at no teacher is the same trial in all pairs.
    """

    axes: Axes
    trial_id: str


@dataclass(frozen=True)
class Plan:
    """All trials of a sweep by id, its probes among them, and the teachers and assistants that they need by id."""

    cells: list[Cell]
    trials: dict[str, TrialConfig]
    teachers: Teachers  # those to be trained
    published: dict[str, Published]  # those whose weights were trained elsewhere


def expand(spec: Spec) -> Plan:
    """The plan of a spec. ConfigError if any trial could not start, or an override matches nothing."""
    plan = Plan([], {}, {}, _published(spec))
    used: set[int] = set()
    seen: dict[tuple[str, str], Axes] = {}
    for axes, method in _product(spec):
        try:
            trial, own = _trial(spec, axes, method, used, plan.published)
            check(trial)
            _check_teachers(teacher for key, teacher in own.items() if key not in plan.teachers)
        except ConfigError as error:
            raise ConfigError(f"{error} (in the trial {describe(axes)})") from None
        plan.teachers.update(own)
        key = trial_id(trial)
        if (first := seen.setdefault((axes["pair"], key), axes)) is not axes:
            raise ConfigError(f"two cells of the grid are one trial: {describe(first)}; and {describe(axes)}.")
        plan.trials[key] = trial
        plan.cells.append(Cell(axes, key))
    for i, override in enumerate(spec.override):
        if i not in used:
            raise ConfigError(f"override[{i}].when must match a trial, but got {override.when!r}.")
    _add_probes(spec, plan)
    return plan


def _add_probes(spec: Spec, plan: Plan) -> None:
    """Add the probes of all networks that the plan has so far."""
    networks = [(cell.axes, cell.trial_id, plan.trials[cell.trial_id]) for cell in plan.cells]
    networks += [of_teacher(key, trial) for key, trial in plan.teachers.items()]
    networks += [of_published(teacher) for teacher in plan.published.values()]
    for axes, trial in probes(spec, networks):
        try:
            check(trial)
        except ConfigError as error:
            raise ConfigError(f"{error} (in the probe {describe(axes)})") from None
        key = trial_id(trial)
        plan.trials[key] = trial
        plan.cells.append(Cell(axes, key))


def requirements(trial: TrialConfig) -> list[str]:
    """The ids of what must be trained before a trial: its teacher and assistants; of a probe, its student."""
    if trial.probe is not None:
        return [trial.probe.source]
    return [ref.id for ref in (*([trial.teacher] if trial.teacher else []), *(trial.assistants or ()))]


def describe(axes: Mapping[str, Any]) -> str:
    """The axes of a cell as one line of text."""
    return ", ".join(f"{key} = {value}" for key, value in axes.items())


def _product(spec: Spec) -> Iterator[tuple[Axes, MethodRef]]:
    """The axes of every cell with its method; seeds vary fastest, so a table's rows fill one after the other."""
    recipe = spec.recipe_axes
    for entry, pair, fraction in itertools.product(spec.grid.method, spec.grid.pair, spec.grid.fraction):
        method = method_entry(entry)
        own = spec.method_axes.get(method.name, {})
        for values in itertools.product(*recipe.values(), *own.values(), spec.grid.seed):
            named = dict(zip([*recipe, *own, "seed"], values, strict=True))
            axes = {"pair": pair, "method": method.name, "fraction": fraction, **method.params, **named}
            params = {**method.params, **{key: named[key] for key in own}}
            yield axes, MethodRef(name=method.name, params=params)


def _published(spec: Spec) -> dict[str, Published]:
    """The teachers of pairs whose weights the spec names, by architecture."""
    names = dict.fromkeys(teacher for teacher, _ in map(split_pair, spec.grid.pair) if teacher is not None)
    entries = {name: entry for name in names if (entry := spec.weights_of(name)) is not None}
    return {name: published(name, entry, data_config(spec)) for name, entry in entries.items()}


def _trial(
    spec: Spec, axes: Axes, method: MethodRef, used: set[int], ready: Mapping[str, Published]
) -> tuple[TrialConfig, Teachers]:
    """The trial of a cell, and those of its teacher and assistants. `ready`: teachers with weights."""
    teacher_name, student = split_pair(axes["pair"])
    recipe = {**spec.train.model_dump(), **{key: axes[key] for key in spec.recipe_axes}}
    params = dict(method.params)
    for i, override in enumerate(spec.override):
        if _matches(override, {**axes, "teacher": teacher_name, "student": student}, _axis_names(spec), i):
            used.add(i)
            if taken := override.set.keys() & _given(spec, method, override.set):
                raise ConfigError(f"override[{i}].set must not set what the grid says, but sets {min(taken)}.")
            _apply(override, i, recipe, params, method.name)
    trial = TrialConfig(
        data=data_config(spec, axes["fraction"]),
        train=parse(Recipe, recipe, "train"),
        student=student,
        method=MethodRef(name=method.name, params=params),
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


def _check_teachers(teachers: Iterable[TrialConfig]) -> None:
    """Raise ConfigError unless these teachers can be trained."""
    for teacher in teachers:
        try:
            check(teacher)
        except ConfigError as error:
            raise ConfigError(f"{error} (in the training of the teacher {teacher.student})") from None


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

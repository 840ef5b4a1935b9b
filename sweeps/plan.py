"""Spec -> Plan: every trial of a sweep, with its teachers and its identity. Starts nothing."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdtrain.build import check, trial_id
from kdtrain.config import ConfigError, MethodRef, TrialConfig
from sweeps import searched
from sweeps.cells import Axes, Teachers, trial_of
from sweeps.probes import of_published, of_teacher, probes
from sweeps.published import Published, published
from sweeps.space import Point, Space
from sweeps.space import misfit as misfit_of
from sweeps.spec import data_config
from sweeps.tables import Spec, method_entry, split_pair


@dataclass(frozen=True)
class Cell:
    """One point of the grid: the values of its axes and the trial that fills it.

    Two cells may share a trial: a method that looks at no teacher is the same trial in all pairs.
    """

    axes: Axes
    trial_id: str


@dataclass(frozen=True)
class Study:
    """A cell whose trials are searched. What is not searched in it determines its id."""

    id: str
    axes: Axes
    space: Space
    starts: list[Point]  # tried first
    misfit: str | None  # why what the cell has without a search is no point of the space; None if it is one
    cell: "SearchedCell"
    requirements: frozenset[str]  # the teacher that all its trials need; none where each point has teachers of its own
    example: TrialConfig  # a trial of the search, with the first student and the defaults of what is searched
    confirmation: TrialConfig | None  # one of its confirmations, likewise; None where there are none


@dataclass(frozen=True)
class SearchedCell:
    """What makes trials of the points of a study."""

    spec: Spec
    axes: Axes
    method: MethodRef
    published: Mapping[str, Published]
    used: set[int]  # overrides that matched a point

    def trial(self, point: Point, seed: int) -> tuple[TrialConfig, Teachers]:
        """The trial of a point, with its teachers."""
        return trial_of(self.spec, {**self.axes, "seed": seed}, self.method, self.used, self.published, point)

    def confirmation(self, point: Point, seed: int) -> tuple[TrialConfig, Teachers]:
        """The same on all training images: what a sweep without a search would run, its teachers included."""
        data = self.spec.data.model_copy(update={"val_size": 0})
        whole = self.spec.model_copy(update={"data": data})
        return trial_of(whole, {**self.axes, "seed": seed}, self.method, self.used, self.published, point)


@dataclass(frozen=True)
class Plan:
    """All trials of a sweep by id, its probes among them, and the teachers and assistants that they need by id."""

    cells: list[Cell]
    trials: dict[str, TrialConfig]
    teachers: Teachers  # those to be trained
    published: dict[str, Published]  # those whose weights were trained elsewhere
    studies: list[Study]  # of a spec with [search], which has no cells and trials of its own


def expand(spec: Spec) -> Plan:
    """The plan of a spec. ConfigError if any trial could not start, or an override matches nothing."""
    plan = Plan([], {}, {}, _published(spec), [])
    used: set[int] = set()
    seen: dict[tuple[str, str], Axes] = {}
    for axes, method in _product(spec):
        if spec.search is None:
            key = _add_trial(spec, plan, axes, method, used)
        else:
            key = _add_study(spec, plan, axes, method, used)
        if (first := seen.setdefault((axes["pair"], key), axes)) is not axes:
            raise ConfigError(f"two cells of the grid are one trial: {describe(first)}; and {describe(axes)}.")
    for i, override in enumerate(spec.override):
        if i not in used:
            raise ConfigError(f"override[{i}].when must match a trial, but got {override.when!r}.")
    _add_probes(spec, plan)
    return plan


def _add_trial(spec: Spec, plan: Plan, axes: Axes, method: MethodRef, used: set[int]) -> str:
    """Add a cell of the grid; its trial's id."""
    try:
        trial, own = trial_of(spec, axes, method, used, plan.published)
        _check(plan, trial, own)
    except ConfigError as error:
        raise ConfigError(f"{error} (in the trial {describe(axes)})") from None
    plan.teachers.update(own)
    key = trial_id(trial)
    plan.trials[key] = trial
    plan.cells.append(Cell(axes, key))
    return key


def _add_study(spec: Spec, plan: Plan, axes: Axes, method: MethodRef, used: set[int]) -> str:
    """Add a cell of the grid whose trials are searched; its study's id.

    The id is that of the trial whose searched parameters are the method's defaults: it stays the same when the space,
    the budget or the starting points change, and changes with all else.
    """
    try:
        one = {"seed": spec.grid.seed[0], **axes}
        template, _ = trial_of(spec, one, method, used, plan.published)
        space = searched.space_of(spec, method, template.student)
        starts = searched.starts(spec, template, space)
        cell, own = SearchedCell(spec, axes, method, plan.published, used), searched.own_teachers(template.method)
        bare = searched.without(template, space).model_copy(update={"seed": axes.get("seed", 0)})
        key = trial_id(bare.model_copy(update={"teacher": None, "assistants": None}) if own else bare)
        kinds = [(cell.trial, spec.grid.seed[0])]
        kinds += [(cell.confirmation, spec.confirm.seed[0])] if spec.confirm else []
        examples = []
        for point in [*searched.examples(space, starts)] or [{}]:
            for make, seed in kinds:
                trial, teachers = make(point, seed)
                _check(plan, trial, teachers)
                plan.teachers.update({} if own else teachers)
                examples.append(trial)
    except ConfigError as error:
        raise ConfigError(f"{error} (in the search {describe(axes)})") from None
    needed = frozenset[str]() if own else frozenset(requirements(examples[0]))
    if all(study.id != key for study in plan.studies):  # without a teacher it is one study in all pairs
        confirmation = examples[1] if spec.confirm else None
        misfit = misfit_of(space, searched.own_point(template, space))
        plan.studies.append(Study(key, axes, space, starts, misfit, cell, needed, examples[0], confirmation))
    return key


def _check(plan: Plan, trial: TrialConfig, teachers: Teachers) -> None:
    """Raise ConfigError unless a trial and its teachers can start."""
    check(trial)
    _check_teachers(teacher for key, teacher in teachers.items() if key not in plan.teachers)


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
        # A point of a search that has several seeds is tried with each.
        seeds = {"seed": spec.grid.seed} if spec.search is None or len(spec.grid.seed) == 1 else {}
        for values in itertools.product(*recipe.values(), *own.values(), *seeds.values()):
            named = dict(zip([*recipe, *own, *seeds], values, strict=True))
            axes = {"pair": pair, "method": method.name, "fraction": fraction, **method.params, **named}
            params = {**method.params, **{key: named[key] for key in own}}
            yield axes, MethodRef(name=method.name, params=params)


def _published(spec: Spec) -> dict[str, Published]:
    """The teachers of pairs whose weights the spec names, by architecture."""
    names = dict.fromkeys(teacher for teacher, _ in map(split_pair, spec.grid.pair) if teacher is not None)
    entries = {name: entry for name in names if (entry := spec.weights_of(name)) is not None}
    return {name: published(name, entry, data_config(spec)) for name, entry in entries.items()}


def _check_teachers(teachers: Iterable[TrialConfig]) -> None:
    """Raise ConfigError unless these teachers can be trained."""
    for teacher in teachers:
        try:
            check(teacher)
        except ConfigError as error:
            raise ConfigError(f"{error} (in the training of the teacher {teacher.student})") from None

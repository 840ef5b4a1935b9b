"""Which [search], [scheduler] and [confirm] fit each other and the grid."""

import math

from kdtrain.config import ConfigError, unknown
from sweeps.samplers import SAMPLERS
from sweeps.schema import OBJECTIVES, SEARCHED
from sweeps.searched import STUDENT, TRAIN, student_space, students
from sweeps.tables import SearchTable, Spec, method_entry, split_pair


def check(spec: Spec) -> None:
    """Raise ConfigError unless [search], [scheduler] and [confirm] fit each other and the grid."""
    search = spec.search
    if search is None:
        for name in ("scheduler", "confirm"):
            if getattr(spec, name) is not None:
                raise ConfigError(f"[{name}] needs a [search] whose trials it is about.")
        if any(split_pair(pair)[1] == SEARCHED for pair in spec.grid.pair):
            raise ConfigError("grid.pair must name a student where there is no [search], but got '*'.")
        return
    if not spec.data.val_size:
        raise ConfigError("data.val_size must be above 0 for [search], which chooses on held-out images, but got 0.")
    if spec.probe:
        raise ConfigError("[[probe]] and [search] must not stand in one spec: probe the winners in another sweep.")
    if search.sampler not in SAMPLERS:
        raise ConfigError(unknown("sampler", search.sampler, SAMPLERS, "search.sampler"))
    if search.trials is None and search.sampler != "grid":
        raise ConfigError(f"search.trials is required unless search.sampler = 'grid', but got {search.sampler!r}.")
    _check_names(spec, search)
    _check_pairs(spec, search)
    _check_objectives(spec, search)
    _check_seeds(spec, search)
    if spec.scheduler is not None:
        _check_scheduler(spec, search)


def _check_names(spec: Spec, search: SearchTable) -> None:
    """Each table of [search] is of a method of the grid, of the recipe or of the student."""
    used = {method_entry(entry).name for entry in spec.grid.method}
    for name in search.space:
        if name not in {*used, TRAIN, STUDENT}:
            raise ConfigError(unknown("table", name, {*used, TRAIN, STUDENT}, "search.space"))
    for name in search.start:
        if name not in used:
            raise ConfigError(unknown("method", name, used, "search.start"))
    searched = [pair for pair in spec.grid.pair if split_pair(pair)[1] == SEARCHED]
    if bool(searched) != bool(search.space.get(STUDENT)):
        raise ConfigError(
            "[search.space.student] and a pair such as 'resnet56/*' need each other, "
            f"but got the pairs {', '.join(spec.grid.pair)}."
        )


def _check_pairs(spec: Spec, search: SearchTable) -> None:
    """No trial may be of two studies, and overrides may not tell the seeds of a point, or of confirmations, apart."""
    pairs = [split_pair(pair) for pair in spec.grid.pair]
    if any(student == SEARCHED for _, student in pairs):
        names = set(students(student_space(search.space[STUDENT])))
        if both := [student for _, student in pairs if student in names]:
            raise ConfigError(f"grid.pair must not have {both[0]}, which is a student of [search.space.student] too.")
    for i, override in enumerate(spec.override):
        if "seed" in override.when:
            raise ConfigError(f"override[{i}].when must not name the seed with [search], whose points have several.")


def _check_objectives(spec: Spec, search: SearchTable) -> None:
    for name in search.objectives:
        if name not in OBJECTIVES:
            raise ConfigError(unknown("objective", name, OBJECTIVES, "search.objectives"))
    costs = OBJECTIVES.keys() - {"val_acc"}
    for name in search.limits:
        if name not in costs:
            raise ConfigError(unknown("limit", name, costs, "search.limits"))
    if "val_acc" not in search.objectives:
        raise ConfigError(f"search.objectives must have val_acc, but got {search.objectives!r}.")
    if (len(search.objectives) > 1 or search.limits) and any(
        split_pair(pair)[1] != SEARCHED for pair in spec.grid.pair
    ):
        raise ConfigError("search.objectives and search.limits on a student's costs need pairs such as 'resnet56/*'.")
    if len(search.objectives) > 1 and (search.sampler == "cmaes" or spec.scheduler is not None):
        other = "sampler = 'cmaes'" if search.sampler == "cmaes" else "[scheduler]"
        raise ConfigError(f"search.objectives must be val_acc alone with {other}, but got {search.objectives!r}.")


def _check_seeds(spec: Spec, search: SearchTable) -> None:
    seeds, confirm = spec.grid.seed, spec.confirm
    if search.score == "val_acc" and len(seeds) > 1:
        raise ConfigError(f"grid.seed must be one seed unless search.score = 'mean_over_seeds', but got {seeds!r}.")
    if search.score == "mean_over_seeds" and len(seeds) == 1:
        raise ConfigError(f"grid.seed must be two or more for search.score = 'mean_over_seeds', but got {seeds!r}.")
    if confirm is None:
        return
    if both := set(confirm.seed) & set(seeds):
        raise ConfigError(f"confirm.seed must be fresh, but {min(both)} is one of grid.seed, which the search saw.")
    if search.trials is not None and confirm.top > search.trials:
        raise ConfigError(f"confirm.top must be at most search.trials, {search.trials}, but got {confirm.top}.")


def _check_scheduler(spec: Spec, search: SearchTable) -> None:
    table, seeds = spec.scheduler, len(spec.grid.seed)
    assert table is not None
    idle = {"asha": ["p_threshold"], "hyperband": ["p_threshold"], "median": ["p_threshold", "reduction_factor"],
            "wilcoxon": ["grace", "reduction_factor"]}  # fmt: skip
    if useless := [name for name in idle[table.name] if name in table.model_fields_set]:
        raise ConfigError(f"scheduler.{useless[0]} has no effect on {table.name}.")
    epochs = min(spec.recipe_axes.get("epochs", [spec.train.epochs]))
    if table.name != "wilcoxon" and table.grace >= epochs:
        raise ConfigError(f"scheduler.grace must be below the {epochs} epochs of a trial, but got {table.grace}.")
    if (table.name == "wilcoxon") != (search.score == "mean_over_seeds"):
        raise ConfigError(
            "scheduler.name must be 'wilcoxon' for search.score = 'mean_over_seeds' and only there, "
            f"but got {table.name!r}."
        )
    # The smallest p of n signed ranks of one sign is 2^-n; the last seed ends the point anyway.
    least = math.floor(-math.log2(table.p_threshold)) + 2
    if table.name == "wilcoxon" and seeds < least:
        raise ConfigError(f"grid.seed must have {least} seeds or more, or wilcoxon stops nothing, but got {seeds}.")

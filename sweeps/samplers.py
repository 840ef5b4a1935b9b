"""Optuna's samplers by the names that specs give them. Optuna is loaded when one is made: plans need the names only."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class Setting(NamedTuple):
    """What a sampler is made for."""

    seed: int
    trials: int  # the budget of the study
    conditional: bool  # whether some dimensions exist only for some values of others

    @property
    def startup(self) -> int:
        """Points drawn at random before a model is trusted, the starting points among them."""
        return min(10, max(3, self.trials // 4))


def _tpe(setting: Setting) -> "BaseSampler":
    from optuna.samplers import TPESampler

    # Constant liar: points under way count as bad ones, so that parallel trials differ.
    return TPESampler(
        seed=setting.seed, n_startup_trials=setting.startup, multivariate=True, group=setting.conditional,
        constant_liar=True,
    )  # fmt: skip


def _gp(setting: Setting) -> "BaseSampler":
    from optuna.samplers import GPSampler

    return GPSampler(seed=setting.seed, n_startup_trials=setting.startup, warn_independent_sampling=False)


def _cmaes(setting: Setting) -> "BaseSampler":
    from optuna.samplers import CmaEsSampler

    return CmaEsSampler(
        seed=setting.seed, n_startup_trials=setting.startup, consider_pruned_trials=True,
        warn_independent_sampling=False,
    )  # fmt: skip


def _random(setting: Setting) -> "BaseSampler":
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=setting.seed)


def _qmc(setting: Setting) -> "BaseSampler":
    from optuna.samplers import QMCSampler

    return QMCSampler(
        seed=setting.seed, scramble=True, warn_independent_sampling=False, warn_asynchronous_seeding=False
    )


def _nsga2(setting: Setting) -> "BaseSampler":
    from optuna.samplers import NSGAIISampler

    # A few generations, whatever the budget.
    return NSGAIISampler(seed=setting.seed, population_size=min(50, max(4, setting.trials // 5)))


class Kind(NamedTuple):
    """A sampler, and how it is asked."""

    make: Callable[[Setting], "BaseSampler"]
    retries: int = 50  # after offers of what was tried or exceeds the limits; then a point is drawn at random
    sequence: bool = False  # points follow from the seed alone, in an order
    limits: bool = True  # whether it learns from what exceeds them
    notes: bool = False  # it learns from those points only of which it noted something when it was asked


SAMPLERS: Mapping[str, Kind] = {
    "tpe": Kind(_tpe),
    "gp": Kind(_gp, retries=3),  # of up to a second each
    "cmaes": Kind(_cmaes, limits=False, notes=True),
    "random": Kind(_random),
    "qmc": Kind(_qmc, sequence=True),
    "nsga2": Kind(_nsga2, notes=True),
    "grid": Kind(_random),  # the points are counted in their order, and nothing is sampled
}

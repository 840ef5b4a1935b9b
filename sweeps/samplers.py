"""Optuna's samplers by the names that specs give them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from optuna import samplers
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


def _tpe(setting: Setting) -> BaseSampler:
    # Constant liar: points under way count as bad ones, so that parallel trials differ.
    return samplers.TPESampler(
        seed=setting.seed, n_startup_trials=setting.startup, multivariate=True, group=setting.conditional,
        constant_liar=True,
    )  # fmt: skip


def _gp(setting: Setting) -> BaseSampler:
    return samplers.GPSampler(seed=setting.seed, n_startup_trials=setting.startup, warn_independent_sampling=False)


def _cmaes(setting: Setting) -> BaseSampler:
    return samplers.CmaEsSampler(
        seed=setting.seed, n_startup_trials=setting.startup, consider_pruned_trials=True,
        warn_independent_sampling=False,
    )  # fmt: skip


def _random(setting: Setting) -> BaseSampler:
    return samplers.RandomSampler(seed=setting.seed)


def _qmc(setting: Setting) -> BaseSampler:
    return samplers.QMCSampler(
        seed=setting.seed, scramble=True, warn_independent_sampling=False, warn_asynchronous_seeding=False
    )


def _nsga2(setting: Setting) -> BaseSampler:
    # A few generations, whatever the budget.
    return samplers.NSGAIISampler(seed=setting.seed, population_size=min(50, max(4, setting.trials // 5)))


SAMPLERS: Mapping[str, Callable[[Setting], BaseSampler]] = {
    "tpe": _tpe,
    "gp": _gp,
    "cmaes": _cmaes,
    "random": _random,
    "qmc": _qmc,
    "nsga2": _nsga2,
    "grid": _random,  # the points are counted in their order, and nothing is sampled
}

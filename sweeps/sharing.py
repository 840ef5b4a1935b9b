"""Which trials of a sweep share the outputs of their teachers, what is stored of them, and why."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from kdtrain import methods
from kdtrain.build import teacher_numbers
from kdtrain.config import TrialConfig, canonical
from kdtrain.data import info_of
from kdtrain.epoch_outputs import DTYPE, GIGABYTE, identity
from sweeps.cost import Cost
from sweeps.plan import Plan
from sweeps.searches import Search
from sweeps.tables import Spec
from sweeps.words import duration, storage


@dataclass(frozen=True)
class Choice:
    """Whether trials share what they see of one teacher, and why."""

    teacher: str
    methods: tuple[str, ...]
    trials: int
    shared: bool
    why: str


@dataclass(frozen=True)
class Sharing:
    """What is stored of teachers' outputs, by what they depend on (see `key`) and method, and what was chosen."""

    stored: Mapping[tuple[str, str], tuple[str, ...]]
    choices: Sequence[Choice]

    def names(self, trial: TrialConfig) -> tuple[str, ...]:
        """What is stored of the outputs that a trial sees; nothing if it computes its own."""
        if trial.teacher is None or trial.probe is not None or not methods.cacheable(trial.method):
            return ()
        return self.stored.get((key(trial), trial.method.name), ())


ALONE = Sharing(MappingProxyType({}), ())  # nobody shares anything


@dataclass(frozen=True)
class _Seen:
    """The outputs of one teacher for the same views, as trials see them."""

    trial: TrialConfig  # one of them, of most epochs
    trials: int
    numbers: Mapping[str, int]  # an image, by name

    def bytes(self, cost: Cost) -> int | None:
        """Of the file of an epoch; None where the number of images is unknown."""
        images = cost.images(self.trial)
        return None if images is None else images * sum(self.numbers.values()) * DTYPE.itemsize

    def all_bytes(self, cost: Cost) -> int:
        """Of the files of all epochs; 0 where it is unknown."""
        return (self.bytes(cost) or 0) * (self.trial.train.epochs if self.trial.train.augment else 1)


def key(trial: TrialConfig) -> str:
    """What the outputs of the trial's teacher depend on, beside epoch and machine."""
    assert trial.teacher is not None
    return canonical(identity(trial, trial.teacher))


def share(spec: Spec, plan: Plan, found: Sequence[Search], cost: Cost) -> Sharing:
    """Choose for each teacher and method. `found`: the searches of the plan."""
    seen: dict[str, dict[str, _Seen]] = defaultdict(dict)  # by key and method
    told: dict[tuple[str, bool, str], Counter[str]] = defaultdict(Counter)  # trials by method
    stored: dict[tuple[str, str], tuple[str, ...]] = {}
    for trial, n in _members(plan, found):
        if trial.teacher is None or trial.probe is not None:
            continue
        if (why := _why_live(trial, spec)) is not None:
            told[trial.teacher.model, False, why][trial.method.name] += n
        else:
            by_method, name = seen[key(trial)], trial.method.name
            before = by_method.get(name, _Seen(trial, 0, {}))
            by_method[name] = _together([before, _Seen(trial, n, teacher_numbers(trial))])
    for place, by_method in seen.items():
        for names, shared, why in _choices(by_method, spec, cost):
            example = by_method[names[0]].trial
            assert example.teacher is not None
            told[example.teacher.model, shared, why].update({name: by_method[name].trials for name in names})
            if shared:
                together = _together(by_method[name] for name in names)
                stored |= {(place, name): tuple(sorted(together.numbers)) for name in names}
    choices = [
        Choice(teacher, tuple(trials), trials.total(), shared, why) for (teacher, shared, why), trials in told.items()
    ]
    return Sharing(stored, choices)


def _members(plan: Plan, found: Iterable[Search]) -> Iterator[tuple[TrialConfig, int]]:
    """The trials of a plan with how many there are like each: those of a search by their seeds."""
    yield from ((trial, 1) for trial in (*plan.trials.values(), *plan.teachers.values()))
    for search in found:
        for seed in search.seeds:
            yield search.study.example.model_copy(update={"seed": seed}), search.budget
        if search.study.confirmation is not None:
            for seed in search.fresh:
                yield search.study.confirmation.model_copy(update={"seed": seed}), min(search.top, search.budget)


def _why_live(trial: TrialConfig, spec: Spec) -> str | None:
    """Why a trial must ask its teacher itself, whatever others do; None if it need not."""
    if (why := methods.why_live(trial.method)) is not None:
        return why
    if not info_of(trial.data).in_memory:
        return "images are read from the disk each time"
    return None if spec.run.cache_gb else "run.cache_gb is 0"


def _together(seen: Iterable[_Seen]) -> _Seen:
    """Of several methods, or trials of one: what all of them look at."""
    found = list(seen)
    longest = max((each.trial for each in found), key=lambda trial: trial.train.epochs)
    every = {name: size for each in found for name, size in each.numbers.items()}
    return _Seen(longest, sum(each.trials for each in found), every)


def _choices(by_method: Mapping[str, _Seen], spec: Spec, cost: Cost) -> Iterator[tuple[list[str], bool, str]]:
    """For methods that see the same views: which of them share, and why. Digests that leave no room are not shared."""
    whole, limit = _together(by_method.values()), spec.run.cache_gb * GIGABYTE
    small = [name for name, each in by_method.items() if each.numbers.keys() <= {"logits", "pooled"}]
    large = [name for name in by_method if name not in small]
    if small and large and whole.all_bytes(cost) > limit:
        size = storage(whole.all_bytes(cost))
        yield (
            large,
            False,
            f"with what it looks at all epochs would take {size}, more than run.cache_gb = {limit / GIGABYTE:g}",
        )
    else:
        small = list(by_method)
    yield small, *_choice(_together(by_method[name] for name in small), spec, cost)


def _choice(seen: _Seen, spec: Spec, cost: Cost) -> tuple[bool, str]:
    """Whether outputs are shared, and why."""
    if seen.trials == 1:
        return False, "no other trial sees the same views"
    size, limit, trial = seen.bytes(cost), spec.run.cache_gb * GIGABYTE, seen.trial
    told = f"run.cache_gb = {spec.run.cache_gb:g}"
    if size is not None and size > limit:
        return False, f"an epoch takes {storage(size)}, more than {told}"
    computing, reading = cost.teacher_seconds(trial, spec.run.cpus), cost.reading_seconds(trial, spec.run.cpus)
    if computing is not None and reading is not None and reading > computing:
        return False, f"reading takes {_short(reading)} an epoch, computing {_short(computing)}"
    why = f"{seen.trials} see the same views"
    if size is not None:
        every = seen.all_bytes(cost)
        more = f", more than {told}: some are computed again" if every > limit else ""
        why += f"; an epoch takes {storage(size)}, all {storage(every)}{more}"
    return True, why if computing is None else f"{why}; computing takes {_short(computing)} an epoch"


def _short(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)

"""The searches of sweeps -> an Optuna database, which optuna-dashboard shows. Nothing is ever deleted there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from kdtrain.config import ConfigError
from sweeps import optuna_studies
from sweeps.optuna_studies import STUDY, TRIAL_IDS, Search
from sweeps.schema import Status
from sweeps.store import stores

_NO_URL = "what is no URL"  # not repeated, as nobody knows where in it a password is


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a study of the database has now."""

    name: str
    trials: int  # those of the search that have ended
    new: int  # of which this run has added
    changed: int  # that were added before and have another outcome now; Optuna cannot rewrite them


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A search and the study that it goes to."""

    name: str
    search: Search
    trials: list[FrozenTrial]

    def split(self, known: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], int]:
        """The trials that are not among the known ones, and how many are there with another outcome."""
        there = {key: trial for trial in known for key in trial.user_attrs.get(TRIAL_IDS, ())}
        fresh, changed = [], 0
        for trial in self.trials:
            old = next((there[key] for key in trial.user_attrs[TRIAL_IDS] if key in there), None)
            if old is None:
                fresh.append(trial)
            else:
                changed += (old.state, old.values) != (trial.state, trial.values)
        return fresh, changed


def export(results: str, url: str) -> list[Written]:
    """Add to the database what it lacks of the searches of a sweep's folder, or of all sweeps in a folder.

    ConfigError if there is none, if the database cannot be opened, or if a study there stands in the way: then nothing
    is written.
    """
    jobs = _jobs(results)  # all that is read, so that what fails below is the database
    with _opened(url) as storage:
        known = [_known(storage, told(url), job) for job in jobs]
        return [_write(storage, job, there) for job, there in zip(jobs, known, strict=True)]


def told(url: str) -> str:
    """A database URL without its password and without the values of its query, which may be passwords, too."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: of a port that is no number
        return _NO_URL
    query = "&".join(f"{key}=***" for key in parsed.query)
    return parsed.set(query={}).render_as_string(hide_password=True) + (f"?{query}" if query else "")


def _jobs(results: str) -> list[_Job]:
    found = [
        (search, store)
        for store in stores(results)
        for search in optuna_studies.searches(store.read_trials().to_pylist())
    ]
    if not found:
        raise ConfigError(f"RESULTS must hold trials of a [search], but got {results}, where none has ended.")
    jobs = []
    for search, store in found:
        stopped = [row["trial_id"] for row in search.rows if row["status"] == Status.STOPPED]
        trials = optuna_studies.trials(search, store.read_epochs(stopped).to_pylist())
        jobs.append(_Job(name=_name(store.sweep, search), search=search, trials=trials))
    return jobs


def _name(sweep: str, search: Search) -> str:
    """`sweep/method/teacher-student/fraction/id`: it never changes, whatever other searches the sweep will have."""
    row = search.newest
    return f"{sweep}/{row['method']}/{search.pair.replace('/', '-')}/{row['fraction']:g}/{search.id}"


def _known(storage: RDBStorage, url: str, job: _Job) -> list[FrozenTrial]:
    """What the study of that name has; ConfigError if it is not the search's own."""
    try:
        key = storage.get_study_id_from_name(job.name)
    except KeyError:
        return []
    there, wanted = storage.get_study_directions(key), optuna_studies.directions(job.search)
    if there != wanted:
        weighed = ", ".join(f"{_verb(how)} {name}" for how, name in zip(wanted, job.search.objectives, strict=True))
        raise _in_the_way(job.name, url, f"must {weighed}, but is there to {', '.join(map(_verb, there))}")
    known, whose = storage.get_all_trials(key), storage.get_study_user_attrs(key).get(STUDY)
    if known and whose != job.search.id:
        raise _in_the_way(
            job.name, url, f"must be of the search {job.search.id}, but is of {whose or 'another program'}"
        )
    for trial in known:
        _check(job, url, trial.distributions)
    return known


def _check(job: _Job, url: str, there: dict[str, BaseDistribution]) -> None:
    for name, dist in job.search.distributions.items():
        if name in there:
            try:
                check_distribution_compatibility(there[name], dist)
            except ValueError:
                raise _in_the_way(
                    job.name, url, f"must have {name} from {dist}, but has it from {there[name]}"
                ) from None


def _verb(direction: StudyDirection) -> str:
    return direction.name.lower()


def _in_the_way(name: str, url: str, why: str) -> ConfigError:
    return ConfigError(f"the study {name} {why} in {url}; export to another database, or delete the study there.")


def _write(storage: RDBStorage, job: _Job, known: list[FrozenTrial]) -> Written:
    fresh, changed = job.split(known)
    with optuna_studies.quiet():
        study = optuna.create_study(
            storage=storage,
            study_name=job.name,
            directions=optuna_studies.directions(job.search),
            load_if_exists=True,
        )
    optuna_studies.describe(study, job.search)
    study.add_trials(fresh)
    return Written(name=job.name, trials=len(job.trials), new=len(fresh), changed=changed)


@contextmanager
def _opened(url: str) -> Iterator[RDBStorage]:
    """The database, created if it does not exist. Its errors are a ConfigError of one line."""
    rule = "--storage must be the URL of a database that can be opened and written, such as sqlite:///study.db, but got"
    if told(url) == _NO_URL:
        raise ConfigError(f"{rule} {_NO_URL}.")
    storage = None
    try:
        storage = RDBStorage(url)
        yield storage
    except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError, OSError) as error:
        reason = str(error.__cause__ or error).splitlines()[0].rstrip(".")
        raise ConfigError(f"{rule} {told(url)}: {reason}.") from error
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()

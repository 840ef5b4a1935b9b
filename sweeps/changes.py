"""Whether a spec still means what its stored results were made by."""

import json
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from kdtrain.config import ConfigError, canonical
from sweeps.plan import Plan, expand
from sweeps.spec import parse_text, sha256
from sweeps.store import Store
from sweeps.tables import Spec
from sweeps.words import count

# Keys that are no part of any trial; what a search varies is compared on its own.
FREE = ("run", "sweep.cites", "data.root", "data.download", "search", "scheduler", "confirm")


def check(spec: Spec, text: str, plan: Plan, store: Store) -> None:
    """Raise ConfigError if a cell that has a result would now be another trial.

    A spec may grow and shrink (seeds, methods, fractions ...); cells that stay must stay the same. All
    specs that the sweep was run with are compared, as `remember` keeps them. A spec is planned again only if its cells
    were other trials then: a method's version may have been raised since, which is no change of the spec.
    """
    ended = store.ids("trials")
    if plan.studies:  # rows of a search are known by their study
        ended |= {key for key in store.read_trials(columns=["study"])["study"].to_pylist() if key is not None}
    for name in sorted(store.ids("specs")):
        before = _stored(store, name, "toml")
        if before == text or not ended or not _lost(_remembered(store, name), plan, ended):
            continue
        if lost := _lost(_planned(before, store.path("specs", f"{name}.toml")), plan, ended):
            raise ConfigError(
                f"the spec of {spec.sweep.name!r} has changed since {count(len(lost), 'trial')} of it ended: "
                f"{_differences(before, text)}. Put the old values back, or give the sweep another sweep.name."
            )


def remember(text: str, plan: Plan, store: Store) -> None:
    """Keep the spec that the sweep is run with, as spec.toml and beside the earlier ones, and its cells."""
    name = sha256(text)[:16]
    store.write_bytes(text.encode(), "spec.toml")
    store.write_bytes(json.dumps(_cells(plan)).encode(), "specs", f"{name}.json")
    store.write_bytes(text.encode(), "specs", f"{name}.toml")


def _cells(plan: Plan) -> list[tuple[str, str]]:
    """The cells and the studies of a plan: axes as JSON, and id."""
    cells = [(canonical(cell.axes), cell.trial_id) for cell in plan.cells]
    return cells + [(canonical(study.axes), study.id) for study in plan.studies]


def _lost(cells: Iterable[tuple[str, str]] | None, plan: Plan, ended: Set[str]) -> set[str]:
    """The trials that have ended and are no longer those of their axes; `cells`: axes as JSON, and trial id."""
    now: dict[str, set[str]] = defaultdict(set)  # several where teachers that are probed differ in what is no axis
    for axes, key in _cells(plan):
        now[axes].add(key)
    if cells is None:
        return set(ended)  # nothing is known
    return {key for axes, key in cells if key in ended and key not in now.get(axes, {key})}


def _remembered(store: Store, name: str) -> list[tuple[str, str]] | None:
    try:
        return [(axes, key) for axes, key in json.loads(_stored(store, name, "json"))]
    except ValueError:  # it is not there
        return None


def _stored(store: Store, name: str, suffix: str) -> str:
    return (store.read_bytes("specs", f"{name}.{suffix}") or b"").decode(errors="replace")


def _planned(text: str, path: str) -> list[tuple[str, str]]:
    try:
        return _cells(expand(parse_text(text, path)))
    except ConfigError as error:
        raise ConfigError(
            f"the sweep was run with a spec that this version cannot read, {path}: {error} "
            "Give the sweep another sweep.name, or remove that file if its results may stay beside new ones."
        ) from None


def _differences(before: str, now: str) -> str:
    old, new = (dict(_flat(tomllib.loads(text))) for text in (before, now))
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    told = [key for key in keys if not key.startswith(FREE)] or keys
    return ", ".join(f"{key} {old.get(key, 'unset')} -> {new.get(key, 'unset')}" for key in told)


def _flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value

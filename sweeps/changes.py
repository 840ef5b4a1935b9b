"""Whether a spec still means what its stored results were made by."""

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from kdtrain.config import ConfigError, canonical
from sweeps.plan import Plan, expand
from sweeps.spec import Spec, parse_text
from sweeps.store import Store

FREE = ("run", "sweep.cites", "data.root", "data.download")  # keys that are no part of any trial


def check(spec: Spec, text: str, plan: Plan, store: Store) -> None:
    """Raise ConfigError if a cell that has a result would now be another trial.

    A spec may grow and shrink (seeds, methods, fractions ...); cells that stay must stay the same.
    """
    stored = store.read_bytes("spec.toml")
    if stored is None or stored.decode() == text:
        return
    before = expand(parse_text(stored.decode(), store.path("spec.toml")))
    now = {canonical(cell.axes): cell.trial_id for cell in plan.cells}
    ended = store.ids("trials")
    lost = {
        cell.trial_id
        for cell in before.cells
        if cell.trial_id in ended and now.get(canonical(cell.axes), cell.trial_id) != cell.trial_id
    }
    if lost:
        raise ConfigError(
            f"the spec of {spec.sweep.name!r} has changed since {len(lost)} of its trials ended: "
            f"{_differences(stored.decode(), text)}. Put the old values back, or give the sweep another sweep.name."
        )


def _differences(before: str, now: str) -> str:
    old, new = (dict(_flat(tomllib.loads(text))) for text in (before, now))
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    told = [key for key in keys if not key.startswith(FREE)]
    return ", ".join(f"{key} {old.get(key, 'unset')} -> {new.get(key, 'unset')}" for key in told)


def _flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value

"""Whether a spec still means what its stored results were made by."""

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from kdtrain.config import ConfigError, canonical
from sweeps.plan import Cell, Plan, expand
from sweeps.spec import parse_text, sha256
from sweeps.store import Store
from sweeps.tables import Spec
from sweeps.words import count

FREE = ("run", "sweep.cites", "data.root", "data.download")  # keys that are no part of any trial


def check(spec: Spec, text: str, plan: Plan, store: Store) -> None:
    """Raise ConfigError if a cell that has a result would now be another trial.

    A spec may grow and shrink (seeds, methods, fractions ...); cells that stay must stay the same. All
    specs that the sweep was run with are compared, as `remember` keeps them.
    """
    now = {canonical(cell.axes): cell.trial_id for cell in plan.cells}
    ended = store.ids("trials")
    for name in sorted(store.ids("specs")):
        before = _stored(store, name)
        if before == text or not ended:
            continue
        lost = {
            cell.trial_id
            for cell in _cells(before, store.path("specs", f"{name}.toml"))
            if cell.trial_id in ended and now.get(canonical(cell.axes), cell.trial_id) != cell.trial_id
        }
        if lost:
            raise ConfigError(
                f"the spec of {spec.sweep.name!r} has changed since {count(len(lost), 'trial')} of it ended: "
                f"{_differences(before, text)}. Put the old values back, or give the sweep another sweep.name."
            )


def remember(text: str, store: Store) -> None:
    """Keep the spec that the sweep is run with: as spec.toml, and beside the earlier ones."""
    store.write_bytes(text.encode(), "spec.toml")
    store.write_bytes(text.encode(), "specs", f"{sha256(text)[:16]}.toml")


def _stored(store: Store, name: str) -> str:
    return (store.read_bytes("specs", f"{name}.toml") or b"").decode(errors="replace")


def _cells(text: str, path: str) -> list[Cell]:
    try:
        return expand(parse_text(text, path)).cells
    except ConfigError as error:
        raise ConfigError(
            f"the sweep was run with a spec that this version cannot read, {path}: {error} "
            "Give the sweep another sweep.name, or remove that file if its results may stay beside new ones."
        ) from None


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

"""Result files -> data frames. The store checks the files; what is added here is which sweeps a path means."""

import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis.errors import ReportError
from sweeps.store import TEACHERS, Store, sweeps

Row = dict[str, Any]  # a trial: column -> value, None where there is none


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is known of one sweep."""

    name: str
    trials: pd.DataFrame  # ended students and probes, the columns of sweeps.schema.TRIALS, None for null
    teachers: pd.DataFrame  # those and the assistants whose ids the trials name and that have a row, same columns
    spec: str | None  # text of its spec file
    under_way: int  # trials begun and not ended

    def status(self) -> str:
        """One sentence on how far the sweep is, e.g. `no completed trial yet: 3 under way`."""
        counts = self.trials["status"].value_counts()
        parts = [f"{counts[name]} {name}" for name in ("failed", "diverged", "stopped") if name in counts]
        if self.under_way:
            parts.append(f"{self.under_way} under way")
        completed = int(counts.get("completed", 0))
        if completed:
            return ", ".join([f"{completed} completed", *parts])
        return "no completed trial yet" + (f": {', '.join(parts)}" if parts else "")


def resolve(path: str) -> tuple[str, list[str]]:
    """The results folder and the names of its sweeps that `path` means.

    `path` is the folder of a sweep, or a results folder (then all its sweeps), local or a URI.
    ReportError lists the sweeps there are if it is neither.
    """
    path = path.rstrip("/") if "://" in path else os.path.abspath(os.path.expanduser(path))
    parent, name = posixpath.split(path)
    if _is_sweep(parent, name):
        return parent, [name]
    inside = [sweep for sweep in _folders(path) if _is_sweep(path, sweep)]
    if inside:
        return path, inside
    beside = [sweep for sweep in _folders(parent) if _is_sweep(parent, sweep)]
    known = f"sweeps in {parent}: {', '.join(beside)}" if beside else f"there is no sweep in {parent} either"
    raise ReportError(f"{path} is neither the folder of a sweep nor of results; {known}.")


def load(results: str, name: str) -> Sweep:
    """The trials of one sweep and their teachers. StoreError names a file that cannot be read."""
    store = Store(results, name)
    trials = frame(store.read_trials())
    begun = store.ids("epochs") | store.ids("checkpoints")
    ids = {
        *trials["teacher_id"].dropna(),
        *trials["source_id"].dropna(),
        *(key for keys in trials["assistant_ids"].dropna() for key in keys),
    }
    spec = store.read_bytes("spec.toml")
    return Sweep(
        name=name,
        trials=trials[trials["role"] != "teacher"].reset_index(drop=True),
        teachers=_teachers(results, ids, trials),
        spec=None if spec is None else spec.decode(errors="replace"),
        under_way=len(begun - set(trials["trial_id"])),
    )


def _teachers(results: str, ids: set[str], trials: pd.DataFrame) -> pd.DataFrame:
    """The rows of teachers: of weights from elsewhere as this sweep measured them, of the others what trained them."""
    own = trials[(trials["role"] == "teacher") & trials["trial_id"].isin(ids)]
    trained = Store(results, TEACHERS).read_trials(ids - set(own["trial_id"]))
    return pd.concat([frame(trained), own], ignore_index=True).astype(object) if len(own) else frame(trained)


def load_epochs(results: str, name: str, ids: Iterable[str]) -> pd.DataFrame:
    """The recipe's epochs of the trials named: trial_id, epoch, val_acc and test_acc in percent (NaN for null)."""
    table = Store(results, name).read_epochs(ids).filter(pc.field("stage") == "train")
    epochs: pd.DataFrame = table.select(["trial_id", "epoch", "val_acc", "test_acc"]).to_pandas()
    return epochs


def frame(table: pa.Table) -> pd.DataFrame:
    """The table with Python objects in its cells, so that null is None in every column."""
    return pd.DataFrame(table.to_pylist(), columns=table.column_names, dtype=object)


def records(trials: pd.DataFrame) -> list[Row]:
    """The rows as dicts."""
    return [{str(key): value for key, value in row.items()} for row in trials.to_dict("records")]


def _is_sweep(results: str, name: str) -> bool:
    if not name or name == TEACHERS or _above_root(results):
        return False
    store = Store(results, name)
    try:
        return bool(store.exists("spec.toml") or store.ids("trials") or store.ids("epochs"))
    except NotADirectoryError:
        return False


def _above_root(results: str) -> bool:
    return results.endswith(":")  # what is left of s3://bucket without its last part


def _folders(results: str) -> list[str]:
    no_folder = _above_root(results) or os.path.isfile(os.path.expanduser(results))
    return [] if no_folder else sweeps(results)

"""Result files -> data frames. The store checks the files; what is added here is which sweeps a path means."""

import os
import posixpath
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis.errors import ReportError
from sweeps.schema import TRIALS
from sweeps.store import TEACHERS, Store, sweeps

SHOWN = [name for name in TRIALS.names if name != "class_recall"]  # which is larger than all others together
Row = dict[str, Any]  # a trial: column -> value, None where there is none


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is known of one sweep."""

    name: str
    trials: pd.DataFrame  # ended students and probes that are compared, the columns of TRIALS, None for null
    searched: pd.DataFrame  # ended trials of searches, which choose and are not compared, same columns
    teachers: pd.DataFrame  # those and the assistants whose ids the trials name and that have a row, same columns
    spec: str | None  # text of its spec file
    under_way: int  # trials begun and not ended

    @property
    def replayed(self) -> int:
        """How many trials returned the stored epochs of others: of a simulated search."""
        return int(self.trials["replayed"].count() + self.searched["replayed"].count())

    def status(self) -> str:
        """How far the sweep is, and whether it was simulated, e.g. `no completed trial yet: 3 under way`."""
        found = [_searches(self.searched)] if len(self.searched) else []
        problems = _counted(self.trials, ("failed", "diverged", "stopped"))
        if self.under_way:
            problems.append(f"{self.under_way} under way")
        if completed := _counted(self.trials, ("completed",)):
            found += [*completed, *problems]
        elif found and not len(self.trials):
            found += problems
        else:
            found.append("no completed trial yet" + (f": {', '.join(problems)}" if problems else ""))
        return "; ".join([", ".join(found), *self._unconfirmed(), *self._simulated()])

    def _unconfirmed(self) -> Iterable[str]:
        """What is not compared yet, and where it can be seen."""
        studies = set(self.searched["study"])
        missing = studies - set(self.trials["study"])
        if missing:
            what = (
                f"{len(missing)} of {len(studies)} studies not confirmed" if len(self.trials) else "nothing to compare"
            )
            yield f"{what} yet, kd-report search RESULTS shows the search"

    def _simulated(self) -> Iterable[str]:
        total = len(self.trials) + len(self.searched)
        if self.replayed == total and total:
            yield "simulated: replays stored epochs, nothing was trained"
        elif self.replayed:
            yield f"simulated in part: {self.replayed} of {total} trials replay stored epochs"


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


def load(results: str, name: str, columns: Collection[str] = SHOWN) -> Sweep:
    """The trials of one sweep (these columns of them) and their teachers.

    StoreError names a file that cannot be read.
    """
    store = Store(results, name)
    trials = frame(store.read_trials(columns=columns))
    begun = store.ages("epochs").keys() | store.ids("checkpoints")
    ids = {
        *trials["teacher_id"].dropna().unique(),
        *trials["source_id"].dropna().unique(),
        *(key for keys in trials["assistant_ids"].dropna().unique() for key in keys),
    }
    search = trials["phase"] == "search"
    spec = store.read_bytes("spec.toml")
    return Sweep(
        name=name,
        trials=trials[~search & (trials["role"] != "teacher")].reset_index(drop=True),
        searched=trials[search].reset_index(drop=True),
        teachers=_teachers(results, ids, trials, columns),
        spec=None if spec is None else spec.decode(errors="replace"),
        under_way=len(begun - set(trials["trial_id"])),
    )


def _searches(searched: pd.DataFrame) -> str:
    """E.g. `48 search trials (30 completed, 18 stopped)`."""
    counts = ", ".join(_counted(searched, ("completed", "stopped", "failed", "diverged")))
    return f"{len(searched)} search trial{'s' if len(searched) > 1 else ''} ({counts})"


def _counted(trials: pd.DataFrame, names: Iterable[str]) -> list[str]:
    counts = trials["status"].value_counts()
    return [f"{counts[name]} {name}" for name in names if name in counts]


def _teachers(results: str, ids: set[str], trials: pd.DataFrame, columns: Collection[str]) -> pd.DataFrame:
    """The rows of teachers: of weights from elsewhere as this sweep measured them, of the others what trained them."""
    own = trials[(trials["role"] == "teacher") & trials["trial_id"].isin(ids)]
    trained = Store(results, TEACHERS).read_trials(ids - set(own["trial_id"]), columns)
    return pd.concat([frame(trained), own], ignore_index=True) if len(own) else frame(trained)


def load_epochs(results: str, name: str, ids: Iterable[str]) -> pd.DataFrame:
    """The recipe's epochs of the trials named: trial_id, epoch, val_acc and test_acc in percent (NaN for null)."""
    columns = ["trial_id", "epoch", "val_acc", "test_acc"]
    table = Store(results, name).read_epochs(ids, [*columns, "stage"]).filter(pc.field("stage") == "train")
    epochs: pd.DataFrame = table.select(columns).to_pandas()
    return epochs


def frame(table: pa.Table) -> pd.DataFrame:
    """The table with Python objects in its cells, None for null and tuples for lists; times, never null, as pandas'."""
    times = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    return pd.DataFrame(
        {
            name: table[name].to_pandas() if name in times else pd.Series(_cells(table[name]), dtype=object)
            for name in table.column_names
        }
    )


def records(trials: pd.DataFrame) -> list[Row]:
    """The rows as dicts of Python's own objects."""
    columns = {
        str(name): [time.to_pydatetime() for time in values] if values.dtype.kind == "M" else values
        for name, values in trials.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _cells(chunks: pa.ChunkedArray) -> np.ndarray:
    """The values as Python objects, those that are equal as one object: a large sweep repeats itself."""
    column = chunks.combine_chunks()
    nested = pa.types.is_list(column.type)
    # Arrow finds equal lists as their texts only.
    keys = pc.binary_join(column.cast(pa.list_(pa.string())), "\0") if nested else column
    encoded = keys.dictionary_encode("encode")
    codes = encoded.indices.to_numpy()
    places = np.zeros(len(encoded.dictionary), dtype=int)
    places[codes] = np.arange(len(codes))  # any place of each will do
    values = [tuple(value) if isinstance(value, list) else value for value in column.take(places).to_pylist()]
    distinct = np.empty(len(values), dtype=object)
    distinct[:] = values
    cells: np.ndarray = distinct[codes]
    return cells


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

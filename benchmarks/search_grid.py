"""The stored grid that simulated searches look their results up in: how it is packed, read and searched.

python -m benchmarks.search_grid RESULTS SWEEP packs a finished sweep into tests/assets, two files and its spec.
"""

import dataclasses
import io
import json
import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from kdtrain.config import ConfigError, canonical, parse
from sweeps.job import Maker, maker
from sweeps.plan import expand
from sweeps.schema import Status
from sweeps.searches import Search, searches
from sweeps.space import Point
from sweeps.spec import parse_text
from sweeps.store import Store
from sweeps.tables import SearchTable, Spec

ASSETS = Path(__file__).parents[1] / "tests" / "assets" / "cid_grid"
SWEEP = "cid_grid"
MOST_BYTES = 2_000_000
HOST = "grid"  # instead of the name of the machine
FINAL = (Status.COMPLETED, Status.DIVERGED)


def pack(results: str, sweep: str, target: str, *, whole: bool = True) -> int:
    """Write the rows of a sweep under `target`, all trials in one file and all epochs in one; the bytes of both.

    whole: refuse a sweep of which a trial is missing or failed.
    """
    source, packed = Store(results, sweep), Store(target, sweep)
    text = (source.read_bytes("spec.toml") or b"").decode()
    trials = source.read_trials()
    planned = expand(parse_text(text)).trials.keys()
    ended = {row["trial_id"] for row in trials.to_pylist() if row["status"] in FINAL}
    if whole and (left := planned - ended):
        raise ConfigError(f"{source.url} must have all its trials, but {len(left)} of {len(planned)} are missing.")
    trials = trials.filter(pa.compute.is_in(trials["trial_id"], pa.array(sorted(planned & ended)))).sort_by("trial_id")
    place = trials.schema.get_field_index("host")
    trials = trials.set_column(place, trials.schema.field(place), pa.array([HOST] * len(trials)))
    place = trials.schema.get_field_index("error")
    errors = [
        error and re.sub(r'File "/.*/(\w+/\w+\.py)"', r'File "\1"', error) for error in trials["error"].to_pylist()
    ]
    trials = trials.set_column(place, trials.schema.field(place), pa.array(errors, pa.string()))  # no machine's folders
    epochs = source.read_epochs(trials["trial_id"].to_pylist())
    size = 0
    for kind, table in (("trials", trials), ("epochs", epochs)):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", compression_level=19)
        packed.write_bytes(buffer.getvalue(), kind, f"{sweep}.parquet")
        size += buffer.tell()
    if size > MOST_BYTES:
        raise ConfigError(f"{packed.url} must have at most {MOST_BYTES:,} bytes, but has {size:,}.")
    packed.write_bytes(text.encode(), "spec.toml")
    return size


@dataclass(frozen=True)
class Grid:
    """A stored sweep of one method on one pair, and the search over its points."""

    results: str
    sweep: str
    text: str  # of the spec
    accuracies: dict[str, float]  # on held-out images after the last epoch, by point (JSON); not of diverged trials
    curves: dict[str, list[float]]  # the same after each epoch
    epochs: int  # of all trials

    @property
    def best(self) -> float:
        """The highest accuracy."""
        return max(self.accuracies.values())

    def within(self, points: float) -> int:
        """How many points of the grid are at most so many percentage points worse than the best."""
        return sum(self.best - accuracy <= points + 1e-9 for accuracy in self.accuracies.values())

    def maker(self) -> Maker:
        """What makes the jobs of a search over the grid."""
        return maker(self._spec(SearchTable()), self.text, set())

    def search(self, sampler: str, seed: int, trials: int | None = None, study: str | None = None) -> Search:
        """A search that has not begun. study: its id, by default that of the code."""
        found = _search(self.results, self.sweep, sampler, trials or len(self.curves))
        table = found.table.model_copy(update={"seed": seed})
        own = found.study if study is None else dataclasses.replace(found.study, id=study)
        return dataclasses.replace(found, study=own, table=table)

    def _spec(self, table: SearchTable) -> Spec:
        """The sweep's spec with a search over the lists of its grid, which become choices."""
        tables = tomllib.loads(self.text)
        (method,) = tables["grid"]["method"]
        lists = tables["grid"].pop(method)
        own = {**table.model_dump(exclude_none=True), "space": {method: lists}}
        return parse(Spec, {**tables, "search": own, "run": {"results": self.results, "replay": self.sweep}})


@lru_cache(maxsize=4)
def load(results: str = str(ASSETS), sweep: str = SWEEP) -> Grid:
    """Read a stored grid."""
    store = Store(results, sweep)
    text = (store.read_bytes("spec.toml") or b"").decode()
    (method,) = tomllib.loads(text)["grid"]["method"]
    names = list(tomllib.loads(text)["grid"][method])
    rows = store.read_trials().to_pylist()
    points = {row["trial_id"]: canonical(_point(row, names)) for row in rows}
    curves: dict[str, list[float]] = {point: [] for point in points.values()}
    for row in store.read_epochs().to_pylist():
        curves[points[row["trial_id"]]].append(row["val_acc"])
    accuracies = {points[row["trial_id"]]: row["val_acc"] for row in rows if row["status"] == Status.COMPLETED}
    return Grid(results, sweep, text, accuracies, curves, sum(row["epochs_done"] for row in rows))


def _point(row: dict[str, Any], names: list[str]) -> Point:
    params = json.loads(row["params"])
    return {name: params[name] for name in names}


@lru_cache(maxsize=16)
def _search(results: str, sweep: str, sampler: str, trials: int) -> Search:
    grid = load(results, sweep)
    spec = grid._spec(SearchTable(sampler=sampler, trials=trials))
    (found,) = searches(spec, expand(spec), Store(results, "simulated"), [])
    return found


def main(results: str, sweep: str = SWEEP, target: str = str(ASSETS)) -> None:
    """Pack SWEEP of RESULTS."""
    print(f"{pack(results, sweep, target):,} bytes")


if __name__ == "__main__":
    typer.run(main)

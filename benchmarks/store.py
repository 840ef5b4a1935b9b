"""What a store of 100,000 trials costs: writing small files, merging them, and a table of all of it.

The trials are a grid of 5 pairs, 20 methods, 4 fractions, 50 values of a parameter and 5 seeds, with 24 epochs each.
Small files are written, merged and read for 1,000 of them; the store with all of them is written merged, by what
`kd-sweep compact` writes with.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.page import Shown
from benchmarks.results import Row
from sweeps import rows
from sweeps.compact import compact
from sweeps.plan import expand
from sweeps.schema import EPOCHS, TRIALS, Status
from sweeps.spec import parse_text
from sweeps.store import TEACHERS, Store

SETTINGS, SEEDS, EPOCHS_EACH, CLASSES = 50, 5, 24, 100
SMALL = 1000  # trials whose small files are written
RUNS, WALL, MEMORY = 5, 3.0, 1000  # of the table; its targets: seconds, MB resident
SPEC = f"""
[sweep]
name = "large"
[data]
dataset = "cifar100"
[train]
recipe = "crd_cifar"
epochs = {EPOCHS_EACH}
[grid]
pair = ["wrn_40_2/wrn_16_2", "wrn_40_2/wrn_40_1", "resnet56/resnet20", "resnet110/resnet32", "vgg13/vgg8"]
method = [
    "kd", "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "nst", "crd", "srrl", "cskd", "ofd", "wsld", "dkd",
    "reviewkd", "dist", "nkd", "cid", "ipwd",
]
fraction = [0.1, 0.2, 0.5, 1.0]
seed = [1]
"""
SOURCE = {"sweep": "large", "spec_sha256": "0" * 64, "git_commit": ""}
ENDS = ((Status.COMPLETED, 0.97), (Status.DIVERGED, 0.02), (Status.FAILED, 0.01))  # and the share of each
# A child counts what its parent had when it began, so the parent is a small process.
_WATCH = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True)
seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
print(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)
"""
RANGES = {"test_top1": (70, 1), "test_top5": (91, 1), "test_nll": (1.1, 0.1), "test_ece": (6, 1), "best_acc": (71, 1)}


def measure() -> list[Row]:
    """A row for each work on the store: of small files, and five of the table of all trials."""
    plan = expand(parse_text(SPEC))
    trials = made_trials([rows.identity(trial, "student") for trial in plan.trials.values()], SETTINGS, SEEDS)
    teachers = made_trials([rows.identity(trial, "teacher") for trial in plan.teachers.values()], 1, 1)
    with tempfile.TemporaryDirectory() as results:
        found = _small_files(Store(results, "small"), trials.slice(0, SMALL))
        large = Store(results, "large")
        seconds = _seconds(lambda: large.write_merged("trials", trials))
        seconds += _seconds(lambda: large.write_merged("epochs", made_epochs(trials["trial_id"].to_pylist())))
        Store(results, TEACHERS).write_merged("trials", teachers)
        size = sum(info.size for kind in ("trials", "epochs") for info in large.files(kind, "merged").values())
        found.append(_row("write merged", len(trials), seconds, size_mb=size / 1e6))
        command = [sys.executable, "-m", "analysis", "table", large.url]
        return found + [_row("table", len(trials), *_run(command)) for _ in range(RUNS)]


def shown(rows: Sequence[Row]) -> list[Shown]:
    """Two tables."""
    small = [row for row in rows if row["trials"] == SMALL]
    lines = [[row["work"], f"{row['seconds']:.2f}", f"{1000 * row['seconds'] / row['trials']:.2f}"] for row in small]
    about = f"{SMALL:,} trials of {EPOCHS_EACH} epochs, generated, one run (n = 1)."
    files = Shown("6. The store: small files", about, ("", "total, s", "a trial, ms"), lines)
    (written,) = (row for row in rows if row["work"] == "write merged")
    runs = [row for row in rows if row["work"] == "table"]
    lines = []
    for label, key, digits, target in (
        ("wall time, s", "seconds", 2, WALL),
        ("CPU time, s", "cpu_seconds", 2, None),  # what it would take of a machine without other load
        ("peak memory, MB", "peak_mb", 0, MEMORY),
    ):
        values = [row[key] for row in runs]
        numbers = [f"{value:,.{digits}f}" for value in (median(values), min(values), max(values))]
        said = "" if target is None else f"at most {target:,}: {'kept' if median(values) <= target else 'exceeded'}"
        lines.append([label, *numbers, said])
    about = (
        f"`kd-report table` of {written['trials']:,} generated trials of {EPOCHS_EACH} epochs as `kd-sweep compact` "
        f"leaves them ({written['size_mb']:,.0f} MB, written in {written['seconds']:.0f} s), {len(runs)} runs."
    )
    table = Shown("The store: a table of all trials", about, ("", "median", "least", "most", "target"), lines)
    return [files, table]


def _row(
    work: str, trials: int, seconds: float, cpu_seconds: float | None = None, peak_mb: float | None = None,
    size_mb: float | None = None,
) -> Row:  # fmt: skip
    return {
        "work": work, "trials": trials, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb,
        "size_mb": size_mb,
    }  # fmt: skip


def made_trials(identities: list[dict[str, Any]], settings: int, seeds: int) -> pa.Table:
    """Rows of trials with these identities, each with so many values of its method's first number, and seeds.

    A row keeps the ids of `identities` where it is the only one made of it.
    """
    draw = np.random.default_rng(0)
    rest = {**rows.searched({}), **rows.outcome(Status.COMPLETED, EPOCHS_EACH), **rows.metrics(None)}
    origin = rows.provenance(SOURCE, "cpu", 1, datetime.now(UTC))
    base = pa.Table.from_pylist([{**own, **rest, **origin} for own in identities], TRIALS)
    table = base.take(np.repeat(np.arange(len(base)), settings * seeds))
    n = len(table)
    status = draw.choice([end for end, _ in ENDS], n, p=[share for _, share in ENDS])
    bad = status != Status.COMPLETED
    columns: dict[str, Any] = {
        "params": [text for own in identities for text in _scaled(own["params"], settings) for _ in range(seeds)],
        "seed": np.tile(np.arange(1, seeds + 1), len(base) * settings),
        "status": status,
        "error": np.where(status == Status.FAILED, "Traceback (most recent call last):\n" + 20 * "  line\n", None),
        "class_recall": pa.FixedSizeListArray.from_arrays(draw.uniform(40, 95, n * CLASSES), CLASSES),
        **{name: pa.array(draw.normal(*both, n), mask=bad) for name, both in RANGES.items()},
        "ended_at": 1_767_225_600_000 + np.arange(n) * 1000,
        "train_seconds": pa.array(draw.uniform(900, 1100, n), mask=bad),
    }
    if n > len(identities):
        columns["trial_id"] = [hashlib.sha256(f"{n} {place}".encode()).hexdigest()[:16] for place in range(n)]
    for name, values in columns.items():
        field = TRIALS.field(name)
        array = values if isinstance(values, pa.Array) else pa.array(values)
        table = table.set_column(TRIALS.get_field_index(name), field, array.cast(field.type))
    return table


def made_epochs(ids: list[str]) -> pa.Table:
    """The rows of the epochs of these trials."""
    n, draw = len(ids) * EPOCHS_EACH, np.random.default_rng(1)
    terms = pa.MapArray.from_arrays(np.arange(0, 2 * n + 1, 2), pa.array(["ce", "kd"] * n), draw.uniform(0, 3, 2 * n))
    columns = {
        "trial_id": pa.array(ids).take(np.repeat(np.arange(len(ids)), EPOCHS_EACH)),
        "stage": ["train"] * n,
        "epoch": np.tile(np.arange(1, EPOCHS_EACH + 1), len(ids)),
        "lr": np.full(n, 0.05),
        "terms": terms,
        "train_acc": draw.normal(60, 5, n),
        "val_acc": pa.nulls(n, pa.float64()),
        "test_acc": draw.normal(65, 5, n),
        "seconds": draw.uniform(38, 46, n),
        "teacher_seconds": np.zeros(n),
        "shared_seconds": draw.uniform(0, 0.1, n),
        "teacher_epochs": np.zeros(n, int),
    }
    return pa.Table.from_pydict(columns, schema=EPOCHS)


def _scaled(params: str, settings: int) -> Iterable[str]:
    """The parameters with other values of the first number."""
    table = json.loads(params)
    name = next((name for name, value in table.items() if isinstance(value, float)), None)
    for place in range(settings):
        yield json.dumps(table if name is None else {**table, name: table[name] * (1 + place / 10)}, sort_keys=True)


def _small_files(store: Store, trials: pa.Table) -> list[Row]:
    """The work on the small files of these trials."""
    epochs: dict[str, list[dict[str, Any]]] = {}
    for row in made_epochs(trials["trial_id"].to_pylist()).to_pylist():
        epochs.setdefault(row["trial_id"], []).append(row)

    def write() -> None:
        for row in trials.to_pylist():
            store.write_epochs(row["trial_id"], epochs[row["trial_id"]])
            store.write_trial(row)

    def read() -> None:
        assert (len(store.read_trials()), len(store.read_epochs())) == (len(trials), len(trials) * EPOCHS_EACH)

    works = (("write, one by one", write), ("read small files", read), ("compact", lambda: compact(store.url)),
             ("read the merged ones", read))  # fmt: skip
    return [_row(name, len(trials), _seconds(work)) for name, work in works]


def _run(command: list[str]) -> tuple[float, float, float]:
    """Of a process: seconds of wall time, seconds of CPU, and MB resident at most."""
    told = subprocess.run([sys.executable, "-S", "-c", _WATCH, *command], capture_output=True, text=True, check=True)
    seconds, cpu, peak = map(float, told.stderr.split()[-3:])
    return seconds, cpu, peak * 1024 / 1e6


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start

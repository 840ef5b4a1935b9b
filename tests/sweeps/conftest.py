"""Small specs, and the command line as a person meets it."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from kdtrain.build import trial_id
from kdtrain.config import TrialConfig
from kdtrain.data import info_of
from sweeps import rows
from sweeps.ask import Asking
from sweeps.plan import expand
from sweeps.points import Tried
from sweeps.schema import METRICS, Status
from sweeps.searches import Search, searches
from sweeps.spec import parse_text
from sweeps.store import Store

SPEC = """
[sweep]
name = "small"
[data]
dataset = "fashion_mini"
root = "{root}"
[train]
epochs = 2
precision = "bf16"
[teacher]
epochs = 1
fraction = 0.02
[grid]
pair = ["resnet8/resnet8"]
method = ["vanilla", "kd"]
fraction = [0.02]
seed = [1, 2]
"""


@pytest.fixture(scope="session")
def spec_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The TOML of a sweep of 4 trials and a teacher that runs in seconds."""
    return SPEC.format(root=tmp_path_factory.mktemp("data"))


@pytest.fixture
def end() -> Callable[..., None]:
    """`end_trial` as a fixture: test modules cannot import one another."""
    return end_trial


def end_trial(
    store: Store,
    trial: TrialConfig,
    role: str,
    status: Status,
    seconds: float | None = None,
    predicted: float | None = None,
    **columns: Any,
) -> None:
    """Write the row of an ended trial as its worker would."""
    images = info_of(trial.data).train_images
    assert images is not None
    n_train = round(trial.data.fraction * (images - trial.data.val_size))
    metrics = dict.fromkeys(field.name for field in METRICS) | {"train_seconds": seconds, "n_train": n_train}
    source = {"sweep": store.sweep, "spec_sha256": "0" * 64, "git_commit": ""}
    error = ("RuntimeError", "Traceback ...\nRuntimeError: broken") if status == Status.FAILED else None
    store.write_trial(
        {
            **rows.identity(trial, role),
            **rows.outcome(status, trial.train.epochs, error),
            **metrics,
            **rows.provenance(source, "cpu", 1, datetime.now(UTC), predicted=predicted),
            **columns,
        }
    )


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Call kd-sweep in this process, for what starts no trial."""
    from sweeps.__main__ import main

    def call(*args: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["kd-sweep", *map(str, args)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return call


def start_sweep(*args: object) -> subprocess.Popen[str]:
    """Start kd-sweep in a process of its own, with a Ray of its own whatever else runs on this machine."""
    command = [sys.executable, "-m", "sweeps", *map(str, args)]
    environment = {**os.environ, "RAY_ADDRESS": "local", "COLUMNS": "200"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start kd-sweep and go on."""
    return start_sweep


@pytest.fixture(scope="session")
def sweep() -> Callable[..., Ended]:
    """Call kd-sweep in a process of its own and wait for its end."""

    def call(*args: object) -> Ended:
        process = start_sweep(*args)
        out, err = process.communicate(timeout=240)
        return Ended(process.returncode, out, err)

    return call


class Studies:
    """The searches of a spec with rows in memory: trials end as a test says, and studies are rebuilt from the rows."""

    def __init__(self, text: str) -> None:
        self.spec = parse_text(text)
        self.plan = expand(self.spec)
        self.rows: dict[tuple[str, int, int], dict[str, Any]] = {}  # by study, number of the point, and seed

    def search(self, place: int = 0, **how: bool) -> Search:
        """One of the searches, with what the rows have."""
        return searches(self.spec, self.plan, Store("/nowhere", "none"), self.rows.values(), **how)[place]

    def asking(self, place: int = 0, p_threshold: float | None = None) -> Asking:
        """One of the studies, rebuilt from the rows."""
        return Asking(self.search(place), p_threshold)

    def ask(self, study: Asking) -> Tried:
        """A new point, whose trials are under way."""
        each = study.ask()
        for seed in study.seeds_to_run(each):
            self._write(study, each, seed, {"status": None})
        return each

    def end(self, study: Asking, each: Tried, seed: int, status: Status, acc: float | None = None) -> list[int]:
        """A trial of a point has ended. Returns the seeds with which the point is not worth trying."""
        student = each.point.get("family") and study.search.study.cell.trial(each.point, seed)[0].student
        costs = study.search.costs[student] if student else {}
        row = {**costs, "status": status, "val_acc": acc, "epochs_done": 4}
        self._write(study, each, seed, row)
        return study.tell(each.number, seed, row)

    def _write(self, study: Asking, each: Tried, seed: int, row: dict[str, Any]) -> None:
        key = trial_id(study.search.study.cell.trial(each.point, seed)[0])
        columns = {**study.search.columns(each), "trial_id": key, "seed": seed}
        self.rows[study.search.study.id, each.number, seed] = {**columns, **row}


@pytest.fixture(scope="session")
def studies() -> Callable[[str], Studies]:
    """`Studies` as a fixture."""
    return Studies

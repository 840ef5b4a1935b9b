"""Small specs, and the command line as a person meets it."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from kdtrain.config import TrialConfig
from sweeps import rows
from sweeps.schema import METRICS, Status
from sweeps.store import Store

SPEC = """
[sweep]
name = "small"
[data]
dataset = "fashion_mini"
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
def spec_text() -> str:
    """The TOML of a sweep of 4 trials and a teacher that runs in seconds."""
    return SPEC


@pytest.fixture
def end() -> Callable[..., None]:
    """`end_trial` as a fixture: test modules cannot import one another."""
    return end_trial


def end_trial(store: Store, trial: TrialConfig, role: str, status: Status, seconds: float | None = None) -> None:
    """Write the row of an ended trial as its worker would."""
    metrics = dict.fromkeys(field.name for field in METRICS) | {"train_seconds": seconds}
    source = {"sweep": store.sweep, "spec_sha256": "0" * 64, "git_commit": ""}
    error = ("RuntimeError", "Traceback ...\nRuntimeError: broken") if status == Status.FAILED else None
    store.write_trial(
        {
            **rows.identity(trial, role),
            **rows.outcome(status, trial.train.epochs, error),
            **metrics,
            **rows.provenance(source, "cpu", 1, datetime.now(UTC)),
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

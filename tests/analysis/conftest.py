"""Result files made up for the tests: a trial that follows the papers' recipe unless told otherwise."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from analysis.load import load
from analysis.metrics import metric_named
from analysis.tables import Table, build_tables
from sweeps.schema import METRICS, SEARCH, TRIALS
from sweeps.store import TEACHERS, Store

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
TEACHER_ID = "a" * 16
NO_METRICS = [field.name for field in METRICS]
AT_LAST_EPOCH = {"val_acc", "train_seconds"}  # which a stopped trial has, too
STUDY = "5" * 16
DEFAULTS: dict[str, Any] = {
    "role": "student",
    "dataset": "cifar100",
    "fraction": 1.0,
    "subset_seed": 0,
    "val_size": 0,
    "image_size": None,
    "channels": None,
    "mean": None,
    "std": None,
    "folder_sha256": None,
    "source_id": None,
    "source_dataset": None,
    "probe": None,
    "teacher": "resnet56",
    "teacher_id": TEACHER_ID,
    "self_taught": False,
    "assistant_ids": None,
    "student": "resnet20",
    "method": "kd",
    "method_version": "1",
    "params": {},
    "epochs": 240,
    "batch_size": 64,
    "lr": 0.05,
    "lr_milestones": [150, 180, 210],
    "lr_gamma": 0.1,
    "momentum": 0.9,
    "nesterov": False,
    "warmup_epochs": None,
    "drop_last": None,
    "weight_decay": 5e-4,
    "augment": True,
    "precision": "fp32",
    "seed": 1,
    "view_seed": 1,
    "status": "completed",
    "error_type": None,
    "error": None,
    "epochs_done": 240,
    "val_acc": None,
    "test_top1": 70.0,
    "test_top5": 91.0,
    "test_nll": 1.1,
    "test_ece": 6.0,
    "test_aurc": 90.0,
    "test_eaurc": 40.0,
    "class_recall": [70.0],
    "best_epoch": 238,
    "best_acc": 70.5,
    "best_split": "test",
    "n_train": 50_000,
    "student_params": 278_324,
    "train_seconds": 3600.0,
    "teacher_seconds": 600.0,
    "shared_seconds": 1.0,
    "teacher_epochs": 120,
    "sweep": "demo",
    "spec_sha256": "f" * 64,
    "kdsweep": "0.1.0",
    "git_commit": "0123456789abcdef+",
    "python": "3.11.9",
    "torch": "2.8.0",
    "host": "node-1",
    "device": "cpu",
    "cpus": 2,
    "predicted_seconds": None,
    "started_at": START,
    "ended_at": START + timedelta(hours=1),
}


# What sets a linear probe of CID's Table 5 apart from its student, and a teacher whose weights come from elsewhere.
PROBE: dict[str, Any] = {
    "role": "probe",
    "dataset": "stl10",
    "source_dataset": "cifar100",
    "probe": '{"holdout":0.1,"lrs":[0.01,0.1,1.0]}',
    "image_size": 32,
    "epochs": 100,
    "batch_size": 128,
    "lr": 0.1,
    "lr_milestones": [60, 80],
    "weight_decay": 0.0,
    "augment": False,
    "epochs_done": 100,
}
_RECIPE = ("epochs", "batch_size", "lr", "lr_milestones", "lr_gamma", "momentum", "nesterov", "weight_decay", "augment")
PUBLISHED: dict[str, Any] = {
    **dict.fromkeys((*_RECIPE, "precision", "seed", "view_seed")),
    **dict.fromkeys(("best_epoch", "best_acc", "best_split", "n_train", "student_params", "train_seconds")),
    "method": "published",
    "epochs_done": 0,
}

# The methods' parameters in the papers, as the trainer writes them; CID's alpha and beta are those of the pair.
_KD = {"gamma": 0.1, "alpha": 0.9, "tau": 4.0}
_ADDED_KD = {**_KD, "alpha": 1.0}
_FITNET = {"beta": 100.0, "hint": 2, "variant": "code"}
_CID = {
    "tau": 4.0,
    "centre_momentum": 0.0,
    "sr": True,
    "cr": True,
    "inv": True,
    "sr_loss": "nm_mse",
    "layers": "pooled",
}
_CID_WEIGHTS = {"wrn_16_2": (65.0, 1.0), "resnet20": (10.0, 1.0), "mobilenet_v2": (33.0, 0.1)}
PARAMS: dict[str, dict[str, Any]] = {
    "kd": _KD,
    "fitnet": _FITNET,
    "fitnet+kd": {"fitnet": _FITNET, "kd": _ADDED_KD},
    "sp": {"beta": 3000.0},
    "sp+kd": {"sp": {"beta": 3000.0}, "kd": _ADDED_KD},
}


def papers_params(method: str, student: str) -> dict[str, Any]:
    """The full parameters of a method in its paper."""
    if method == "cid":
        alpha, beta = _CID_WEIGHTS.get(student, (8.0, 2.0))
        return {"alpha": alpha, "beta": beta, **_CID}
    return PARAMS.get(method, {})


class Results:
    """A results folder under construction; trial ids are 0000000000000001, ...0002 and so on."""

    teacher_id = TEACHER_ID  # of the students' teacher unless told otherwise; add_teacher writes its row

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.count = 0

    def add(self, sweep: str = "demo", curve: list[float] | None = None, **columns: Any) -> str:
        """Write a trial; `curve` is its test accuracy by epoch. Values not given are DEFAULTS. Returns its id."""
        self.count += 1
        planned = dict.fromkeys((*(field.name for field in SEARCH), "replayed"))  # no search
        row = {"trial_id": f"{self.count:016x}", **planned, **DEFAULTS, "sweep": sweep, **columns}
        if row["teacher"] is None:
            row["teacher_id"] = None
        if row["status"] != "completed":
            kept = AT_LAST_EPOCH if row["status"] == "stopped" else ()
            row |= {name: None for name in NO_METRICS if name not in kept}
        row["params"] = json.dumps({**papers_params(row["method"], row["student"]), **row["params"]}, sort_keys=True)
        assert set(row) == set(TRIALS.names)
        store = Store(self.path, sweep)
        store.write_trial(row)
        if curve:
            self.add_epochs(row["trial_id"], sweep, test=curve)
        return str(row["trial_id"])

    def add_epochs(
        self, trial_id: str, sweep: str = "demo", *, test: list[float | None], val: Any = None, pretrain: int = 0
    ) -> None:
        """Write the epochs of a trial, which need not have ended; `pretrain` come before those of the recipe."""
        vals = val or [None] * len(test)
        rows = [
            {
                "trial_id": trial_id,
                "stage": "train",
                "epoch": epoch,
                "lr": 0.05,
                "terms": {"ce": 1.0},
                "train_acc": 50.0,
                "val_acc": val_acc,
                "test_acc": test_acc,
                "seconds": 15.0,
                "teacher_seconds": 2.5,
                "shared_seconds": 0.0,
                "teacher_epochs": 1,
            }
            for epoch, (test_acc, val_acc) in enumerate(zip(test, vals, strict=True), start=1)
        ]
        blank = {"stage": "pretrain", "train_acc": None, "val_acc": None, "test_acc": None}
        before = [{**rows[0], **blank, "epoch": epoch} for epoch in range(1, pretrain + 1)]
        Store(self.path, sweep).write_epochs(trial_id, before + rows)

    def add_probe(self, source_id: str, curve: list[float] | None = None, **columns: Any) -> str:
        """Write the linear probe on STL-10 of a network trained on CIFAR-100."""
        return self.add(curve=curve, **{**PROBE, "source_id": source_id, **columns})

    def add_search(self, point: dict[str, Any], val_acc: float | None = None, **columns: Any) -> str:
        """Write a trial of a search: a point on held-out images.

        `parameters` are the names of the point that are the method's, all unless told otherwise.
        """
        own = {"val_size": 5000, "seeds": [1], "val_acc": val_acc, "best_split": "val"}
        return self._add_point(point, **{**own, "phase": "search", **columns})

    def add_confirmed(self, point: dict[str, Any], test_top1: float = 70.0, **columns: Any) -> str:
        """Write a trial that confirms a point on all training images; seeds are 11 and 12 by custom."""
        return self._add_point(
            point, **{"seeds": [1], "test_top1": test_top1, "phase": "confirm", "seed": 11, **columns}
        )

    def _add_point(self, point: dict[str, Any], **columns: Any) -> str:
        parameters = columns.pop("parameters", point)
        params = {name: value for name, value in point.items() if name in parameters}
        space = {name: {"low": 0.0, "high": 100.0} for name in point}
        search = {"study": STUDY, "objectives": ["val_acc"], "space": json.dumps(space), "number": 0}
        own = {**search, "point": json.dumps(point), "origin": "sampler", "method": "cid", "params": params}
        return self.add(**{**own, **columns})

    def add_teacher(self, trial_id: str = TEACHER_ID, **columns: Any) -> None:
        """Write a teacher: a ResNet-56 trained by the papers' recipe."""
        own = {"role": "teacher", "teacher": None, "student": "resnet56", "method": "vanilla", "test_top1": 72.34}
        self.add(TEACHERS, trial_id=trial_id, **{**own, **columns})

    def add_published(self, source: str, trial_id: str = TEACHER_ID, **columns: Any) -> None:
        """Write a teacher whose weights come from the file `source`."""
        self.add_teacher(trial_id, **{**PUBLISHED, "params": {"source": source}, **columns})


PAIRS = {
    "r": {"teacher": "resnet56", "student": "resnet20"},
    "w": {"teacher": "wrn_40_2", "student": "wrn_16_2", "teacher_id": "b" * 16},
}
# Method, pair, then for each of two points: alpha, validation accuracy and test accuracy for the first of two seeds.
# The second seeds have 1 more. CID's best point in the search is not its best on the test images.
CELLS: list[tuple[Any, ...]] = [
    ("cid", "r", (12.345678, 71.0, 70.0), (3.0, 70.0, 72.0)),
    ("cid", "w", (20.0, 73.0, 74.0), (0.5, 72.0, 73.0)),
    ("ipwd", "r", (1.5, 60.0, 68.0), (2.5, 69.0, 71.0)),
    ("ipwd", "w", (4.5, 74.0, 73.0), (5.5, 73.0, 76.0)),
]


def add_cell(results: Results, method: str, pair: str, points: list[Any]) -> None:
    """A study of two points and two seeds, both confirmed with two other seeds."""
    study = {"study": f"{method}-{pair}", "method": method, **PAIRS[pair]}
    for number, (alpha, val, test) in enumerate(points):
        for seed in (1, 2):
            columns: dict[str, Any] = {**study, "number": number, "seeds": [1, 2]}
            results.add_search({"alpha": alpha}, val + seed - 1, seed=seed, **columns)
            results.add_confirmed({"alpha": alpha}, test + seed - 1, seed=10 + seed, **columns)


def read_tables(results: Results, metric: str = "test_top1", sweep: str = "demo") -> list[Table]:
    """The tables of a sweep."""
    return build_tables(load(results.path, sweep), metric_named(metric))


@pytest.fixture
def tables() -> Callable[..., list[Table]]:
    return read_tables


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results")


@pytest.fixture
def pairs() -> dict[str, dict[str, str]]:
    return PAIRS


@pytest.fixture
def confirmed(results: Results) -> Results:
    """Two pairs, two methods, two confirmed points of two seeds each."""
    for method, pair, *points in CELLS:
        add_cell(results, method, pair, points)
    return results

"""The numbers printed in the CID and IPWD papers, and when one of our cells is the same experiment."""

import csv
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from analysis.groups import TEACHER, Group
from analysis.load import Row, records
from analysis.metrics import Metric

PAPERS = {"cid": "CID", "ipwd": "IPWD"}
# The tables whose recipe is the one below. IPWD's Table 3 has SSKD's teachers and training, the ImageNet and
# self-distillation tables have recipes of their own.
_TABLES = {("cid", "1"), ("cid", "2"), ("cid", "3"), ("cid", "6"), ("ipwd", "2")}
_SETTINGS = {"compression", "data_limited"}
_WITH_KD = "competitor + KD loss"  # begins the note of CID's competitors
# RepDistiller's recipe. Nesterov momentum is left out: papers do not state it, and CID's code uses it for CID alone.
_RECIPE: Mapping[str, Any] = {
    "epochs": 240,
    "batch_size": 64,
    "lr_milestones": [150, 180, 210],
    "lr_gamma": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "augment": True,
    "val_size": 0,
}
# Parameters of the methods in the papers, as in the `params` column; a composed method has them by part. Those of
# CID's competitors are RepDistiller's, with weight 1 for the added KD.
_KD = {"gamma": 0.1, "alpha": 0.9, "tau": 4.0}
_ADDED_KD = {"alpha": 1.0, "tau": 4.0}
_PARAMS: Mapping[str, Mapping[str, Any]] = {
    "kd": _KD,
    "fitnet": {"beta": 100.0, "hint": 2},
    "fitnet+kd": {"fitnet": {"beta": 100.0, "hint": 2}, "kd": _ADDED_KD},
    "sp": {"beta": 3000.0},
    "sp+kd": {"sp": {"beta": 3000.0}, "kd": _ADDED_KD},
    "cid": {"tau": 4.0, "sr": True, "cr": True, "inv": True, "sr_loss": "nm_mse", "centre_momentum": 0.0},
    "ipwd": {
        "alpha": 5.0, "tau": 10.0, "cls_head": True, "norm": "sample", "weights": "sample", "start_epoch": 1,
        "unit_mean": False,
    },
}  # fmt: skip
# (alpha, beta) of CID for each CIFAR-100 pair of its Table 2 in the authors' scripts; the paper's other weights stand
# in an appendix that is not at hand.
_CID_WEIGHTS = {
    ("wrn_40_4", "wrn_16_2"): (55.0, 0.1),
    ("wrn_40_2", "wrn_16_2"): (65.0, 1.0),
    ("resnet56", "resnet20"): (10.0, 1.0),
    ("resnet50_cifar", "mobilenet_v2"): (33.0, 0.1),
    ("resnet50_cifar", "vgg8"): (8.0, 2.0),
}
_LR, _SMALL_LR = 0.05, 0.01
_SMALL_LR_STUDENTS = {"mobilenet_v2", "shufflenet_v1", "shufflenet_v2"}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number as a paper prints it."""

    paper: str  # a key of PAPERS
    table: str
    value: str
    std: str  # empty where the paper prints none
    note: str

    @property
    def source(self) -> str:
        """E.g. `CID Table 2`."""
        return f"{PAPERS[self.paper]} Table {self.table}"

    @property
    def text(self) -> str:
        """E.g. `76.55 ± 0.19`."""
        return f"{self.value} ± {self.std}" if self.std else self.value


@dataclass(frozen=True, kw_only=True)
class _Key:
    """What a printed cell is about, in our identifiers."""

    dataset: str
    fraction: float
    student: str
    method: str
    metric: str


def published(group: Group, metric: Metric, teachers: Mapping[str, Row]) -> tuple[Published, ...]:
    """The printed numbers of the experiment that `group` repeats; nothing if it differs in any way we know of.

    teachers: trial_id -> row of the teachers that the group's trials name.
    """
    if metric.paper is None:
        return ()
    # Of rows that differ in a method's parameters at most one is the paper's.
    if group.splits_params and group.method not in _PARAMS:
        return ()
    rows = records(group.trials)
    if group.method == TEACHER:
        agree = all(_is_papers_teacher(row, group.dataset) for row in rows)
    else:
        agree = all(_is_papers_student(row, group.dataset, teachers) for row in rows)
    if not agree:
        return ()
    column = group.column
    key = _Key(
        dataset=group.dataset,
        fraction=column.fraction,
        student=column.student,
        method=group.method,
        metric=metric.paper,
    )
    by_teacher = _by_cell().get(key, {})
    if column.teacher is not None:
        return tuple(by_teacher.get(column.teacher, ()))
    # A student without a pair: papers repeat its number for each teacher.
    return tuple(dict.fromkeys(number for numbers in by_teacher.values() for number in numbers))


def _is_papers_student(row: Row, dataset: str, teachers: Mapping[str, Row]) -> bool:
    if not (follows_recipe(row) and _has_papers_params(row)):
        return False
    if row["teacher_id"] is None:
        return True
    teacher = teachers.get(row["teacher_id"])
    return teacher is not None and teacher["student"] == row["teacher"] and _is_papers_teacher(teacher, dataset)


def _is_papers_teacher(row: Row, dataset: str) -> bool:
    return bool(row["dataset"] == dataset and row["fraction"] == 1.0 and follows_recipe(row))


def _has_papers_params(row: Row) -> bool:
    """Whether a trial has the parameters of its method in the papers; of methods not in _PARAMS nothing is known."""
    params = json.loads(row["params"])
    weights = _CID_WEIGHTS.get((row["teacher"], row["student"])) if row["dataset"] == "cifar100" else None
    if row["method"] == "cid" and weights and (params["alpha"], params["beta"]) != weights:
        return False
    return _holds(params, _PARAMS.get(row["method"], {}))


def _holds(params: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether `params` has all that is `wanted`, table by table."""
    return all(
        key in params and (_holds(params[key], value) if isinstance(value, Mapping) else params[key] == value)
        for key, value in wanted.items()
    )


def follows_recipe(row: Row) -> bool:
    """Whether a trial was trained as the papers' CIFAR and Tiny-ImageNet networks were."""
    lr = _SMALL_LR if row["student"] in _SMALL_LR_STUDENTS else _LR
    return bool(row["lr"] == lr and all(row[name] == value for name, value in _RECIPE.items()))


@cache
def _by_cell() -> dict[_Key, dict[str, list[Published]]]:
    """Cell -> teacher -> the numbers printed for it."""
    cells: dict[_Key, dict[str, list[Published]]] = defaultdict(lambda: defaultdict(list))
    with resources.files("analysis").joinpath("paper_results.csv").open(encoding="utf-8") as stream:
        for line in csv.DictReader(stream):
            if _is_plain(line):
                cells[_key(line)][line["teacher"]].append(_number(line))
    return {key: dict(by_teacher) for key, by_teacher in cells.items()}


def _is_plain(line: Mapping[str, str]) -> bool:
    tables = (line["paper"], line["table"]) in _TABLES and line["setting"] in _SETTINGS
    return tables and bool(line["value"]) and not (line["variant"] or line["group"] or line["target_dataset"])


def _number(line: Mapping[str, str]) -> Published:
    # A note that only tells a network's size says nothing about the number.
    note = "" if "#params" in line["note"] else line["note"]
    return Published(paper=line["paper"], table=line["table"], value=line["value"], std=line["std"], note=note)


def _key(line: Mapping[str, str]) -> _Key:
    method = line["method"]
    return _Key(
        dataset=line["dataset"],
        fraction=float(line["train_fraction"]),
        student=line["student"],
        method=f"{method}+kd" if line["note"].startswith(_WITH_KD) else method,
        metric=line["metric"],
    )

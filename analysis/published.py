"""The numbers printed in the CID and IPWD papers, and when one of our cells is the same experiment."""

import csv
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from analysis.configuration import flat
from analysis.groups import TEACHER, Group
from analysis.load import Row
from analysis.metrics import Metric
from sweeps.schema import PUBLISHED

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
    "lr_milestones": (150, 180, 210),
    "lr_gamma": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "augment": True,
    "val_size": 0,
}
# Parameters of the methods in the papers, as in the `params` column; None: not there, a frozenset: any of these.
# RepDistiller's for its methods, whose numbers IPWD's Table 2 prints; of each stage before the epochs, 30 of 240.
_ADDED_KD = {"alpha": 1.0, "tau": 4.0}
_PRETRAIN = frozenset({0.125, 30.0})
_REPDISTILLER: Mapping[str, Mapping[str, Any]] = {
    "fitnet": {"beta": 100.0, "hint": 2, "variant": "code"},
    "at": {"beta": 1000.0, "variant": "code"},
    "sp": {"beta": 3000.0},
    "cc": {"beta": 0.02, "variant": "code", "dimension": 128},
    "vid": {"beta": 1.0, "variance": 5.0},
    "rkd": {"beta": 1.0, "distance": 25.0, "angle": 50.0},
    "pkt": {"beta": 30_000.0},
    "ab": {"beta": 0.003, "margin": 1.0, "pretrain_epochs": _PRETRAIN},
    "ft": {"beta": 200.0, "rate": 0.5, "variant": "code", "pretrain_epochs": _PRETRAIN, "pretrain_lr": None},
    "nst": {"beta": 50.0},
    "crd": {
        "beta": 0.8, "negatives": 16384, "dim": 128, "tau": 0.07, "momentum": 0.5, "positives": "exact",
        "replacement": False,
    },
}  # fmt: skip
# CID's competitors carry KD with weight 1. The paper does not say how it weights those that RepDistiller lacks: here
# as their authors do.
_COMPETITORS: Mapping[str, Mapping[str, Any]] = {
    **_REPDISTILLER,
    "srrl": {"on": "pooled", "gamma": 1.0, "alpha_fm": 1.0, "beta_sr": 1.0},
    "cskd": {"gamma": 0.9, "beta_intra": 0.002, "beta_compact": 0.1, "beta_inter": 0.04, "beta_logit": 1e-6},
}
# All methods that the tables print: beside others there is no number.
_PARAMS: Mapping[str, Mapping[str, Any]] = {
    "vanilla": {},
    "kd": {"gamma": 0.1, "alpha": 0.9, "tau": 4.0},
    **_REPDISTILLER,
    **{f"{name}+kd": {name: params, "kd": _ADDED_KD} for name, params in _COMPETITORS.items()},
    "wsld": {"alpha": 2.25, "tau": 4.0, "teacher_bn": "train"},
    "cid": {
        "tau": 4.0, "sr": True, "cr": True, "inv": True, "sr_loss": "nm_mse", "layers": "pooled",
        "centre_momentum": 0.0,
    },
    "ipwd": {
        "alpha": 5.0, "tau": 10.0, "cls_head": True, "norm": "sample", "weights": "sample", "start": 0.0,
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
_SAME = 0.1  # points by which a published teacher may differ from the printed accuracy: framework and rounding
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
    if group.method == TEACHER:
        agree = all(_is_papers_teacher(row, group.dataset) for row in group.rows)
    else:
        agree = all(_is_papers_student(row, group.dataset, teachers) for row in group.rows)
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
    if row["dataset"] != dataset or row["fraction"] != 1.0:
        return False
    if row["method"] == PUBLISHED:  # whose training nobody knows: is it as accurate as one of the papers'?
        printed = (number for number in _teachers().get((dataset, row["student"]), ()))
        return row["test_top1"] is not None and any(
            round(abs(row["test_top1"] - number), 6) <= _SAME for number in printed
        )
    return bool(row["method"] == "vanilla" and follows_recipe(row))


def _has_papers_params(row: Row) -> bool:
    """Whether a trial has the parameters of its method in the papers."""
    if row["method"] not in _PARAMS:
        return False
    params = json.loads(row["params"])
    weights = _CID_WEIGHTS.get((row["teacher"], row["student"])) if row["dataset"] == "cifar100" else None
    wanted = {**_PARAMS[row["method"]]}
    if row["method"] == "cid" and weights:
        wanted |= dict(zip(("alpha", "beta"), weights, strict=True))
    return _agrees(params, wanted) and not _chosen(row, params) - flat(wanted).keys()


def _chosen(row: Row, params: Mapping[str, Any]) -> set[str]:
    """The parameters that a search chose, and those of the recipe that papers leave open."""
    point = json.loads(row["point"] or "{}")
    recipe = {f"train.{name}" for name in (*_RECIPE, "lr")}
    return {name for name in point if name in flat(params) or (name.startswith("train.") and name not in recipe)}


def _agrees(found: Any, wanted: Any) -> bool:
    """Whether a value is the one wanted, or one of those wanted; a table, whether all its wanted values are."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(_agrees(found.get(key), value) for key, value in wanted.items())
    return bool(found in wanted if isinstance(wanted, frozenset) else found == wanted)


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


@cache
def _teachers() -> dict[tuple[str, str], set[float]]:
    """(data set, architecture) -> the accuracies that the papers print for such a teacher."""
    found: dict[tuple[str, str], set[float]] = defaultdict(set)
    for key, by_teacher in _by_cell().items():
        if key.method == TEACHER and key.metric == "top1":
            for name, numbers in by_teacher.items():
                found[key.dataset, name] |= {float(number.value) for number in numbers}
    return found


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

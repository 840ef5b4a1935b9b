"""The specs of the papers' tables: all printed cells are planned, by the recipes and with the weights named here."""

import csv
import re
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdtrain import methods, recipes
from kdtrain.config import Recipe, parse
from sweeps.cost import multiply_adds
from sweeps.plan import expand
from sweeps.schema import TRIALS
from sweeps.spec import read

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "sweeps" / "specs"

# (paper, table) of paper_results.csv -> the specs that have its cells.
TABLES = {
    ("cid", "1"): ["cid_table1"],
    ("cid", "2"): ["cid_table2"],
    ("cid", "3"): ["cid_table3"],
    ("cid", "4"): ["cid_table4"],
    ("cid", "5"): ["cid_table5"],
    ("cid", "6"): ["cid_table6"],
    ("ipwd", "2"): ["ipwd_table2"],
    ("ipwd", "3"): ["ipwd_table3"],
    ("ipwd", "4"): ["ipwd_table4", "ipwd_table4_resnet18", "ipwd_table4_mobilenet_v1"],
    ("ipwd", "5"): ["ipwd_table5"],
    ("ipwd", "6"): ["ipwd_table6"],
    ("ipwd", "7"): ["ipwd_table7"],
}
# What is printed and in no spec, and why.
NO_TABLE = {
    ("cid", "text"): "gains read off a figure and estimates of the text, no table",
    ("ipwd", "1"): "recall by groups of classes: derived from the class_recall of trials of Table 2",
    ("ipwd", "text"): "numbers of the text, no table",
}
NO_CELL = {("ipwd", "4", "dgkd"): "its assistants between resnet34 and resnet18 are not known"}
NAMES = sorted(name for names in TABLES.values() for name in names)

# Where a printed (method, variant) is not a method by its name: our method and the parameters that make it.
OURS = {
    **{
        ("cid", name, ""): (f"{name}+kd", {})  # CID's competitors carry the KD loss (its Section 4.2)
        for name in ("fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "crd", "srrl", "cskd", "ofd")
    },
    ("ipwd", "ipwd", ""): ("ipwd", {"cls_head": True, "norm": "sample"}),
    ("ipwd", "ipwd", "w/o_cls_head+w/o_logits_norm"): ("ipwd", {"cls_head": False, "norm": "none"}),
    # The text does not say which of the two rows is which.
    ("ipwd", "ipwd", "one_design_row2"): ("ipwd", {"cls_head": True, "norm": "none"}),
    ("ipwd", "ipwd", "one_design_row3"): ("ipwd", {"cls_head": False, "norm": "sample"}),
    ("ipwd", "sskd_ipwd", ""): ("sskd+ipwd", {}),
    ("ipwd", "ps_kd_ipwd", ""): ("ps_kd+ipwd", {"ipwd": {"start": 0.75}}),
    ("ipwd", "ps_kd_ipwd", "late"): ("ps_kd+ipwd", {"ipwd": {"start": 0.75}}),
    ("ipwd", "ps_kd_ipwd", "early"): ("ps_kd+ipwd", {"ipwd": {"start": 0.0}}),
}
METRICS = {"top1": "test_top1", "top5": "test_top5", "ece": "test_ece", "aurc": "test_aurc"}

IMAGENET = {"cid_table4", "ipwd_table4", "ipwd_table4_resnet18", "ipwd_table4_mobilenet_v1"}
# The recipe of each spec, and of methods in it that have another.
RECIPES = {
    "cid_table1": ("crd_cifar", {"cid": "cid_cifar"}),
    "cid_table2": ("crd_cifar", {"cid": "cid_cifar"}),
    "cid_table3": ("crd_cifar", {"cid": "cid_cifar"}),
    "cid_table4": ("imagenet_crd", {}),
    "cid_table5": ("crd_cifar", {"cid": "cid_cifar"}),
    "cid_table6": ("crd_cifar", {"cid": "cid_cifar"}),
    "ipwd_table2": ("crd_cifar", {}),
    "ipwd_table3": ("sskd", {}),
    "ipwd_table4": (
        "imagenet_crd",
        {"kd": "imagenet_kd", "at": "imagenet_kd", "ofd": "ofd_imagenet", "wsld": "imagenet_wsld",
         "ipwd": "imagenet_wsld"},
    ),
    "ipwd_table4_resnet18": ("imagenet_crd", {}),
    "ipwd_table4_mobilenet_v1": ("imagenet_crd", {}),
    "ipwd_table5": ("crd_cifar", {}),
    "ipwd_table6": ("ps_kd", {}),
    "ipwd_table7": ("ps_kd", {}),
}  # fmt: skip
# What differs from the recipe of a trial.
EXCEPTIONS = {
    ("cid_table4", "cid"): {"nesterov": True},
    ("ipwd_table4_resnet18", "sskd"): {"weight_decay": 5e-4},
}
SMALL_LR_STUDENTS = {"mobilenet_v2", "shufflenet_v1", "shufflenet_v2"}  # on CIFAR 0.01
# alpha (the b of the authors' scripts) and beta (their c) of cid, published for the pairs of Table 2.
CID_WEIGHTS = {
    ("cid_table1", "wrn_16_4", "wrn_16_1"): (65.0, 1.0),
    ("cid_table1", "resnet56", "resnet14"): (10.0, 1.0),
    ("cid_table1", "resnet56", "resnet8"): (10.0, 1.0),
    ("cid_table1", "wrn_16_4", "resnet14"): (10.0, 1.0),
    ("cid_table1", "resnet110", "wrn_16_1"): (65.0, 1.0),
    ("cid_table2", "wrn_40_4", "wrn_16_2"): (55.0, 0.1),
    ("cid_table2", "wrn_40_2", "wrn_16_2"): (65.0, 1.0),
    ("cid_table2", "resnet56", "resnet20"): (10.0, 1.0),
    ("cid_table2", "resnet50_cifar", "mobilenet_v2"): (33.0, 0.1),
    ("cid_table2", "resnet50_cifar", "vgg8"): (8.0, 2.0),
    ("cid_table3", "wrn_40_2", "wrn_16_2"): (65.0, 1.0),
    ("cid_table3", "vgg13", "vgg8"): (8.0, 2.0),
    ("cid_table4", "resnet34", "resnet18"): (10.0, 1.0),
    ("cid_table5", "wrn_40_2", "wrn_16_2"): (65.0, 1.0),
    ("cid_table6", "vgg13", "vgg8"): (8.0, 2.0),
}
PS_KD = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


@cache
def planned(name):
    if name != "demo":
        planned("demo")  # the first plan of a process also loads a second's worth of torch
    spec, _ = read(FOLDER / f"{name}.toml")
    started = time.process_time()
    plan = expand(spec)
    return SimpleNamespace(spec=spec, plan=plan, seconds=time.process_time() - started)


@cache
def header(name):
    return (FOLDER / f"{name}.toml").read_text(encoding="utf-8").partition("[sweep]")[0]


def students(name):
    return [trial for trial in planned(name).plan.trials.values() if trial.probe is None]


@cache
def printed():
    with (ROOT / "analysis" / "paper_results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def lines(table):
    """The printed cells of a table but those that the specs leave out."""
    rows = [row for row in printed() if (row["paper"], row["table"]) == table]
    return [row for row in rows if (*table, row["method"]) not in NO_CELL]


def has(params, wanted):
    return all(has(params[key], value) if isinstance(value, dict) else params[key] == value
               for key, value in wanted.items())  # fmt: skip


@cache
def params(trial_id, name):
    return methods.params(planned(name).plan.trials[trial_id].method)


def trials_of(line, name):
    """The trials of a spec that fill a printed cell of a student, by id."""
    method, wanted = OURS.get((line["paper"], line["method"], line["variant"]), (line["method"], {}))
    found = {}
    for key, trial in planned(name).plan.trials.items():
        images = (trial.probe.dataset, trial.data.dataset) if trial.probe else (trial.data.dataset, "")
        if (
            (trial.student, trial.method.name) == (line["student"], method)
            and images == (line["dataset"], line["target_dataset"])
            and trial.data.fraction == float(line["train_fraction"])
            and (trial.teacher is None or trial.teacher.model == line["teacher"])
            and has(params(key, name), wanted)
        ):
            found[key] = trial
    return found


def teaches(line, name):
    """Whether a spec has the teacher of a printed cell, measured as printed."""
    plan = planned(name).plan
    ids = {key for key, trial in plan.teachers.items() if trial.student == line["teacher"]}
    ids |= {teacher.ref.id for model, teacher in plan.published.items() if model == line["teacher"]}
    if not line["target_dataset"]:
        return bool(ids)
    probes = (trial for trial in plan.trials.values() if trial.probe and trial.data.dataset == line["target_dataset"])
    return any(trial.probe.source in ids for trial in probes)


def test_each_printed_table_has_specs_or_a_reason():
    tables = {(row["paper"], row["table"]) for row in printed()}
    assert tables == TABLES.keys() | NO_TABLE.keys()
    assert NO_CELL.keys() <= {(row["paper"], row["table"], row["method"]) for row in printed()}


def test_each_spec_of_a_paper_is_looked_at():
    assert (
        sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem.startswith(("cid_table", "ipwd_table")))
        == NAMES
    )


@pytest.mark.parametrize("table", TABLES, ids="_".join)
class TestTable:
    def test_every_printed_cell_is_planned_with_all_seeds(self, table):
        missing = []
        for line in lines(table):
            assert METRICS[line["metric"]] in TRIALS.names
            seeds = {1} if line["dataset"] == "imagenet" else {1, 2, 3}
            if line["method"] == "teacher":
                planned_here = any(teaches(line, name) for name in TABLES[table])
            else:
                found = [trial.seed for name in TABLES[table] for trial in trials_of(line, name).values()]
                planned_here = sorted(found) == sorted(seeds)
            if not planned_here:
                missing.append([line[key] for key in ("teacher", "student", "method", "variant", "train_fraction")])
        assert not missing

    def test_no_trial_is_planned_beside_the_printed_cells(self, table):
        for name in TABLES[table]:
            plan = planned(name).plan
            rows = [line for line in lines(table) if line["method"] != "teacher"]
            wanted = {key for line in rows for key in trials_of(line, name)}
            # Where probes are printed, what is probed has to be trained: the students, and the teacher.
            sources = {plan.trials[key].probe.source for key in wanted if plan.trials[key].probe}
            teachers = {
                key for key, trial in plan.trials.items() if trial.probe and trial.probe.source in plan.teachers
            }
            assert plan.trials.keys() == wanted | sources | teachers


@pytest.mark.parametrize("name", NAMES)
class TestSpec:
    def test_header_counts_trials_and_teachers(self, name):
        counts = re.findall(r"^# Trials: (\d+)\. Teachers: (\d+)\.$", header(name), re.MULTILINE)
        plan = planned(name).plan
        assert counts == [(str(len(plan.trials)), str(len(plan.teachers)))]

    def test_header_tells_the_cost(self, name):
        plan = planned(name).plan
        total = multiply_adds([*plan.trials.values(), *plan.teachers.values()])
        assert re.findall(r"^# Cost: (\S+) multiply-adds\.$", header(name), re.MULTILINE) == [f"{total:.1e}"]

    def test_is_planned_in_two_seconds(self, name):
        assert planned(name).seconds < 2  # of this process alone, so that others on the machine do not count

    def test_cites_its_table(self, name):
        paper, table = re.fullmatch(r"(cid|ipwd)_table(\d)\w*", name).groups()
        spec = planned(name).spec
        assert (spec.sweep.name, spec.sweep.cites[-9:]) == (name, f", Table {table}")
        assert f"{paper.upper()}, Table {table} (" in header(name).partition("\n")[0]

    def test_trials_have_the_recipe_of_their_method(self, name):
        usual, others = RECIPES[name]
        for trial in students(name):
            recipe = others.get(trial.method.name, usual)
            changes = dict(EXCEPTIONS.get((name, trial.method.name), {}))
            if trial.student in SMALL_LR_STUDENTS:
                changes["lr"] = 0.01
            assert plain(trial.train) == plain(named(recipe)) | changes

    def test_teachers_are_trained_plainly_by_the_usual_recipe_on_all_images(self, name):
        for trial in planned(name).plan.teachers.values():
            assert plain(trial.train) == plain(named(RECIPES[name][0]))
            assert (trial.method.name, trial.data.fraction, trial.data.val_size) == ("vanilla", 1.0, 0)

    def test_teachers_are_torchvisions_on_imagenet_and_our_own_elsewhere(self, name):
        plan = planned(name).plan
        teachers = {pair.partition("/")[0] for pair in planned(name).spec.grid.pair if "/" in pair}
        if name in IMAGENET:
            assert plan.published.keys() == teachers
            assert not plan.teachers
        else:
            assert not plan.published
            assert {trial.student for trial in plan.teachers.values()} >= teachers

    def test_cid_has_the_weights_of_the_pair(self, name):
        for trial in students(name):
            if trial.method.name == "cid":
                found = methods.params(trial.method)
                assert (found["alpha"], found["beta"]) == CID_WEIGHTS[name, trial.teacher.model, trial.student]
                assert (found["tau"], found["sr"], found["cr"], found["inv"]) == (4.0, True, True, True)

    def test_cids_competitors_carry_the_kd_loss(self, name):
        for trial in students(name):
            if trial.method.name.endswith("+kd"):
                added = methods.params(trial.method)["kd"]
                assert (added["alpha"], added["tau"]) == (1.0, 4.0)


def named(name):
    return parse(Recipe, recipes.expanded({"recipe": name}, "train"))


def plain(recipe):
    return recipe.model_dump(exclude={"lr_milestones"}) | {"milestones": recipe.milestones}


def params_of(name, method):
    """The parameters of a method in a spec, the same in all trials; by student where they differ."""
    found = {trial.student: methods.params(trial.method) for trial in students(name) if trial.method.name == method}
    return found if len({repr(value) for value in found.values()}) > 1 else next(iter(found.values()))


class TestParameters:
    def test_ipwd(self):
        cifar, imagenet = params_of("ipwd_table2", "ipwd"), params_of("ipwd_table4", "ipwd")
        assert (cifar["alpha"], cifar["tau"], cifar.get("w_max")) == (5.0, 10.0, None)
        assert (imagenet["alpha"], imagenet["tau"], imagenet["w_max"]) == (2.5, 2.0, 20.0)

    def test_wsld(self):
        cifar, imagenet = params_of("ipwd_table2", "wsld"), params_of("ipwd_table4", "wsld")
        assert cifar == {"alpha": 2.25, "tau": 4.0, "teacher_bn": "train"}
        assert imagenet == {"alpha": 2.5, "tau": 2.0, "teacher_bn": "train"}

    def test_kd(self):
        wanted = {
            "cid_table2": (0.1, 0.9, 4.0), "ipwd_table2": (0.1, 0.9, 4.0), "cid_table4": (0.5, 0.9, 4.0),
            "ipwd_table4": (0.5, 0.5, 1.0),
        }  # fmt: skip
        for name, values in wanted.items():
            assert tuple(params_of(name, "kd")[key] for key in ("gamma", "alpha", "tau")) == values

    def test_methods_on_imagenet(self):
        assert params_of("cid_table4", "ofd+kd")["ofd"]["beta"] == params_of("ipwd_table4", "ofd")["beta"] == 1e-4
        assert params_of("cid_table4", "crd+kd")["crd"]["replacement"] is True
        assert params_of("ipwd_table4", "crd")["replacement"] is True
        assert params_of("cid_table4", "srrl+kd")["srrl"]["on"] == "map"
        sskd = params_of("ipwd_table4_resnet18", "sskd")
        assert [sskd[key] for key in ("gamma", "alpha", "beta", "alpha_turned")] == [1.0, 0.9, 10.0, 2.7]
        assert (sskd["pretrain_epochs"], sskd["pretrain_lr"]) == (30, 0.1)

    def test_tf_kd_has_the_constants_of_each_network(self):
        found = {student: (p["alpha"], p["tau"]) for student, p in params_of("ipwd_table6", "tf_kd").items()}
        assert found == {
            "resnet18_cifar": (0.95, 6.0), "resnet101_cifar": (0.95, 6.0), "densenet121_cifar": (0.9, 20.0),
            "resnext29_8x64d": (0.9, 20.0),
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "statistics"),
        [
            ("ipwd_table6", PS_KD),
            ("ipwd_table7", PS_KD),
            ("ipwd_table3", ((0.5071, 0.4866, 0.4409), (0.2675, 0.2565, 0.2761))),
            ("ipwd_table2", (None, None)),
        ],
    )
    def test_pixels_are_normalised_as_the_authors_do(self, name, statistics):
        plan = planned(name).plan
        for trial in (*plan.trials.values(), *plan.teachers.values()):
            assert (trial.data.mean, trial.data.std) == statistics

    def test_late_ipwd_of_table_7_is_that_of_table_6(self):
        shared = planned("ipwd_table7").plan.trials.keys() & planned("ipwd_table6").plan.trials.keys()
        assert len(shared) == 6  # with ps_kd alone

    def test_students_of_the_probes_are_trials_of_table_2(self):
        probed = {key for key, trial in planned("cid_table5").plan.trials.items() if trial.probe is None}
        assert len(probed) == 21
        assert probed <= planned("cid_table2").plan.trials.keys()


@pytest.mark.parametrize("name", ["cid_table2", "ipwd_table2"])
def test_files_of_the_papers_teachers_are_expected_to_be_as_good_as_printed(name):
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    entries = re.findall(r'^# (\w+) = \{ file = "\S+", expect_top1 = ([\d.]+), within = 0\.1 \}$', text, re.MULTILINE)
    table = (name[: name.index("_")], "2")
    values = {(line["teacher"], line["value"]) for line in lines(table) if line["method"] == "teacher"}
    assert set(entries) == values - {("wrn_40_4", "79.50")}  # which was never released with RepDistiller's

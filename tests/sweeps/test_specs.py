"""Every spec that comes with the package: it plans, its header tells the truth, its numbers are the papers'."""

import csv
import re
from functools import cache
from pathlib import Path

import pytest

from kdtrain import methods
from sweeps.plan import expand
from sweeps.spec import read

ROOT = Path(__file__).parents[2]
SPECS = sorted((ROOT / "sweeps" / "specs").glob("*.toml"))


@cache
def planned(name):
    spec, _ = read(ROOT / "sweeps" / "specs" / f"{name}.toml")
    return spec, expand(spec)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
class TestEach:
    def test_plans(self, path):
        _, plan = planned(path.stem)
        assert plan.trials

    def test_is_named_as_its_file(self, path):
        spec, _ = planned(path.stem)
        assert spec.sweep.name == path.stem

    def test_header_counts_the_trials(self, path):
        header = path.read_text(encoding="utf-8").partition("[sweep]")[0]
        counts = re.findall(r"\b(\d+) trials|\bTrials: (\d+)", header)
        assert len(counts) == 1, "the header says once how many trials there are"
        _, plan = planned(path.stem)
        assert int("".join(counts[0])) == len(plan.trials)


def test_there_are_specs():
    assert {"demo", "fashion_limited", "cid_table2"} <= {path.stem for path in SPECS}


class TestCidTable2:
    # b and c of each pair in the authors' train_scripts.sh.
    WEIGHTS = (
        ("wrn_40_4", "wrn_16_2", 55.0, 0.1),
        ("wrn_40_2", "wrn_16_2", 65.0, 1.0),
        ("resnet56", "resnet20", 10.0, 1.0),
    )

    def trials(self):
        return planned("cid_table2")[1].trials.values()

    def test_recipe_is_that_of_the_paper(self):
        for trial in (*self.trials(), *planned("cid_table2")[1].teachers.values()):
            recipe = trial.train
            assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (240, 64, 0.05, 5e-4)
            assert (recipe.milestones, recipe.lr_gamma, recipe.momentum) == ([150, 180, 210], 0.1, 0.9)
            assert (recipe.augment, recipe.precision) == (True, "fp32")
            assert (trial.data.dataset, trial.data.fraction, trial.data.val_size) == ("cifar100", 1.0, 0)

    @pytest.mark.parametrize(("teacher", "student", "alpha", "beta"), WEIGHTS)
    def test_cid_has_the_weights_of_the_pair(self, teacher, student, alpha, beta):
        found = [
            methods.params(trial.method)
            for trial in self.trials()
            if trial.method.name == "cid" and (trial.teacher.model, trial.student) == (teacher, student)
        ]
        assert len(found) == 3
        for params in found:
            assert (params["alpha"], params["beta"], params["tau"]) == (alpha, beta, 4.0)
            assert (params["sr"], params["cr"], params["inv"], params["sr_loss"]) == (True, True, True, "nm_mse")

    def test_competitors_carry_the_kd_loss(self):
        for trial in self.trials():
            if "+" in trial.method.name:
                parts = methods.params(trial.method)
                assert list(parts)[1:] == ["kd"]
                assert (parts["kd"]["alpha"], parts["kd"]["tau"]) == (1.0, 4.0)

    def test_cells_are_cells_of_the_printed_table(self):
        with (ROOT / "analysis" / "paper_results.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row["paper"], row["table"]) == ("cid", "2")]
        printed = {(row["teacher"], row["student"]): set() for row in rows}
        for row in rows:
            printed[row["teacher"], row["student"]].add(row["method"])
        spec, _ = planned("cid_table2")
        for pair in spec.grid.pair:
            # The table prints `fitnet` for what is `fitnet+kd` here: its competitors carry the KD loss.
            names = {method.partition("+")[0] for method in spec.grid.method}
            assert {"teacher", *names} == printed[tuple(pair.split("/"))]
        assert {tuple(pair.split("/")) for pair in spec.grid.pair} == {
            pair for pair in printed if "resnet50_cifar" not in pair
        }

    def test_three_seeds_of_each_cell(self):
        spec, plan = planned("cid_table2")
        assert spec.grid.seed == [1, 2, 3]
        assert len(plan.cells) == 3 * 13 * 3  # of which the 6 vanilla ones of wrn_16_2 are 3 trials

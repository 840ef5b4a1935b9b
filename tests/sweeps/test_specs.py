"""Every spec that comes with the package: it plans, its header tells the truth, its numbers are the papers'."""

import re
from functools import cache
from pathlib import Path

import pytest

from sweeps.plan import expand
from sweeps.searches import searches
from sweeps.spec import read
from sweeps.store import Store

ROOT = Path(__file__).parents[2]
SPECS = sorted((ROOT / "sweeps" / "specs").glob("*.toml"))


@cache
def planned(name):
    spec, _ = read(ROOT / "sweeps" / "specs" / f"{name}.toml")
    return spec, expand(spec)


def counted(name):
    """How many trials a sweep has: points with each seed, and confirmations."""
    spec, plan = planned(name)
    found = searches(spec, plan, Store("/nowhere", name), [])
    points = sum(one.budget * len(one.seeds) for one in found)
    confirmations = sum(min(one.top, one.budget) * len(one.fresh) for one in found)
    assert points + confirmations == sum(one.trials_left for one in found)
    return len(plan.trials), points, confirmations


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
class TestEach:
    def test_plans(self, path):
        _, plan = planned(path.stem)
        assert plan.trials or plan.studies

    def test_is_named_as_its_file(self, path):
        spec, _ = planned(path.stem)
        assert spec.sweep.name == path.stem

    def test_header_counts_the_trials(self, path):
        header = path.read_text(encoding="utf-8").partition("[sweep]")[0]
        counts = re.findall(r"\b(\d+) trials|\bTrials: (\d+)", header)
        assert len(counts) == 1, "the header says once how many trials there are"
        assert int("".join(counts[0])) == sum(counted(path.stem))

    def test_header_counts_points_and_confirmations(self, path):
        header = path.read_text(encoding="utf-8").partition("[sweep]")[0]
        counts = re.findall(r"of them (\d+) points(?: and (\d+) confirmations)?", header)
        _, points, confirmations = counted(path.stem)
        assert [int(n or 0) for found in counts for n in found] == ([points, confirmations] if points else [])


def test_there_are_specs():
    assert {"demo", "fashion_limited", "cid_table2", "cid_search_demo", "cifar100_search"} <= {
        path.stem for path in SPECS
    }


def test_each_method_of_the_search_over_table_2_has_the_same_budget():
    spec, plan = planned("cifar100_search")
    found = searches(spec, plan, Store("/nowhere", "none"), [])
    assert len({one.study.axes["pair"] for one in found}) == 5
    assert {one.budget for one in found if one.study.axes["method"] != "vanilla"} == {60}
    # 13 methods with a teacher for 5 pairs; of vanilla one point for each of the 4 students.
    assert len(found) == 13 * 5 + 4
    assert [one.study.space for one in found if one.study.axes["method"] == "vanilla"] == [{}] * 4

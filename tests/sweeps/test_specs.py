"""Every spec that comes with the package: it plans, its header tells the truth, its numbers are the papers'."""

import re
from functools import cache
from pathlib import Path

import pytest

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

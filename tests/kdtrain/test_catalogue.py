from pathlib import Path

import pytest

from kdtrain import catalogue, methods
from kdtrain.catalogue import Entry, entries
from kdtrain.config import ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"


@pytest.fixture(scope="module")
def by_name() -> dict[str, Entry]:
    return {entry.name: entry for entry in entries()}


def test_every_method_has_an_entry_in_the_registrys_order(by_name):
    assert list(by_name) == list(methods.METHODS)


def test_an_entry_says_what_the_class_says(by_name):
    entry = by_name["sp"]
    assert entry.formula == "L = CE(z_s, y) + beta SP(last map of the student, last map of the teacher)."
    assert entry.paper is not None
    assert (entry.paper.authors, entry.paper.year) == ("Tung and Mori", 2019)
    assert (entry.teacher, entry.cacheable, dict(entry.defaults)) == (("stages",), False, {"beta": 3000.0})


@pytest.mark.parametrize(
    ("name", "cacheable"),
    [
        ("kd", True),  # logits
        ("cid", True),  # logits and pooled features
        ("crd", True),
        ("sp", False),  # maps
        ("sskd", False),  # turned images
        ("wsld", False),  # the teacher's BatchNorm in train mode
        ("dgkd", True),  # logits, of the assistants, too
    ],
)
def test_cacheable(by_name, name, cacheable):
    assert by_name[name].cacheable is cacheable


def test_plugins_name_their_hosts_and_what_differs_there(by_name):
    assert by_name["kd"].plugged == {}
    ipwd = by_name["ipwd"].plugged
    assert list(ipwd) == ["sskd", "ps_kd"]
    assert (ipwd["sskd"]["ipwd"]["start"], ipwd["ps_kd"]["ipwd"]["start"]) == (0, 0.75)
    assert "alpha" not in ipwd["sskd"]["ipwd"]
    assert by_name["lskd"].plugged["dkd"]["dkd"]["beta"] == 72.0


def test_parameters_that_are_not_set_and_choices_are_shown():
    (defaults,) = (line for line in catalogue.described("ipwd") if line.startswith("defaults: "))
    assert 'norm = "sample" (or "batch", "running", "none")' in defaults
    assert "w_max unset" in defaults


def test_every_method_has_a_formula_and_costs_are_in_order(by_name):
    for name, entry in by_name.items():
        assert "L = " in entry.formula, name
        for costs in (entry.step, entry.without_teacher):
            for low, middle, high in costs.values():
                assert 0 < low <= middle <= high, name


def test_the_plain_student_costs_what_it_costs(by_name):
    # Measured against itself in turns.
    assert all(0.8 < middle < 1.25 for _, middle, _ in by_name["vanilla"].step.values())


def test_an_unmeasured_method_says_so(monkeypatch):
    costs = {**catalogue.measured(), "pairs": {"a/b": {}}}
    monkeypatch.setattr(catalogue, "measured", lambda: costs)
    header, rows = catalogue.listing()
    assert header[-1] == "step / plain"
    assert {row[-1] for row in rows} == {"-"}


def test_the_listing_has_a_row_a_method():
    header, rows = catalogue.listing()
    assert [row[0] for row in rows] == list(methods.METHODS)
    assert all(len(row) == len(header) for row in rows)
    kd = dict(zip(header, rows[list(methods.METHODS).index("kd")], strict=True))
    assert kd["defaults"] == "gamma = 0.1, alpha = 0.9, tau = 4.0"
    assert (kd["teacher"], kd["cacheable"], kd["year"]) == ("logits", "yes", "2015")


def test_the_documentation_is_what_the_command_writes():
    assert DOCS.read_text(encoding="utf-8") == catalogue.markdown(), "make docs"


def test_one_method_is_described_in_full():
    lines = catalogue.described("ipwd")
    assert lines[0].startswith("ipwd: L = CE(z_s, y) + CE(z_c, y) + alpha")
    assert "Niu et al., Respecting Transfer Gap in Knowledge Distillation, NeurIPS 2022." in lines
    assert any(
        line.startswith("as the plug-in of ps_kd: ps_kd = { alpha = 0.8, tau = 1.0 }, ipwd = {") for line in lines
    )
    assert "teacher: logits, cacheable" in lines


@pytest.mark.parametrize("name", ["kdd", "kd+sp"])
def test_a_name_that_is_no_method_is_refused(name):
    with pytest.raises(ConfigError, match=r"unknown method 'kdd' at NAME|NAME must be one method, but got 'kd\+sp'"):
        catalogue.described(name)

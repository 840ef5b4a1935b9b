"""Dimensions, spaces of them and their points, without any sampler."""

import math
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kdtrain.config import ConfigError
from sweeps import space
from sweeps.space import Dimension, dimension


class TestDimension:
    @pytest.mark.parametrize(
        ("entry", "rule"),
        [
            ({}, "must have low and high, or choices"),
            ({"low": 1.0}, "must have low and high, or choices"),
            ({"high": 1.0}, "must have low and high, or choices"),
            ({"low": 1.0, "high": 1.0}, "must have low < high"),
            ({"low": 2.0, "high": 1.0}, "must have low < high"),
            ({"low": 0.0, "high": 1.0, "log": True}, "must have low > 0 where log = true"),
            ({"low": -1.0, "high": 1.0, "log": True}, "must have low > 0 where log = true"),
            ({"low": 1.0, "high": 2.0, "log": True, "step": 0.5}, "must not have both log and step"),
            ({"low": 1.0, "high": 2.0, "step": 0.0}, "step should be greater than 0"),
            ({"low": 1.0, "high": 2.0, "step": -1.0}, "step should be greater than 0"),
            ({"low": 1.5, "high": 4, "int": True}, "must have whole numbers, as the parameter is one"),
            ({"low": 1, "high": 4.5, "int": True}, "must have whole numbers, as the parameter is one"),
            ({"low": 1, "high": 4, "step": 0.5, "int": True}, "must have whole numbers, as the parameter is one"),
            ({"low": 0, "high": 10_000, "int": True}, "must have at most 10,000 values"),
            ({"low": 0.0, "high": 1.0, "step": 1e-9}, "must have at most 10,000 values"),
            ([], "must have choices, each once"),
            ({"choices": []}, "must have choices, each once"),
            ([1.0, 2.0, 1.0], "must have choices, each once"),
            ([1, 2, 1.0], "must have choices, each once"),
            ([[1, 2], "a", [1, 2]], "must have choices, each once"),
            ({"choices": [1, 2], "low": 1.0, "high": 2.0}, "must have low and high, or choices, not both"),
            ({"choices": [1, 2], "log": True}, "must have low and high, or choices, not both"),
            ({"choices": [1, 2], "step": 1.0}, "must have low and high, or choices, not both"),
            ({"choices": [1, 2], "int": True}, "must have low and high, or choices, not both"),
            (3.0, "must be a list of values or a table with low and high, but got 3.0"),
            ("1..3", "must be a list of values or a table with low and high, but got '1..3'"),
            ({"low": "1", "high": 2.0}, "x.low should be a valid number, but got '1'"),
            ({"low": 1.0, "high": math.inf}, "x.high should be a finite number, but got inf"),
            ({"low": 1.0, "hihg": 2.0}, "unknown key 'hihg' at x.hihg. Did you mean 'high'"),
        ],
    )
    def test_bad_entry_is_refused_with_its_rule(self, entry, rule):
        with pytest.raises(ConfigError, match=r"\bx\b") as refused:
            dimension(entry, "x")
        assert rule in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_a_list_and_a_table_of_choices_are_the_same(self):
        assert dimension([1, 2], "x") == dimension({"choices": [1, 2]}, "x") == Dimension(choices=(1, 2))

    @pytest.mark.parametrize(
        ("entry", "whole", "values"),
        [
            ({"low": 8, "high": 20, "step": 6}, True, (8, 14, 20)),
            ({"low": 8, "high": 25, "step": 6}, True, (8, 14, 20)),
            ({"low": 1, "high": 3}, True, (1, 2, 3)),
            ({"low": 1, "high": 3, "log": True}, True, (1, 2, 3)),
            ({"low": 0.1, "high": 0.7, "step": 0.2}, False, (0.1, 0.3, 0.5, 0.7)),  # 0.1 + 3 * 0.2 is no 0.7 in floats
            ({"low": 0.0, "high": 1.0, "step": 0.3}, False, (0.0, 0.3, 0.6, 0.9)),
            ({"low": 1.0, "high": 3.0}, False, None),
            (["a", [1], True], False, ("a", [1], True)),
        ],
    )
    def test_values_that_can_be_counted(self, entry, whole, values):
        found = dimension(entry, "x", whole)
        assert found.values == values
        assert values is None or [type(value) for value in found.values] == [type(value) for value in values]

    @pytest.mark.parametrize(
        ("entry", "ordered"),
        [
            ([1, 2.5, 4], True),
            ([7], True),
            ([1, 4, 2], False),
            ([False, True], False),  # no numbers, though Python sorts them
            (["a", "b"], False),
            ([1, "a"], False),
            ({"low": 1.0, "high": 2.0}, True),
        ],
    )
    def test_only_ascending_numbers_are_ordered(self, entry, ordered):
        assert dimension(entry, "x").ordered is ordered

    @pytest.mark.parametrize(
        ("entry", "inside", "outside"),
        [
            ({"low": 1.0, "high": 2.0}, [1, 1.0, 1.23456789, 2.0], [0.99, 2.01, True, "1", None, [1.0]]),
            ([0, 1], [0, 1, 0.0, 1.0], [False, True, "0", 0.5]),
            ([False, True], [False, True], [0, 1]),
            (["pooled", [1, 2]], ["pooled", [1, 2]], [[2, 1], [1], "all"]),
            ({"low": 0.1, "high": 0.7, "step": 0.2}, [0.1, 0.3, 0.5, 0.7], [0.2, 0.9]),
        ],
    )
    def test_holds(self, entry, inside, outside):
        found = dimension(entry, "x")
        assert all(found.holds(value) for value in inside)
        assert not any(found.holds(value) for value in outside)

    @pytest.mark.parametrize(
        ("low", "high", "value", "rounded"),
        [
            (1.0, 100.0, 12.3456, 12.35),
            (1.0, 100.0, 1.00004, 1.0),
            (3000.0, 300_000.0, 123_456.0, 123_500.0),
            (1e-5, 1.0, 0.000123456, 0.0001235),
            (1.23456, 9.0, 1.2346, 1.235),
            (1.23456, 9.0, 1.23456, 1.235),
            (1.23452, 9.0, 1.2345, 1.23452),  # rounding must not leave the range
            (0.5, 1.98764, 1.98764, 1.98764),
            (0.9, 0.91, 0.90123456, 0.90123),  # four digits of the width: 0.00123456 above its end
            (-1.0, 1.0, 0.0, 0.0),
            (-1.0, 1.0, -0.123456, -0.1235),
        ],
    )
    def test_drawn_values_have_four_digits(self, low, high, value, rounded):
        assert Dimension(low=low, high=high).cast(value) == rounded

    @given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0, 1))
    def test_rounding_stays_within_the_limits_and_near(self, low, high, share):
        assume(low + 1e-9 * (1 + abs(low)) < high)
        found = Dimension(low=low, high=high)
        value = min(max(low + share * (high - low), low), high)
        rounded = found.cast(value)
        assert low <= rounded <= high
        assert isinstance(rounded, float)
        assert abs(rounded - value) <= 0.5001e-3 * min(abs(value), high - low)
        assert found.cast(rounded) == rounded
        assert found.holds(rounded)

    @pytest.mark.parametrize(
        ("entry", "given", "written"),
        [
            ([1, 2, 4], 4.0, "4"),
            ([1.0, 2.0, 4.0], 4, "4.0"),
            ([0, 1, True], True, "True"),
            ({"low": 1.0, "high": 5.0}, 4, "4.0"),
            ({"low": 1.0, "high": 5.0}, 1.23456789, "1.23456789"),
        ],
    )
    def test_equal_numbers_are_spelled_alike(self, entry, given, written):
        assert repr(dimension(entry, "x").spelled(given)) == written

    def test_whole_numbers_are_spelled_as_such(self):
        assert repr(dimension({"low": 1, "high": 5}, "x", whole=True).spelled(4.0)) == "4"

    def test_values_to_check_are_the_ends_and_one_inside_or_all_choices(self):
        low, inside, high = dimension({"low": 1.23456, "high": 5}, "x").to_check
        assert (low, high) == (1.23456, 5.0)
        assert low < inside < high
        assert repr(dimension({"low": 1, "high": 5}, "x", whole=True).to_check) == "(1, 3, 5)"
        assert dimension(["a", [1]], "x").to_check == ("a", [1])

    @pytest.mark.parametrize(
        "entry",
        [
            [1, "a", [2], True],
            {"low": 1.0, "high": 2.0, "log": True},
            {"low": 1, "high": 9, "step": 2, "int": True, "when": {"y": [1, 2]}},
        ],
    )
    def test_plain_data_reads_back(self, entry):
        found = dimension(entry, "x")
        assert dimension(found.plain(), "x") == found


FAMILIES = {
    "sr": Dimension(choices=(False, True)),
    "family": Dimension(choices=("resnet", "vgg", "wrn")),
    "resnet.depth": Dimension(choices=(8, 14), when={"family": "resnet"}),
    "resnet.width": Dimension(choices=(1, 4), when={"resnet.depth": 8}),
    "alpha": Dimension(choices=(0.5,), when={"sr": True, "family": ["vgg", "resnet"]}),
}
# By hand, the last dimension fastest.
FAMILIES_POINTS = [
    {"sr": False, "family": "resnet", "resnet.depth": 8, "resnet.width": 1},
    {"sr": False, "family": "resnet", "resnet.depth": 8, "resnet.width": 4},
    {"sr": False, "family": "resnet", "resnet.depth": 14},
    {"sr": False, "family": "vgg"},
    {"sr": False, "family": "wrn"},
    {"sr": True, "family": "resnet", "resnet.depth": 8, "resnet.width": 1, "alpha": 0.5},
    {"sr": True, "family": "resnet", "resnet.depth": 8, "resnet.width": 4, "alpha": 0.5},
    {"sr": True, "family": "resnet", "resnet.depth": 14, "alpha": 0.5},
    {"sr": True, "family": "vgg", "alpha": 0.5},
    {"sr": True, "family": "wrn"},
]


class TestPoints:
    def test_of_a_conditional_space(self):
        assert list(space.points(FAMILIES)) == FAMILIES_POINTS

    def test_of_nothing_is_one(self):
        assert list(space.points({})) == [{}]

    def test_of_a_range_have_no_end(self):
        assert space.points({**FAMILIES, "tau": Dimension(low=1.0, high=2.0)}) is None

    @pytest.mark.parametrize(("n", "more"), [(0, True), (9, True), (10, False), (11, False)])
    def test_has_more_than(self, n, more):
        assert space.has_more_than(FAMILIES, n) is more
        assert space.has_more_than({"tau": Dimension(low=1.0, high=2.0)}, n)

    def test_all_fit(self):
        assert [space.misfit(FAMILIES, point) for point in FAMILIES_POINTS] == [None] * 10

    @pytest.mark.parametrize(
        ("point", "reason"),
        [
            ({}, "sr is missing"),
            ({"sr": False}, "family is missing"),
            ({"sr": False, "family": "resnet"}, "resnet.depth is missing"),
            ({"sr": 0, "family": "vgg"}, "sr = 0 lies outside of [False, True]"),
            ({"sr": False, "family": "vgg", "resnet.depth": 8}, "resnet.depth does not exist there"),
            ({"sr": False, "family": "vgg", "alpha": 0.5}, "alpha does not exist there"),
            ({"sr": True, "family": "wrn", "alpha": 0.5}, "alpha does not exist there"),
            (
                {"sr": True, "family": "vgg", "alpha": 0.6},
                "alpha = 0.6 lies outside of [0.5] when sr = True, family = ['vgg', 'resnet']",
            ),
            ({"sr": False, "family": "vgg", "tau": 1.0}, "tau is not searched"),
        ],
    )
    def test_misfit_says_why(self, point, reason):
        assert space.misfit(FAMILIES, point) == reason

    def test_spelled_follows_the_order_and_the_writing_of_the_space(self):
        dims = {"a": Dimension(low=1.0, high=9.0), "b": Dimension(choices=(1, 2)), "c": Dimension(choices=("x",))}
        assert repr(space.spelled(dims, {"b": 2.0, "a": 3})) == "{'a': 3.0, 'b': 2}"


class TestConditions:
    def check(self, dims):
        space.check_conditions(dims, "search.space")

    @pytest.mark.parametrize("value", [1, 3, 5, 6])
    def test_of_dimensions_above_are_fine_and_of_values_that_they_have(self, value):
        n = dimension({"low": 1, "high": 5}, "n", whole=True)
        dims = {"n": n, "m": Dimension(choices=(1,), when={"n": value})}
        if value > 5:
            with pytest.raises(ConfigError, match=r"search\.space\.m\.when must name values of n, but got 6"):
                self.check(dims)
        else:
            self.check(dims)
            assert list(space.points(dims)) == [
                {"n": other, "m": 1} if other == value else {"n": other} for other in range(1, 6)
            ]

    def test_families_may_depend_on_another_dimension(self):
        self.check(FAMILIES)
        assert [name for name, dim in FAMILIES.items() if dim.when], "there is something to check"

    @pytest.mark.parametrize(
        ("dims", "message"),
        [
            (
                {"a": Dimension(choices=(1, 2), when={"b": 1}), "b": Dimension(choices=(1, 2))},
                "search.space.a.when must name a dimension above it, but got 'b'. Known: none.",
            ),
            (
                {"b": Dimension(choices=(1, 2)), "a": Dimension(choices=(1, 2), when={"a": 1})},
                "search.space.a.when must name a dimension above it, but got 'a'. Known: b.",
            ),
            (
                {"b": Dimension(choices=(1, 2)), "a": Dimension(choices=(1, 2), when={"b": [1, 3]})},
                "search.space.a.when must name values of b, but got 3.",
            ),
            (
                {"b": Dimension(choices=(False, True)), "a": Dimension(choices=(1, 2), when={"b": 1})},
                "search.space.a.when must name values of b, but got 1.",
            ),
        ],
    )
    def test_of_others_are_refused(self, dims, message):
        with pytest.raises(ConfigError, match="when") as refused:
            self.check(dims)
        assert str(refused.value) == message


class TestDraw:
    MIXED = {  # noqa: RUF012 - never changed
        "alpha": Dimension(low=0.98765, high=98.765, log=True),
        "sr": Dimension(choices=(False, True)),
        "beta": Dimension(low=-1.0, high=1.0, when={"sr": True}),
        "depth": dimension({"low": 8, "high": 26, "step": 6}, "depth", whole=True),
        "rate": Dimension(low=0.9, high=0.901),
        "tau": Dimension(low=0.0, high=1.0, step=0.3, when={"depth": [8, 14]}),
    }

    @given(st.integers(0, 2**32), st.integers(4, 17))
    def test_always_fits(self, seed, digits):
        point = space.draw(self.MIXED, random.Random(seed), digits)
        assert space.misfit(self.MIXED, point) is None
        assert space.spelled(self.MIXED, point) == point

    def test_is_uniform_in_the_logarithm_where_it_says_so(self):
        # Of 1..100 half lie below 10: of 2,000 draws 1,000 +- 22. Of 0..100 a tenth does: 200 +- 13.
        rng = random.Random(1)
        below = sum(space.draw({"x": Dimension(low=1.0, high=100.0, log=True)}, rng)["x"] < 10 for _ in range(2000))
        assert 900 < below < 1100
        below = sum(space.draw({"x": Dimension(low=0.0, high=100.0)}, rng)["x"] < 10 for _ in range(2000))
        assert 140 < below < 260

    def test_has_each_choice(self):
        rng = random.Random(1)
        assert {space.draw(self.MIXED, rng)["depth"] for _ in range(200)} == {8, 14, 20, 26}

    def test_more_digits_give_more_values(self):
        narrow = {"x": Dimension(low=1.0, high=1.001)}
        rng = random.Random(1)
        assert len({space.draw(narrow, rng)["x"] for _ in range(20_000)}) <= 10_001
        assert len({space.draw(narrow, rng, 12)["x"] for _ in range(20_000)}) > 19_990


class TestTold:
    @pytest.mark.parametrize(
        ("dim", "text"),
        [
            (Dimension(low=0.5, high=20.0), "0.5..20"),
            (Dimension(low=0.5, high=20.0, log=True), "0.5..20 log"),
            (Dimension(low=8, high=20, step=6, whole=True), "8..20 int in steps of 6"),
            (Dimension(choices=(1, "a", True)), "[1, a, True]"),
            (Dimension(choices=(1, 2), when={"sr": True, "cr": False}), "[1, 2] when sr = True, cr = False"),
        ],
    )
    def test_dimension(self, dim, text):
        assert space.told(dim) == text

    def test_differences_name_what_came_went_and_changed(self):
        old = {"alpha": Dimension(low=1.0, high=10.0), "beta": Dimension(choices=(1,)), "tau": Dimension(low=1, high=2)}
        new = {
            "alpha": Dimension(low=1.0, high=20.0, log=True),
            "tau": Dimension(low=1.0, high=2.0),
            "lr": Dimension(choices=(0.1, 0.2), when={"tau": 1}),
        }
        assert space.differences(space.plain(old), space.plain(new)) == [
            "alpha 1..10 -> 1..20 log",
            "beta [1] -> not searched",
            "lr not searched -> [0.1, 0.2] when tau = 1",
        ]
        assert space.differences(space.plain(new), space.plain(new)) == []

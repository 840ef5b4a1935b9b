"""Rows as points: what was tried, how it ended, and which are the best."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.points import Tried, best, tried
from sweeps.schema import Status

C, S, D, F = Status.COMPLETED, Status.STOPPED, Status.DIVERGED, Status.FAILED


def row(number, seed=1, status=C, acc=50.0, point=None, params=100, macs=1000):
    text = json.dumps({"alpha": number} if point is None else point)
    return {
        "number": number, "point": text, "origin": "sampler", "seed": seed, "status": status, "val_acc": acc,
        "student_params": params, "student_macs": macs,
    }  # fmt: skip


def points(*accuracies):
    return tried(row(i, acc=acc, status=F if acc is None else C) for i, acc in enumerate(accuracies))


class TestTried:
    def test_rows_of_a_point_are_gathered_in_the_order_of_asking(self):
        found = tried([row(7, seed=2), row(3), row(7, seed=1, status=S), row(5, status=None)])
        assert [(each.number, each.point, sorted(each.rows)) for each in found] == [
            (3, {"alpha": 3}, [1]),
            (5, {"alpha": 5}, []),
            (7, {"alpha": 7}, [1, 2]),
        ]

    def test_has_ended_when_all_its_seeds_have(self):
        (each,) = tried([row(0, seed=1), row(0, seed=2), row(0, seed=3, status=None)])
        assert [each.ended(seeds) for seeds in ([1], [2, 1], [1, 2, 3])] == [True, True, False]

    @pytest.mark.parametrize(
        ("statuses", "worst"),
        [([C, C], C), ([C, S], S), ([S, C], S), ([C, D], D), ([D, S], D), ([D, F], F), ([F, C], F)],
    )
    def test_ended_as_the_worst_of_its_trials(self, statuses, worst):
        (each,) = tried(row(0, seed=i, status=status) for i, status in enumerate(statuses))
        assert each.status([0, 1]) == worst
        assert (each.values([0, 1], ["val_acc"]) is None) == (worst != C)

    def test_value_is_the_mean_over_its_seeds(self):
        (each,) = tried([row(0, seed=1, acc=50.0), row(0, seed=2, acc=53.0), row(0, seed=3, acc=99.0)])
        assert each.values([1, 2], ["val_acc", "params"]) == [51.5, 100.0]
        assert each.values([1, 2, 4], ["val_acc"]) is None

    def test_nothing_of_nothing(self):
        assert tried([]) == best([], [1], ["val_acc"], 3) == []


class TestBest:
    def test_of_one_objective(self):
        found = points(50.0, None, 70.0, 60.0, 70.0)
        assert [each.number for each in best(found, [1], ["val_acc"], 3)] == [2, 4, 3]  # the first of equals leads

    @pytest.mark.parametrize(("top", "numbers"), [(0, []), (1, [1]), (9, [1, 0])])
    def test_as_many_as_there_are(self, top, numbers):
        assert [each.number for each in best(points(50.0, 60.0, None), [1], ["val_acc"], top)] == numbers

    def test_a_point_with_a_failed_seed_is_none_of_them(self):
        found = tried(
            [row(0, 1, acc=90.0), row(0, 2, F), row(1, 1, acc=50.0), row(1, 2, acc=52.0), row(2, 1, acc=99.0)]
        )
        assert [each.number for each in best(found, [1, 2], ["val_acc"], 3)] == [1]

    def test_pareto_front_by_hand(self):
        # Params: fewer are better. 1 is worse than 0 in both; 3 is as accurate as 0 and larger.
        found = tried(
            [
                row(0, acc=60.0, params=100), row(1, acc=59.0, params=101), row(2, acc=50.0, params=10),
                row(3, acc=60.0, params=200), row(4, acc=70.0, params=300), row(5, acc=50.0, params=10),
            ]
        )  # fmt: skip
        assert [each.number for each in best(found, [1], ["val_acc", "params"], 9)] == [4, 0, 2, 5]
        assert [each.number for each in best(found, [1], ["params", "val_acc"], 2)] == [4, 0]

    @given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=12), st.integers(2, 3))
    def test_pareto_front_against_all_pairs(self, values, n):
        found = tried(row(i, acc=acc, params=params, macs=macs) for i, (acc, params, macs) in enumerate(values))
        costs = {i: (-acc, params, macs)[:n] for i, (acc, params, macs) in enumerate(values)}
        front = set(costs)
        for i, j in itertools.permutations(costs, 2):
            pairs = list(zip(costs[i], costs[j], strict=True))
            if all(a <= b for a, b in pairs) and any(a < b for a, b in pairs):
                front.discard(j)
        objectives = ["val_acc", "params", "macs"][:n]
        chosen = best(found, [1], objectives, 99)
        assert {each.number for each in chosen} == front
        assert [each.number for each in chosen] == sorted(front, key=lambda i: (costs[i][0], i))


def test_a_point_without_rows_has_not_ended():
    assert not Tried(0, {}, "start").ended([1])

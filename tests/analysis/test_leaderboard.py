import math

import pytest

from analysis.leaderboard import build_leaderboard
from analysis.load import load


def test_ranks_within_a_place(results):
    for seed in (1, 2):
        results.add(seed=seed, method="kd", test_top1=70.0, fraction=0.2)
        results.add(seed=seed, method="cid", test_top1=71.0, fraction=0.2)
        results.add(seed=seed, method="cid", test_top1=75.0, fraction=0.4)
    results.add(seed=1, method="sp", test_top1=80.0, fraction=0.2)
    entries = build_leaderboard(load(results.path, "demo"))
    assert [(entry.column.fraction, entry.name, entry.rank) for entry in entries] == [
        (0.2, "CID", 1),
        (0.2, "KD", 2),
        (0.2, "SP", None),  # one seed of two
        (0.4, "CID", 1),
    ]


def test_the_numbers_of_an_entry(results):
    results.add(seed=1, test_top1=70.0, best_acc=71.0, test_nll=1.0, train_seconds=100.0)
    results.add(seed=2, test_top1=72.0, best_acc=73.0, test_nll=2.0, train_seconds=200.0)
    (entry,) = build_leaderboard(load(results.path, "demo"))
    assert (entry.best, entry.best_splits, entry.seconds, entry.params) == (72.0, "test", 150.0, 278_324)
    assert entry.others == (91.0, 1.5, 6.0)
    # s / sqrt n = 1, and t_1 has the quantile tan(0.475 pi).
    assert entry.half_width == pytest.approx(math.tan(0.475 * math.pi))


def test_a_failed_trial_has_an_entry(results):
    results.add(status="failed")
    (entry,) = build_leaderboard(load(results.path, "demo"))
    assert (entry.rank, entry.cell.n_failed, entry.best, entry.params) == (None, 1, None, None)

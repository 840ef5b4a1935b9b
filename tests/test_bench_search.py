"""Simulated searches on a grid of 3 x 3 x 3 points of two epochs, whose accuracies are literals."""

import json
import math
from datetime import UTC, datetime

import pytest

from benchmarks import search_grid
from benchmarks.page import Shown, middle, spread, write
from benchmarks.search_grid import Grid
from benchmarks.search_simulate import Ended, Strategy, reached, regret, simulate
from benchmarks.search_tables import explained, random_share
from kdtrain.config import ConfigError
from kdtrain.record import EpochRecord
from sweeps import rows
from sweeps.plan import expand
from sweeps.schema import METRICS, Status
from sweeps.spec import parse_text
from sweeps.store import Store
from sweeps.tables import SchedulerTable

SPEC = """
[sweep]
name = "tiny"
[data]
dataset = "fashion_mini"
val_size = 1000
[train]
epochs = 3
[grid]
pair = ["resnet14/resnet8"]
method = ["cid"]
seed = [1]
[grid.cid]
alpha = [2.0, 20.0, 200.0]
beta = [0.1, 1.0, 10.0]
tau = [1.0, 4.0, 16.0]
"""
SOURCE = {"sweep": "tiny", "spec_sha256": "0" * 64, "git_commit": ""}
BLIND = 5.0  # accuracy after the first epoch, in which CID trains no classifier


def accuracy(params: dict[str, float]) -> float:
    """Of a point: 60 for the least weights, and 9, 3 and 1 points more for each step of alpha, beta and tau."""
    places = (
        [2.0, 20.0, 200.0].index(params["alpha"]),
        [0.1, 1.0, 10.0].index(params["beta"]),
        [1.0, 4.0, 16.0].index(params["tau"]),
    )
    return 60.0 + sum(weight * place for weight, place in zip((9, 3, 1), places, strict=True))


@pytest.fixture
def stored(tmp_path) -> Store:
    """The grid as `kd-sweep run` would have stored it; the point of all the highest values has diverged at once."""
    store = Store(str(tmp_path / "results"), "tiny")
    store.write_bytes(SPEC.encode(), "spec.toml")
    for key, trial in expand(parse_text(SPEC)).trials.items():
        identity = rows.identity(trial, "student")
        value = accuracy(json.loads(identity["params"]))
        diverged = value == 86.0
        records = [
            EpochRecord(
                stage="train", epoch=epoch, lr=0.1, terms={"ce": 1.0}, train_acc=1.0, val_acc=acc, test_acc=1.0,
                seconds=1.0,
            )
            for epoch, acc in enumerate((BLIND, value - 10, value), 1)
        ]  # fmt: skip
        metrics = dict.fromkeys(field.name for field in METRICS) | {"class_recall": [1.0] * 10, "test_top1": 1.0}
        error = ("DivergedError", "Traceback ...\nDivergedError: ce is nan") if diverged else None
        if not diverged:
            store.write_epochs(key, [rows.epoch(key, record) for record in records])
        store.write_trial(
            {
                **identity,
                **rows.searched({}),
                **rows.outcome(Status.DIVERGED if diverged else Status.COMPLETED, 0 if diverged else 3, error),
                **metrics | ({} if diverged else {"val_acc": value}),
                **rows.provenance(SOURCE, "cpu", 1, datetime.now(UTC)),
            }
        )  # fmt: skip
    return store


@pytest.fixture
def grid(stored, tmp_path) -> Grid:
    search_grid.pack(stored.results, "tiny", str(tmp_path / "packed"))
    return search_grid.load(str(tmp_path / "packed"), "tiny")


def test_packed_grid_has_the_rows_of_the_sweep_but_no_host(stored, grid):
    packed = Store(grid.results, "tiny")
    assert packed.ids("trials") == packed.ids("epochs") == {"tiny"}
    old, new = stored.read_trials(), packed.read_trials()
    assert new.drop_columns("host").equals(old.drop_columns("host"))
    assert set(new["host"].to_pylist()) == {"grid"}
    by_epoch = [("trial_id", "ascending"), ("epoch", "ascending")]
    assert packed.read_epochs().sort_by(by_epoch).equals(stored.read_epochs().sort_by(by_epoch))
    assert (len(grid.accuracies), grid.best, grid.epochs) == (26, 85.0, 26 * 3)
    assert [grid.within(points) for points in (0.0, 1.0, 3.0)] == [1, 2, 4]  # 85; 84; 83 and 82


def test_grid_with_a_missing_trial_is_refused(stored, tmp_path):
    stored.delete("trials", f"{min(stored.ids('trials'))}.parquet")
    with pytest.raises(ConfigError, match=r"must have all its trials, but 1 of 27 are missing"):
        search_grid.pack(stored.results, "tiny", str(tmp_path / "packed"))


def test_points_in_order_give_the_curve_on_paper(grid):
    ended = simulate(grid, Strategy("grid", "grid"), seed=0)
    # Two workers take the points in order, three epochs each: the (2k+1)th and (2k+2)th end with epochs 6k+5 and 6k+6.
    # They end with 60, 61, 62, ... until 86, which diverges before its first epoch: 85 is the 26th and alone.
    assert ended[:4] == [
        Ended(5, "completed", 60.0), Ended(6, "completed", 61.0),
        Ended(11, "completed", 62.0), Ended(12, "completed", 63.0),
    ]  # fmt: skip
    assert ended[25:] == [Ended(78, "completed", 85.0), Ended(78, "diverged", None)]
    assert [regret(ended, 85.0, epochs) for epochs in (4, 5, 11, 77, 78)] == [math.inf, 25.0, 23.0, 1.0, 0.0]
    assert [reached(ended, 85.0, within) for within in (25.0, 23.0, 0.2)] == [5, 11, 78]
    assert reached(ended[:5], 85.0, 0.2) == math.inf


def test_asha_stops_what_is_worse_after_its_grace(grid):
    # Grace 1 after the blind epoch: the rung is at epoch 2, where the cutoff is the best third of those seen before.
    asha = SchedulerTable(name="asha", grace=1, reduction_factor=3)
    ended = simulate(grid, Strategy("asha", "random", asha), seed=0)
    assert {each.status for each in ended} == {"completed", "stopped", "diverged"}
    assert all(each.accuracy <= 75.0 for each in ended if each.status == "stopped")  # at most 85 - 10 after epoch 2
    completed = sum(each.status == "completed" for each in ended)
    assert ended[-1].epochs == 2 * 26 + completed
    assert len(ended) == 27


def test_searches_of_one_seed_are_alike_and_stop_where_they_are_given_up(grid):
    tpe = Strategy("tpe", "tpe", until=0.5)
    one, again, other = (simulate(grid, tpe, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert 39 - 2 * 3 < one[-1].epochs <= 40  # half of 78; what two workers had begun is not finished


def test_half_the_chance_of_a_good_point_at_random():
    # 2 of 4: the first is one with 1/2. 1 of 9: the fifth is the first after which P = 5/9 > 1/2.
    assert random_share(4, 2) == 0.25
    assert random_share(9, 1) == pytest.approx(5 / 9)


def test_surface_explains_what_is_quadratic_in_the_logarithms(grid):
    assert explained(grid) == pytest.approx(1.0)  # it is linear there


def test_infinite_regrets_have_no_mean():
    assert middle([3.0, math.inf, 1.0, 2.0]) == 2.0
    assert spread([1.0, 2.0, 3.0, math.inf]) == "2.00 [1.00, 3.00]"
    assert spread([math.inf] * 3) == "- [-, -]"


def test_table_for_the_page():
    table = Shown("Title", "What it is.", ["", "a"], [["b", "1"]])
    assert table.markdown() == "### Title\n\nWhat it is.\n\n|  | a |\n| --- | ---: |\n| b | 1 |\n"
    assert [column.header for column in table.rich().columns] == ["", "a"]


def test_measurements_replace_the_old_ones_and_leave_the_guide(tmp_path):
    page = tmp_path / "search.md"
    page.write_text("# Searches\n\nGuide.\n\n## Measurements\n\nold\n", encoding="utf-8")
    write(page, "make it", "A machine", [Shown("Title", "What it is.", ["", "a"], [["b", "1"]])])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Searches\n\nGuide.\n\n## Measurements\n\n    make it; writes this part\n\nA machine.\n")
    assert text.endswith("A machine.\n\n### Title\n\nWhat it is.\n\n|  | a |\n| --- | ---: |\n| b | 1 |\n")
    assert "old" not in text

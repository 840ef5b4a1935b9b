"""A spec that changed after results exist."""

import pytest

from kdtrain.config import ConfigError
from kdtrain.methods import METHODS
from sweeps import changes
from sweeps.plan import Plan, expand
from sweeps.schema import Status
from sweeps.spec import parse_text
from sweeps.store import Store


@pytest.fixture
def store(tmp_path, spec_text, end):
    """Results of the small sweep: its spec and the row of its first trial."""
    store = Store(str(tmp_path), "small")
    plan = remember(spec_text, store)
    end(store, plan.trials[plan.cells[0].trial_id], "student", Status.COMPLETED)
    return store


def remember(text: str, store: Store) -> Plan:
    plan = expand(parse_text(text))
    changes.remember(text, plan, store)
    return plan


def check(text: str, store: Store) -> None:
    spec = parse_text(text)
    changes.check(spec, text, expand(spec), store)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed = [1, 2]", "seed = [1, 2, 3]"),  # grown
        ("seed = [1, 2]", "seed = [2]"),  # shrunk
        ('"kd"]', '"kd", "cid"]'),
        ("fraction = [0.02]", "fraction = [0.02, 0.5]"),
        ("[data]", "# a remark\n[data]"),
        ('name = "small"', 'name = "small"\ncites = "a paper"'),
        ("[grid]", "[run]\ncpus = 2\n[grid]"),
        ("[grid]", "[grid]\nlr = [0.05, 0.1]"),  # a new axis that holds the old value
        ("epochs = 1", "epochs = 2"),  # of the teacher: no row hangs on it yet
    ],
)
def test_spec_may_grow_shrink_and_change_what_no_result_hangs_on(store, spec_text, old, new):
    assert old in spec_text
    check(spec_text.replace(old, new), store)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 2", "epochs = 3", r"since 1 trial of it ended: train\.epochs 2 -> 3\. Put the old values back"),
        ('precision = "bf16"', "", r"train\.precision bf16 -> unset"),
        ("[train]", "subset_seed = 5\n[train]", r"data\.subset_seed unset -> 5"),
    ],
)
def test_spec_that_would_orphan_results_is_refused_with_the_difference(store, spec_text, old, new, message):
    with pytest.raises(ConfigError, match=message):
        check(spec_text.replace(old, new, 1), store)


def test_change_before_any_trial_ended_is_no_change(tmp_path, spec_text):
    store = Store(str(tmp_path), "small")
    remember(spec_text, store)
    check(spec_text.replace("epochs = 2", "epochs = 3"), store)


def test_specs_of_all_earlier_runs_count(store, spec_text):
    remember(spec_text.replace("seed = [1, 2]", "seed = [2]"), store)  # shrunk, and nothing of it ended
    with pytest.raises(ConfigError, match=r"train\.epochs 2 -> 3"):
        check(spec_text.replace("epochs = 2", "epochs = 3"), store)


def test_raised_version_of_a_method_is_no_change_of_the_spec(store, spec_text, monkeypatch):
    monkeypatch.setattr(METHODS["vanilla"], "version", 99)  # all ids are others than the stored ones
    check(spec_text.replace("seed = [1, 2]", "seed = [1, 2, 3]"), store)


def test_spec_is_not_planned_again_where_its_cells_are_the_same_trials(store, spec_text, monkeypatch):
    # Its files of weights, or of images, may lie elsewhere by now.
    def refuse(*_):
        raise AssertionError("planned again")

    monkeypatch.setattr(changes, "_planned", refuse)
    check(spec_text.replace("seed = [1, 2]", "seed = [1, 2, 3]"), store)


def test_probed_teachers_of_equal_axes_are_no_change(tmp_path, spec_text, end):
    text = spec_text.replace('"vanilla", "kd"', '"tf_kd"').replace("[grid]", "[grid]\nlr = [0.05, 0.1]")
    text += '[[probe]]\ndataset = "fashion_mini"\n'
    store = Store(str(tmp_path), "small")
    for trial in remember(text, store).trials.values():
        end(store, trial, "probe" if trial.probe else "student", Status.COMPLETED)
    check(text.replace("seed = [1, 2]", "seed = [1, 2, 3]"), store)


def test_stored_spec_of_another_version_is_named(store, spec_text):
    store.write_bytes(b"[old_table]", "specs", "0.toml")
    with pytest.raises(ConfigError, match=r"specs/0\.toml: sweep is required.*another sweep\.name"):
        check(spec_text, store)


def test_command_line_refuses_a_changed_spec_and_touches_nothing(store, spec_text, tmp_path, cli):
    file = tmp_path / "spec.toml"
    file.write_text(spec_text.replace("epochs = 2", "epochs = 3"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ended = cli("run", file, "--results", tmp_path)
    assert ended.code == 2
    assert ended.err.startswith("error: the spec of 'small' has changed since 1 trial of it ended: train.epochs 2")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

"""The store: whole files or none, errors that name the file."""

import errno
import os
import threading
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from sweeps.schema import EPOCHS, TRIALS
from sweeps.store import Store, StoreError, sweeps


def epoch(trial_id: str, number: int) -> dict[str, object]:
    return {
        "trial_id": trial_id, "stage": "train", "epoch": number, "lr": 0.1, "terms": {"ce": 1.5, "kd": 0.25},
        "train_acc": 50.0, "val_acc": None, "test_acc": 40.0, "seconds": 2.0,
    }  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path), "s")


def test_epochs_read_back_as_written(store):
    rows = [epoch("b", 1), epoch("b", 2)]
    store.write_epochs("b", rows)
    store.write_epochs("a", [epoch("a", 1)])
    table = store.read_epochs()
    assert table.schema.equals(EPOCHS)
    assert [(row["trial_id"], row["epoch"]) for row in table.to_pylist()] == [("a", 1), ("b", 1), ("b", 2)]
    assert dict(table.to_pylist()[1]["terms"]) == {"ce": 1.5, "kd": 0.25}
    assert store.read_epochs(["b", "absent"]).num_rows == 2


def test_empty_store_gives_empty_tables_of_the_schema(store):
    assert store.read_trials().schema.equals(TRIALS)
    assert store.read_trials().num_rows == 0
    assert store.ids("trials") == set()
    assert store.read_bytes("spec.toml") is None


def test_files_open_in_pandas_and_pyarrow_as_they_are(store, tmp_path):
    store.write_epochs("a", [epoch("a", 1)])
    frame = pd.read_parquet(tmp_path / "s" / "epochs" / "a.parquet")
    assert frame[["epoch", "test_acc"]].to_numpy().tolist() == [[1, 40.0]]
    assert pq.read_table(tmp_path / "s" / "epochs").num_rows == 1


def test_readers_see_a_whole_file_while_it_is_rewritten(store):
    """A reader that loops beside a writer must never see a broken or shorter file."""
    store.write_epochs("a", [epoch("a", 1)])
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(store.read_epochs().num_rows)

    reader = threading.Thread(target=read)
    reader.start()
    for last in range(2, 60):
        store.write_epochs("a", [epoch("a", number) for number in range(1, last)])
    stop.set()
    reader.join()
    assert seen == sorted(seen)
    assert min(seen) >= 1


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -8])
def test_truncated_file_is_named_with_the_remedy(store, tmp_path, cut):
    store.write_epochs("a", [epoch("a", 1)])
    path = tmp_path / "s" / "epochs" / "a.parquet"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(
        StoreError, match=r"a\.parquet is not a whole Parquet file .* delete it and run the sweep again"
    ):
        store.read_epochs()


def test_file_of_another_schema_is_named(store, tmp_path):
    (tmp_path / "s" / "epochs").mkdir(parents=True)
    pd.DataFrame({"trial_id": ["a"], "epoch": [1]}).to_parquet(tmp_path / "s" / "epochs" / "a.parquet")
    with pytest.raises(StoreError, match=r"a\.parquet lacks the columns lr, seconds, stage, "):
        store.read_epochs()


def test_epochs_of_a_stage_before_the_recipes_have_no_accuracies(store):
    store.write_epochs("a", [{**epoch("a", 1), "stage": "pretrain", "train_acc": None, "test_acc": None}])
    (row,) = store.read_epochs().to_pylist()
    assert (row["stage"], row["train_acc"], row["val_acc"], row["test_acc"]) == ("pretrain", None, None, None)


@pytest.mark.parametrize(
    ("kind", "schema", "new"),
    [("trials", TRIALS, ["self_taught"]), ("epochs", EPOCHS, ["stage"])],
)
def test_file_of_version_1_is_named_with_what_it_lacks(store, tmp_path, kind, schema, new):
    (tmp_path / "s" / kind).mkdir(parents=True)
    old = schema.empty_table().drop_columns(new)
    pq.write_table(old, tmp_path / "s" / kind / "a.parquet")
    with pytest.raises(StoreError, match=rf"a\.parquet lacks the columns {', '.join(sorted(new))}\.$"):
        store.read_trials() if kind == "trials" else store.read_epochs()


@pytest.mark.parametrize(("number", "text"), [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only file system")])
def test_full_or_read_only_folder_keeps_the_old_file_and_leaves_no_other(store, tmp_path, monkeypatch, number, text):
    store.write_bytes(b"old", "file")

    def fail(source: str, target: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StoreError, match=f"cannot write .*/s/file: {text}"):
        store.write_bytes(b"new", "file")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["file"]
    assert store.read_bytes("file") == b"old"


def test_results_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*file/s/.*: Not a directory"):
        Store(str(tmp_path / "file"), "s").probe()


def test_probe_leaves_nothing_behind(store, tmp_path):
    store.probe()
    assert list((tmp_path / "s").iterdir()) == []


def test_unknown_file_system_is_refused():
    with pytest.raises(StoreError, match="cannot open nowhere://x"):
        Store("nowhere://x", "s")


def test_file_uri_is_the_same_store(tmp_path):
    Store(f"file://{tmp_path}", "s").write_bytes(b"x", "file")
    assert Store(str(tmp_path), "s").read_bytes("file") == b"x"


def test_sweeps_lists_sweeps_without_the_teachers(tmp_path):
    for name in ("b", "a", "teachers"):
        Store(str(tmp_path), name).write_bytes(b"", "spec.toml")
    assert sweeps(str(tmp_path)) == ["a", "b"]
    assert sweeps(str(tmp_path / "absent")) == []

"""Merged files: readers find what was written, whatever is merged, rewritten, killed or damaged in between."""

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from sweeps.compact import Compacted, compact
from sweeps.schema import TRIALS
from sweeps.store import TEACHERS, Store, StoreError

ROOT = Path(__file__).parents[2]
VALUES = {pa.string(): "x", pa.float64(): 0.5, pa.int64(): 3, pa.bool_(): True}
NOW = datetime(2026, 3, 1, tzinfo=UTC)
BLANK = {field.name: None if field.nullable else VALUES.get(field.type, NOW) for field in TRIALS}
KINDS = ("trials", "epochs")


def trial(trial_id: str, version: int = 0, **columns: Any) -> dict[str, Any]:
    return {**BLANK, "trial_id": trial_id, "status": "failed", "seed": version, **columns}


def epochs(trial_id: str, version: int = 0, count: int = 2) -> list[dict[str, Any]]:
    own = {"trial_id": trial_id, "stage": "train", "terms": [("ce", 1.5)], "train_acc": 50.0, "val_acc": None}
    return [
        {
            **own,
            "epoch": n,
            "lr": 0.1,
            "test_acc": 40.0 + version,
            "seconds": 2.0,
            "teacher_seconds": 0.5,
            "shared_seconds": None,
            "teacher_epochs": 1,
        }
        for n in range(1, count + 1)
    ]


def write(store: Store, trial_id: str, version: int = 0) -> None:
    store.write_epochs(trial_id, epochs(trial_id, version))
    store.write_trial(trial(trial_id, version))


def versions(store: Store) -> dict[str, int]:
    """The version of each trial's row; each trial has one."""
    rows = store.read_trials(columns=["trial_id", "seed"]).to_pylist()
    found = {row["trial_id"]: row["seed"] for row in rows}
    assert len(found) == len(rows)
    return found


def own(store: Store, kind: str) -> set[str]:
    return set(store.ages(kind))


def merged(store: Store, kind: str) -> list[str]:
    return list(store.files(kind, "merged"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "results"), "s")


@pytest.fixture
def five(store: Store) -> Store:
    for key in "cadbe":
        write(store, key)
    return store


def test_small_files_become_one_and_any_reader_of_parquet_takes_the_folder(five):
    before = {"trials": five.read_trials(), "epochs": five.read_epochs()}
    assert compact(five.url) == [Compacted(sweep="s", trials=5, epochs=5)]
    for kind in KINDS:
        assert (own(five, kind), len(merged(five, kind)), five.ids(kind)) == (set(), 1, set("abcde"))
        assert pq.read_table(five.path(kind)).num_rows == before[kind].num_rows
    assert five.read_trials().equals(before["trials"])
    assert five.read_epochs().equals(before["epochs"])
    assert five.read_trials().schema.equals(TRIALS, check_metadata=True)


def test_again_there_is_nothing_to_merge_and_nothing_is_rewritten(five):
    compact(five.url)
    before = merged(five, "trials") + merged(five, "epochs")
    assert compact(five.url) == [Compacted(sweep="s", trials=0, epochs=0)]
    assert merged(five, "trials") + merged(five, "epochs") == before


def test_what_has_ended_since_is_merged_into_the_same_file(five):
    compact(five.url)
    write(five, "f")
    write(five, "a", version=7)
    assert versions(five) == {**dict.fromkeys("bcdef", 0), "a": 7}
    assert [row["test_acc"] for row in five.read_epochs(["a"]).to_pylist()] == [47.0, 47.0]
    assert compact(five.url) == [Compacted(sweep="s", trials=2, epochs=2)]
    assert len(merged(five, "trials")) == len(merged(five, "epochs")) == 1
    assert versions(five) == {**dict.fromkeys("bcdef", 0), "a": 7}
    assert [row["test_acc"] for row in five.read_epochs(["a"]).to_pylist()] == [47.0, 47.0]


def test_epochs_are_replaced_whole(five):
    compact(five.url)
    five.write_epochs("a", epochs("a", count=1))
    assert five.read_epochs(["a"]).num_rows == 1
    five.write_epochs("a", [])
    assert five.read_epochs(["a"]).num_rows == 0
    assert five.read_epochs().num_rows == 8


def test_trials_under_way_are_left_alone(five):
    five.write_epochs("new", epochs("new"))
    five.write_bytes(b"", "checkpoints", "new.pt")
    five.write_bytes(b"", "checkpoints", "a.pt")  # failed, and run again
    assert compact(five.url) == [Compacted(sweep="s", trials=4, epochs=4)]
    assert own(five, "trials") == {"a"}
    assert own(five, "epochs") == {"a", "new"}
    assert five.ages("epochs").keys() == {"a", "new"}


def test_statuses_columns_and_named_rows_come_from_both_forms(five):
    compact(five.url)
    five.write_trial(trial("f", status="completed"))
    assert five.statuses(["b", "f", "absent"]) == {"b": "failed", "f": "completed"}
    assert five.read_trials(["f", "b"], ["status"]).to_pydict() == {"status": ["failed", "completed"]}
    assert five.read_trials([]).num_rows == five.read_epochs(["absent"]).num_rows == 0
    assert five.read_epochs(["b"], ["epoch", "trial_id"]).to_pydict() == {"epoch": [1, 2], "trial_id": ["b", "b"]}


def test_merged_files_of_an_earlier_schema_read_null_for_what_came_later(five, monkeypatch):
    older = TRIALS.remove(TRIALS.get_field_index("replayed"))
    five.write_merged("trials", pa.Table.from_pylist([trial("old")], schema=older))
    compact(five.url)
    assert five.read_trials(["old"], ["replayed"]).to_pydict() == {"replayed": [None]}


def test_file_of_many_trials_that_another_program_wrote_is_merged_once(store):
    table = pa.Table.from_pylist([trial("a"), trial("b")], schema=TRIALS)
    pq.write_table(table, store_file(store, "trials", "packed"))
    store.write_merged("trials", pa.Table.from_pylist([trial("a", 9), trial("c")], schema=TRIALS))
    assert versions(store) == {"a": 0, "b": 0, "c": 0}
    compact(store.url)
    assert versions(store) == {"a": 0, "b": 0, "c": 0}
    assert own(store, "trials") == set()


def store_file(store: Store, kind: str, name: str) -> Path:
    path = Path(store.path(kind, f"{name}.parquet"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -8])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_merged_file_is_named_with_the_remedy(five, kind, cut):
    compact(five.url)
    (name,) = merged(five, kind)
    path = store_file(five, f"{kind}/merged", name)
    path.write_bytes(path.read_bytes()[:cut])
    write(five, "later")
    told = rf"{name}\.parquet is not a whole Parquet file .* run the sweep again to have its trials back"
    read: Callable[[], Any] = five.read_trials if kind == "trials" else five.read_epochs
    for act in (read, lambda: five.ids(kind), lambda: compact(five.url)):
        with pytest.raises(StoreError, match=told):
            act()


def test_changed_byte_of_a_merged_file_is_found(five):
    compact(five.url)
    (name,) = merged(five, "epochs")
    path = store_file(five, "epochs/merged", name)
    data = bytearray(path.read_bytes())
    place = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    data[place + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=rf"cannot read .*{name}\.parquet: .*CRC"):
        five.read_epochs()


STEPS = st.lists(
    st.tuples(st.sampled_from(["trial", "epochs", "begin", "end", "compact"]), st.sampled_from("abcd")), max_size=14
)


@pytest.mark.parametrize("remote", [False, True])
@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_any_sequence_reads_as_plain_dictionaries_do(remote, steps):
    """Local files, and a file system in memory that stands for an object store."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"mock://{folder}" if remote else folder, "s")
        if remote:
            for kind in (*KINDS, "checkpoints"):
                store._fs.create_dir(store.path(kind, "merged"))
        trials: dict[str, dict[str, Any]] = {}
        curves: dict[str, list[dict[str, Any]]] = {}
        for version, (step, key) in enumerate(steps):
            if step == "trial":
                trials[key] = trial(key, version)
                store.write_trial(trials[key])
            elif step == "epochs":
                curves[key] = epochs(key, version, count=version % 3)
                store.write_epochs(key, curves[key])
            elif step == "begin":
                store.write_bytes(b"", "checkpoints", f"{key}.pt")
            elif step == "end":
                store.delete("checkpoints", f"{key}.pt")
            else:
                over = store.ids("trials") - store.ids("checkpoints")
                for kind in KINDS:
                    store.merge(kind, over)
                    assert not own(store, kind) & over
            assert store.read_trials().to_pylist() == [trials[name] for name in sorted(trials)]
            assert store.read_epochs().to_pylist() == [row for name in sorted(curves) for row in curves[name]]
            assert store.read_trials(["a", "b"]).num_rows == len(trials.keys() & {"a", "b"})
            assert store.ids("trials") == trials.keys()
            # A trial without epochs has a file until it is merged.
            assert {name for name in curves if curves[name]} <= store.ids("epochs") <= curves.keys()


class Killed(BaseException):
    """Stands for the end of the process."""


def test_killed_before_any_step_it_has_lost_and_doubled_nothing(tmp_path, monkeypatch):
    """Dies at its first, second, ... change of a file until it gets through."""
    names = ("replace", "rename", "unlink", "link")
    changes = {name: getattr(os, name) for name in names}
    deaths = 0
    while True:
        store = Store(str(tmp_path / str(deaths)), "s")
        for key in "abc":
            write(store, key)
        compact(store.url)
        for key in "bcd":
            write(store, key, version=1)
        before = store.read_trials(), store.read_epochs()
        left = deaths

        def step(name: str, *args: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            changes[name](*args)

        with monkeypatch.context() as patched:
            for name in names:
                patched.setattr(os, name, lambda *args, name=name: step(name, *args))
            try:
                compact(store.url)
                break
            except Killed:
                pass
        assert (store.read_trials(), store.read_epochs()) == before
        compact(store.url)
        assert (store.read_trials(), store.read_epochs()) == before
        assert [len(merged(store, kind)) for kind in KINDS] == [1, 1]
        deaths += 1
    assert deaths >= 2 * (1 + 3 * 2)  # of each kind a file is written, three are set aside and removed


CHILD = "import sys; from sweeps.compact import compact; print(flush=True); compact(sys.argv[1])"


def test_killed_by_signal_at_random_moments(store):
    for number in range(150):
        write(store, f"{number:04x}")
    before = store.read_trials(), store.read_epochs()
    chance = random.Random(1)
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", CHILD, store.url], stdout=subprocess.PIPE, cwd=ROOT)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(chance.uniform(0.02, 0.4))
        child.kill()
        child.communicate()
        assert (store.read_trials(), store.read_epochs()) == before
    compact(store.url)
    assert (store.read_trials(), store.read_epochs()) == before
    assert own(store, "trials") == own(store, "epochs") == set()


def test_readers_writers_and_two_compactions_at_once(store):
    """Every read has every trial once; what was written last is there in the end."""
    keys = [f"{number:02x}" for number in range(12)]
    for key in keys:
        write(store, key)
    errors: list[BaseException] = []
    over = threading.Event()

    def loop(act: Callable[[], None]) -> None:
        try:
            while not over.is_set():
                act()
        except BaseException as error:
            errors.append(error)

    def read() -> None:
        assert versions(store).keys() == set(keys)
        assert store.read_epochs(columns=["trial_id"])["trial_id"].to_pylist() == [key for key in keys for _ in "12"]
        assert store.ids("trials") == set(keys)

    acts = (read, lambda: compact(store.url), lambda: compact(store.url))
    threads = [threading.Thread(target=loop, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for version in range(1, 25):
        for key in keys[version % 3 :: 3]:
            write(store, key, version)
    over.set()
    for thread in threads:
        thread.join()
    assert errors == []
    wanted = {key: 24 - (24 - place) % 3 for place, key in enumerate(keys)}
    assert versions(store) == wanted
    compact(store.url)
    assert versions(store) == wanted
    assert store.read_epochs()["test_acc"].to_pylist() == [40.0 + wanted[key] for key in keys for _ in "12"]


def test_file_that_was_rewritten_is_not_removed(store, monkeypatch):
    """Also where that happens between the look and the removal; a still newer one stays, too."""
    rename = os.rename
    for newer in (False, True):
        store.write_trial(trial("a"))
        info = store.files("trials")["a"]

        def slip(source: str, target: str, newer: bool = newer) -> None:
            store.write_trial(trial("a", 1, student="longer than before"))
            rename(source, target)
            if newer:
                store.write_trial(trial("a", 2))

        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", slip)
            store.delete_unless_rewritten(info)
        assert versions(store) == {"a": 1 + newer}
        store.delete_unless_rewritten(info)
        assert versions(store) == {"a": 1 + newer}
        assert [path.name for path in Path(store.path("trials")).iterdir()] == ["a.parquet"]


def test_file_of_an_object_store_that_was_rewritten_is_not_removed(tmp_path):
    store = Store(f"mock://{tmp_path}", "s")
    store._fs.create_dir(store.path("trials"))
    store.write_trial(trial("a"))
    info = store.files("trials")["a"]
    store.write_trial(trial("a", 1, student="longer than before"))
    store.delete_unless_rewritten(info)
    assert versions(store) == {"a": 1}
    store.delete_unless_rewritten(store.files("trials")["a"])
    assert versions(store) == {}


@pytest.mark.parametrize("when", [1, 2, 3])
def test_merging_between_two_looks_of_a_reader_hides_nothing(five, monkeypatch, when):
    """Right after its first listing, its second, and, where that had to begin again, its third."""
    listed, looks = Store.files, []

    def files(store: Store, *parts: str) -> Any:
        found = listed(store, *parts)
        looks.append(parts)
        if len(looks) == when:
            compact(store.url)
        return found

    monkeypatch.setattr(Store, "files", files)
    assert versions(five) == dict.fromkeys("abcde", 0)


def test_of_several_merged_files_the_last_wins(store):
    for version in range(12):  # what a death just before the older ones are removed leaves
        store.write_merged("trials", pa.Table.from_pylist([trial("a", version), trial(f"{version:x}0")], schema=TRIALS))
        assert versions(store)["a"] == version
    assert store.read_trials().num_rows == 13
    write(store, "b")
    compact(store.url)
    assert (versions(store)["a"], len(merged(store, "trials")), len(versions(store))) == (11, 1, 14)


def test_files_that_never_stay_are_told(store, monkeypatch):
    gone = fs.FileInfo(store.path("trials", "a.parquet"), fs.FileType.File)
    monkeypatch.setattr(store, "files", lambda kind, *parts: {} if parts else {"a": gone})
    with pytest.raises(StoreError, match=r"the files in .*/s/trials change faster than they can be read"):
        store.read_trials()


def test_command_takes_a_sweep_or_all_with_the_teachers(cli, tmp_path):
    results = tmp_path / "results"
    for sweep, keys in (("one", "ab"), ("two", "c"), (TEACHERS, "t")):
        for key in keys:
            write(Store(str(results), sweep), key)
    ended = cli("compact", results / "one")
    assert (ended.code, ended.out) == (0, "one: merged the files of 2 trials\n")
    ended = cli("compact", results)
    assert ended.code == 0
    assert ended.out.splitlines() == [
        "one: nothing to merge", "two: merged the files of 1 trial", "teachers: merged the files of 1 trial"
    ]  # fmt: skip
    assert cli("compact", results / "teachers").out == "teachers: nothing to merge\n"


@pytest.mark.parametrize("name", ["elsewhere", "absent/one", "results/one/trials"])
def test_command_refuses_a_folder_without_ended_trials(cli, tmp_path, name):
    write(Store(str(tmp_path / "results"), "one"), "a")
    ended = cli("compact", tmp_path / name)
    assert ended.code == 2
    told = "error: RESULTS must be the folder of a sweep or of several, but no trial has ended in"
    assert ended.err == f"{told} {tmp_path / name}.\n"

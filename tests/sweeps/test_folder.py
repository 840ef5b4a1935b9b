"""Sweeps of a person's own images, and probes of other students on them: planned, run, and told in rows."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdtrain import data
from kdtrain.config import ConfigError, DataConfig, FolderRef, Where
from kdtrain.data.folder import reference
from sweeps import rows
from sweeps.plan import expand
from sweeps.spec import parse_text
from sweeps.store import TEACHERS, Store

OWN = """
[sweep]
name = "own"
[data]
dataset = "folder:{pets}"
root = "{data}"
[train]
epochs = 1
batch_size = 16
lr = 0.01
[run]
results = "{results}"
gpus = 0
max_concurrent = 1
[grid]
pair = ["resnet14/resnet8"]
method = ["vanilla", "kd"]
seed = [1]
"""
TRANSFER = """
[sweep]
name = "transfer"
[data]
dataset = "fashion_mini"
root = "{data}"
[train]
epochs = 1
[run]
results = "{results}"
gpus = 0
max_concurrent = 1
[grid]
pair = ["resnet8"]
method = ["vanilla"]
fraction = [0.02]
seed = [1]
[[probe]]
dataset = "folder:{pets}"
epochs = 5
lr = [0.01, 0.1]
"""


@pytest.fixture
def places(tmp_path) -> dict[str, Path]:
    """The folders that specs name; `pets` has coloured images of two sizes, brighter by class."""
    for label, name in enumerate(("cats", "dogs", "eels")):
        images = tmp_path / "pets" / name
        images.mkdir(parents=True)
        for i in range(20):
            noise = np.random.default_rng(100 * label + i).integers(0, 60, (40, 36 + i % 2, 3), dtype=np.uint8)
            Image.fromarray(noise + np.uint8(90 * label)).save(images / f"{i:02}.png")
    return {name: tmp_path / name for name in ("pets", "data", "results")}


@pytest.fixture
def planned(places):
    """The plan of a text, as a new process makes it."""

    def planned(text, **other):
        data.named.cache_clear()
        return expand(parse_text(text.format(**places | other)))

    return planned


def write(tmp_path, text, places):
    (tmp_path / "spec.toml").write_text(text.format(**places))
    return tmp_path / "spec.toml"


def read(places, sweep):
    return Store(str(places["results"]), sweep).read_trials().to_pylist()


def damage(places):
    """Cut off a training image behind its header; its name."""
    path = places["pets"] / "cats" / "00.png"
    path.write_bytes(path.read_bytes()[:1000])
    return "cats/00.png"


def sha256(places):
    place = Where(cache=str(places["data"] / "elsewhere"), skip_corrupt=True)
    return reference(f"folder:{places['pets']}", place)[0].sha256


class TestPlan:
    def test_moved_folder_is_the_same_trials_and_a_changed_image_others(self, planned, places):
        before = planned(OWN)
        moved = places["pets"].rename(places["pets"].with_name("moved"))
        after = planned(OWN, pets=moved)
        assert after.trials.keys() == before.trials.keys()
        assert after.teachers.keys() == before.teachers.keys()
        Image.new("RGB", (40, 36)).save(moved / "cats" / "00.png")
        changed = planned(OWN, pets=moved)
        assert not (changed.trials.keys() | changed.teachers.keys()) & (before.trials.keys() | before.teachers.keys())

    def test_relative_path_is_that_of_the_sweeps_folder(self, planned, places, monkeypatch):
        monkeypatch.chdir(places["pets"].parent)
        plan = planned(OWN, pets="pets")
        assert {trial.data.dataset for trial in plan.trials.values()} == {f"folder:{places['pets']}"}
        assert plan.trials.keys() == planned(OWN).trials.keys()

    def test_probe_sees_the_folder_as_its_student_saw_its_own_images(self, planned, places):
        plan = planned(TRANSFER)
        (probe,) = (trial for trial in plan.trials.values() if trial.probe is not None)
        info = data.DATASETS["fashion_mini"]
        assert (probe.data.dataset, probe.data.folder.sha256) == (f"folder:{places['pets']}", sha256(places))
        seen = (probe.data.image_size, probe.data.channels, probe.data.mean, probe.data.std)
        assert seen == (info.image_size, info.in_channels, info.mean, info.std)
        assert (probe.probe.dataset, probe.probe.num_classes) == ("fashion_mini", 10)

    def test_probe_of_a_student_of_a_folder_is_the_same_wherever_the_folder_lies(self, planned, places):
        statistics = "[data]\nmean = [0.5, 0.5, 0.5]\nstd = [0.2, 0.2, 0.2]\n"
        text = OWN.replace("[data]\n", statistics) + '[[probe]]\ndataset = "fashion_mini"\n'
        before = planned(text)
        assert sum(trial.probe is not None for trial in before.trials.values()) == 3
        after = planned(text, pets=places["pets"].rename(places["pets"].with_name("moved")))
        assert after.trials.keys() == before.trials.keys()

    def test_folder_that_is_not_there_is_named(self, planned, places):
        gone = places["pets"].with_name("gone")
        for text in (OWN, TRANSFER):
            with pytest.raises(ConfigError, match=rf"there is no folder {gone}\."):
                planned(text, pets=gone)


def test_rows_have_the_folders_last_name_and_what_identifies_it():
    config = DataConfig(dataset="folder:/home/me/pets", folder=FolderRef(sha256="ab" * 32, num_classes=2))
    told = rows.data(config)
    assert (
        (told["dataset"], told["folder_sha256"])
        == ("folder:pets", "ab" * 32)
        == (data.title(config.dataset), "ab" * 32)
    )
    assert rows.data(DataConfig(dataset="cifar10"))["folder_sha256"] is None


def test_a_sweep_of_a_folder_end_to_end(places, tmp_path, sweep):
    broken = damage(places)
    ended = sweep("run", write(tmp_path, OWN.replace("[train]", "skip_corrupt = true\n[train]"), places))
    assert ended.code == 0
    assert ended.err == f"folder:{places['pets']}: 1 corrupt image is left out: {broken}\n"
    assert "own: 2 completed, of 2 trials." in ended.out
    own = read(places, "own")
    (teacher,) = read(places, TEACHERS)
    for row in (*own, teacher):
        assert (row["dataset"], row["folder_sha256"]) == ("folder:pets", sha256(places))
        # Of each class 20 images, a fifth of which is of the test split; the median of shorter sides is 36 or 37.
        assert (len(row["class_recall"]), row["image_size"], row["channels"]) == (3, 32, None)
        assert row["n_train"] == 47
    assert {row["method"]: row["teacher_id"] for row in own} == {"vanilla": None, "kd": teacher["trial_id"]}


def test_corrupt_images_are_refused_before_a_sweep_starts(places, tmp_path, cli):
    broken = damage(places)
    data.named.cache_clear()
    ended = cli("run", write(tmp_path, OWN, places))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {places['pets'] / broken} is corrupt or truncated (")
    assert len(ended.err.splitlines()) == 1
    assert not list(places["results"].rglob("*.parquet"))


def test_students_of_fashion_mnist_are_probed_on_a_folder_end_to_end(places, tmp_path, sweep):
    spec = write(tmp_path, TRANSFER, places)
    ended = sweep("run", spec)
    assert (ended.code, ended.err) == (0, "")
    by_role = {row["role"]: row for row in read(places, "transfer")}
    student, probe = by_role["student"], by_role["probe"]
    assert (probe["dataset"], probe["folder_sha256"]) == ("folder:pets", sha256(places))
    assert (probe["source_id"], probe["source_dataset"]) == (student["trial_id"], "fashion_mini")
    assert (probe["status"], probe["epochs_done"], probe["n_train"]) == ("completed", 5, 48)
    assert (probe["image_size"], probe["channels"]) == (28, 1)
    assert probe["mean"] == list(data.DATASETS["fashion_mini"].mean)
    assert probe["lr"] in (0.01, 0.1)
    # The classes differ in brightness, which survives any frozen network: a third is chance.
    assert probe["test_top1"] > 60
    assert len(probe["class_recall"]) == 3

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdtrain import data
from kdtrain.config import ConfigError, DataConfig, Where
from kdtrain.data.images import Chunk
from kdtrain.data.prepared import Contents, prepare, signature

RNG = np.random.default_rng(0)


def chunks(images, labels, size=3, skipped=()):
    starts = range(0, len(labels), size)
    return [Chunk(images[i : i + size], labels[i : i + size], skipped if i == 0 else ()) for i in starts]


@pytest.fixture
def made():
    """Images [N, H, W, C] and labels of both splits, drawn."""
    images = RNG.integers(0, 256, (10, 5, 5, 3), dtype=np.uint8), RNG.integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    return images[0], np.arange(10) % 3, images[1], np.arange(4) % 3


class Reader:
    """Reads what was made, and counts how often."""

    def __init__(self, made, skipped=()):
        self.made, self.skipped, self.times = made, skipped, 0

    def __call__(self):
        self.times += 1
        images, labels, test_images, test_labels = self.made
        return Contents(chunks(images, labels, skipped=self.skipped), chunks(test_images, test_labels))


def where(tmp_path, **fields):
    return Where(data_root=str(tmp_path), **fields)


def folders(cache):
    """The folders in the cache, also such as are being written."""
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_mapped_images_equal_those_read(tmp_path, made):
    got = prepare("x", 1, where(tmp_path), Reader(made)).arrays
    np.testing.assert_array_equal(got.train_images.permute(0, 2, 3, 1).numpy(), made[0])
    np.testing.assert_array_equal(got.train_labels.numpy(), made[1])
    np.testing.assert_array_equal(got.test_images.permute(0, 2, 3, 1).numpy(), made[2])
    np.testing.assert_array_equal(got.test_labels.numpy(), made[3])
    assert got.train_images.dtype == torch.uint8
    assert got.train_labels.dtype == got.test_labels.dtype == torch.int64


def test_the_files_are_plain_npy(tmp_path, made):
    prepare("x", 1, where(tmp_path), Reader(made))
    (folder,) = (tmp_path / "prepared").glob("x-*")
    assert sorted(path.name for path in folder.iterdir()) == [
        "meta.json", "test_images.npy", "test_labels.npy", "train_images.npy", "train_labels.npy",
    ]  # fmt: skip
    np.testing.assert_array_equal(np.load(folder / "train_images.npy"), made[0])
    np.testing.assert_array_equal(np.load(folder / "test_labels.npy"), made[3])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("channels", [1, 3])
def test_an_opened_set_is_the_map_itself(tmp_path, made, channels):
    images, labels, test_images, test_labels = made
    made = images[..., :channels], labels, test_images[..., :channels], test_labels
    opened = data.prepared.opener(lambda where: [], lambda info, where: Reader(made)())
    info = replace(data.DATASETS["fashion_mnist"], in_channels=channels)
    got = opened(info, where(tmp_path), torch.device("cpu"))
    for part, file in ((got.train, "train_images.npy"), (got.test, "test_images.npy")):
        assert part.images.is_contiguous(memory_format=torch.channels_last)
        assert mapped_file(part.images.data_ptr()).endswith(file)
        part.images[0] += 1  # a private copy of the page: the file does not change
    again = prepare("fashion_mnist", [signature([]), 28, False], where(tmp_path), pytest.fail).arrays
    np.testing.assert_array_equal(again.train_images.permute(0, 2, 3, 1).numpy(), made[0])


def mapped_file(address):
    """The file that is mapped at an address of this process."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            first, last = (int(value, 16) for value in line.split()[0].split("-"))
            if first <= address < last:
                return line.split()[-1]
    return ""


def test_statistics_are_the_mean_and_population_std_of_the_training_images(tmp_path, made):
    got = prepare("x", 1, where(tmp_path), Reader(made))
    pixels = made[0].reshape(-1, 3) / 255
    np.testing.assert_allclose(got.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(got.std, pixels.std(0), rtol=1e-12)


def test_each_identity_is_prepared_once(tmp_path, made):
    read = Reader(made, skipped=("a.png",))
    for identity in ([1, 32], [1, 32], [2, 32], [1, 64], [1, 32]):
        assert prepare("x", identity, where(tmp_path), read).skipped == ("a.png",)
    assert read.times == 3
    assert len(folders(tmp_path / "prepared")) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "train_images.npy").write_bytes((folder / "train_images.npy").read_bytes()[:-1]),
        lambda folder: (folder / "test_labels.npy").unlink(),
        lambda folder: (folder / "meta.json").write_text("{"),
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: (folder / "test_images.npy").write_bytes(bytes((folder / "test_images.npy").stat().st_size)),
    ],
    ids=["truncated", "labels gone", "half a meta.json", "no meta.json", "zeros"],
)
def test_a_damaged_folder_is_prepared_anew(tmp_path, made, damage):
    read = Reader(made)
    prepare("x", 1, where(tmp_path), read)
    damage(next((tmp_path / "prepared").glob("x-*")))
    got = prepare("x", 1, where(tmp_path), read).arrays
    assert read.times == 2
    np.testing.assert_array_equal(got.train_images.permute(0, 2, 3, 1).numpy(), made[0])
    np.testing.assert_array_equal(got.test_images.permute(0, 2, 3, 1).numpy(), made[2])


def test_what_fails_leaves_nothing_and_what_died_is_cleared(tmp_path, made):
    def broken():
        yield chunks(made[0], made[1])[0]
        raise ConfigError("one is corrupt.")

    with pytest.raises(ConfigError, match=r"one is corrupt\."):
        prepare("x", 1, where(tmp_path), lambda: Contents(broken(), []))
    assert folders(tmp_path / "prepared") == []
    prepare("x", 1, where(tmp_path), Reader(made))
    (name,) = folders(tmp_path / "prepared")
    # As if a process had been killed while it wrote.
    (tmp_path / "prepared" / name).rename(tmp_path / "prepared" / f".{name}")
    prepare("x", 1, where(tmp_path), Reader(made))
    assert folders(tmp_path / "prepared") == [name]


def test_a_cache_of_its_own(tmp_path, made):
    prepare("x", 1, where(tmp_path / "data", cache=str(tmp_path / "fast" / "disk")), Reader(made))
    assert len(folders(tmp_path / "fast" / "disk")) == 1
    assert not (tmp_path / "data").exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, made):
    (tmp_path / "file").write_text("")
    cache = str(tmp_path / "file" / "cache")
    message = rf"prepared images cannot be written to {cache} \(Not a directory\)\. Set `cache` under \[run\]"
    with pytest.raises(ConfigError, match=message):
        prepare("x", 1, where(tmp_path, cache=cache), Reader(made))


def test_a_full_disk_is_an_error_in_a_line(tmp_path, made):
    def full():
        yield chunks(made[0], made[1])[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match=r"cannot be written to .*prepared \(No space left on device\)"):
        prepare("x", 1, where(tmp_path), lambda: Contents(full(), []))


ORDER = [0, 0, 1, 1, 2, 2, 3, 3]

# Arguments: the data root, and a name for the process. Preparing takes long enough for the other process to arrive.
PREPARE = """
import sys, time
from pathlib import Path
import numpy as np
from kdtrain.config import Where
from kdtrain.data.images import Chunk
from kdtrain.data.prepared import Contents, prepare

root = Path(sys.argv[1])

def slowly():
    (root / f"read_by_{sys.argv[2]}").touch()
    for i in range(4):
        time.sleep(0.1)
        yield Chunk(np.full((2, 5, 5, 3), i, np.uint8), np.array([i, i]))

(root / f"ready_{sys.argv[2]}").touch()
while not (root / "go").exists():
    time.sleep(0.001)
arrays = prepare("x", 1, Where(data_root=str(root)), lambda: Contents(slowly(), slowly())).arrays
print(arrays.train_images[:, 0, 0, 0].tolist(), arrays.test_labels.tolist())
"""


def test_processes_at_once_prepare_it_once(tmp_path):
    command = [sys.executable, "-c", PREPARE, str(tmp_path)]
    processes = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("ready_*"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert [process.communicate(timeout=60)[0] for process in processes] == [f"{ORDER} {ORDER}\n"] * 2
    assert len(list(tmp_path.glob("read_by_*"))) == 1


def test_the_lock_of_a_dead_process_is_free(tmp_path, made):
    (tmp_path / "prepared").mkdir()
    code = "import fcntl, os, sys; fcntl.flock(open(sys.argv[1], 'wb'), fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "prepared" / ".x.lock")], check=False)
    read = Reader(made)
    prepare("x", 1, where(tmp_path), read)
    assert read.times == 1


def test_signature_changes_with_path_size_and_time(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("1")
    second.write_text("1")
    for file in (first, second):
        os.utime(file, ns=(1, 1))
    before = signature([first])
    assert signature([first]) == before != signature([second])
    os.utime(first, ns=(1, 2))
    touched = signature([first])
    first.write_text("12")
    os.utime(first, ns=(1, 1))
    assert len({before, touched, signature([first])}) == 3


def write_cifar100(folder):
    import pickle

    folder.mkdir()
    rows = RNG.integers(0, 256, (2, 3072), dtype=np.uint8)
    for file in ("train", "test", "meta"):
        (folder / file).write_bytes(pickle.dumps({"data": rows, "fine_labels": [0, 1], "fine_label_names": []}))


@pytest.fixture
def any_checksum(monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)


def test_a_prepared_cifar_opens_at_once_without_torchvision(tmp_path, any_checksum):
    write_cifar100(tmp_path / "cifar-100-python")
    first = data.load(DataConfig(dataset="cifar100"), where(tmp_path), torch.device("cpu"))
    code = (
        "import sys, time, torch; from kdtrain import data; from kdtrain.config import DataConfig, Where\n"
        "start = time.process_time()\n"
        "got = data.load(DataConfig(dataset='cifar100'), Where(data_root=sys.argv[1]), torch.device('cpu'))\n"
        "assert time.process_time() - start < 0.1\n"
        "assert 'torchvision' not in sys.modules\n"
        "print(got.train.images.sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert int(done.stdout) == first.train.images.sum().item()


def test_a_changed_source_and_a_changed_size_are_prepared_anew(tmp_path, any_checksum):
    write_cifar100(tmp_path / "cifar-100-python")

    def load(**fields):
        return data.load(DataConfig(dataset="cifar100", **fields), where(tmp_path), torch.device("cpu")).train.images

    load()
    assert load(image_size=16).shape == (2, 3, 16, 16)
    assert len(folders(tmp_path / "prepared")) == 2
    os.utime(tmp_path / "cifar-100-python" / "train", ns=(1, 1))
    load()
    assert len(folders(tmp_path / "prepared")) == 3


def test_meta_tells_counts_and_skipped_files(tmp_path, made):
    prepare("x", 1, where(tmp_path), Reader(made, skipped=("a.png", "b.png")))
    meta = json.loads(next((tmp_path / "prepared").glob("x-*/meta.json")).read_text())
    assert (meta["format"], meta["train"], meta["test"], meta["skipped"]) == (1, 10, 4, ["a.png", "b.png"])

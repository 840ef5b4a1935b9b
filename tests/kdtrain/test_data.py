import gzip
import hashlib
import importlib.util
import os
import pickle
import struct
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets
from torchvision.transforms import v2

import kdtrain
from kdtrain import data
from kdtrain.config import ConfigError, DataConfig, Where

CPU = torch.device("cpu")
FULL = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
RNG = np.random.default_rng(0)


def load(name, root="nowhere", download=False, **fields):
    return data.load(DataConfig(dataset=name, **fields), Where(data_root=str(root), download=download), CPU)


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion(folder, suffix="", compress=bytes, n=(10, 10)):
    """IDX files of random images; returns images and labels of both parts."""
    folder.mkdir(parents=True)
    made = []
    for part, size in zip(("train", "t10k"), n, strict=True):
        images = RNG.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        labels = (np.arange(size) % 10).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(compress(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(compress(idx(labels)))
        made += [images, labels]
    return made


def write_cifar(folder, files, label_key, num_classes):
    """CIFAR's pickles (rows of 3 x 32 x 32 bytes) with two images each; returns {file: (rows, labels)}."""
    folder.mkdir(parents=True)
    made = {}
    for file in files:
        rows = RNG.integers(0, 256, (2, 3072), dtype=np.uint8)
        labels = RNG.integers(0, num_classes, 2).tolist()
        (folder / file).write_bytes(pickle.dumps({"data": rows, label_key: labels}, protocol=2))
        made[file] = rows, labels
    (folder / ("meta" if label_key == "fine_labels" else "batches.meta")).write_bytes(pickle.dumps({}))
    return made


@pytest.fixture
def any_checksum(monkeypatch):
    """The small files of these tests cannot have the checksums of the real ones."""
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)


class TestShipped:
    def test_shapes_and_balance(self):
        mini = load("fashion_mini")
        assert mini.train.images.shape == (6000, 1, 28, 28)
        assert mini.test.images.shape == (2000, 1, 28, 28)
        assert mini.train.images.dtype == mini.test.images.dtype == torch.uint8
        assert mini.train.labels.dtype == mini.test.labels.dtype == torch.int64
        assert mini.train.labels.bincount().tolist() == [600] * 10
        assert mini.test.labels.bincount().tolist() == [200] * 10

    def test_statistics_are_near_those_of_the_full_set(self):
        mini = load("fashion_mini")
        pixels = mini.train.images.double() / 255
        # The mean of an image varies by about 0.15, so that of 6,000 by 0.002.
        assert pixels.mean().item() == pytest.approx(mini.info.mean[0], abs=0.01)
        assert pixels.std().item() == pytest.approx(mini.info.std[0], abs=0.01)

    def test_no_training_image_is_in_the_test_set(self):
        mini = load("fashion_mini")
        train, test = ({row.tobytes() for row in part.numpy()} for part in (mini.train.images, mini.test.images))
        assert not train & test

    def test_size(self):
        assert (resources.files("kdtrain") / "assets" / "fashion_mini.npz").stat().st_size < 6_000_000

    @pytest.mark.skipif(
        not FULL.is_dir(), reason="needs the full files in FASHION_MNIST (Debian: dataset-fashion-mnist)"
    )
    def test_script_makes_the_shipped_arrays(self, tmp_path):
        script().make(FULL, tmp_path / "made.npz")
        made = np.load(tmp_path / "made.npz")
        shipped = np.load(Path(kdtrain.__file__).parent / "assets" / "fashion_mini.npz")
        assert set(made) == set(shipped)
        for key in made:
            np.testing.assert_array_equal(made[key], shipped[key])

    @pytest.mark.skipif(
        not FULL.is_dir(), reason="needs the full files in FASHION_MNIST (Debian: dataset-fashion-mnist)"
    )
    def test_mean_and_std_are_those_of_the_full_set(self):
        pixels = script().read_idx(FULL / "train-images-idx3-ubyte.gz") / 255
        assert len(pixels) == 60_000
        assert data.DATASETS["fashion_mnist"].mean == (pytest.approx(pixels.mean(), abs=5e-5),)
        assert data.DATASETS["fashion_mnist"].std == (pytest.approx(pixels.std(), abs=5e-5),)


def script():
    """The module make_fashion_mini.py, which is no part of the package's imports."""
    path = Path(kdtrain.__file__).parent / "assets" / "make_fashion_mini.py"
    spec = importlib.util.spec_from_file_location("make_fashion_mini", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_script_takes_the_first_images_of_each_class_in_file_order(tmp_path, monkeypatch):
    images, labels, test_images, test_labels = write_fashion(tmp_path / "full", ".gz", gzip.compress, n=(40, 30))
    module = script()
    monkeypatch.setattr(module, "PER_CLASS", {"train": 3, "t10k": 1})
    module.make(tmp_path / "full", tmp_path / "mini.npz")
    mini = np.load(tmp_path / "mini.npz")
    # The labels go round 0..9, so three of each class are the first 30 images.
    np.testing.assert_array_equal(mini["train_images"], images[:30])
    np.testing.assert_array_equal(mini["train_labels"], labels[:30])
    np.testing.assert_array_equal(mini["test_images"], test_images[:10])
    np.testing.assert_array_equal(mini["test_labels"], test_labels[:10])


def test_fashion_mnist_from_idx_files(tmp_path):
    images, labels, test_images, test_labels = write_fashion(tmp_path / "FashionMNIST" / "raw")
    got = load("fashion_mnist", tmp_path)
    np.testing.assert_array_equal(got.train.images[:, 0].numpy(), images)
    np.testing.assert_array_equal(got.train.labels.numpy(), labels)
    np.testing.assert_array_equal(got.test.images[:, 0].numpy(), test_images)
    np.testing.assert_array_equal(got.test.labels.numpy(), test_labels)
    assert got.train.labels.dtype == torch.int64


def test_cifar10_from_pickles(tmp_path, any_checksum):
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    made = write_cifar(tmp_path / "cifar-10-batches-py", [*batches, "test_batch"], "labels", 10)
    got = load("cifar10", tmp_path)
    rows = np.concatenate([made[batch][0] for batch in batches])
    np.testing.assert_array_equal(got.train.images.numpy(), rows.reshape(10, 3, 32, 32))
    assert got.train.labels.tolist() == [label for batch in batches for label in made[batch][1]]
    np.testing.assert_array_equal(got.test.images.numpy(), made["test_batch"][0].reshape(2, 3, 32, 32))
    assert got.test.labels.tolist() == made["test_batch"][1]


def test_cifar100_from_pickles(tmp_path, any_checksum):
    made = write_cifar(tmp_path / "cifar-100-python", ["train", "test"], "fine_labels", 100)
    got = load("cifar100", tmp_path)
    np.testing.assert_array_equal(got.train.images.numpy(), made["train"][0].reshape(2, 3, 32, 32))
    assert got.train.labels.tolist() == made["train"][1]
    assert got.test.labels.tolist() == made["test"][1]
    assert got.train.images.is_contiguous(memory_format=torch.channels_last)


def test_cifar_files_of_2009_raise_no_warning(tmp_path, any_checksum):
    # They hold numpy's dtype as ('u1', 0, 1), today's pickles as ('u1', False, True).
    write_cifar(tmp_path / "cifar-100-python", ["train", "test"], "fine_labels", 100)
    for path in (tmp_path / "cifar-100-python").iterdir():
        path.write_bytes(path.read_bytes().replace(b"\x89\x88\x87", b"K\x00K\x01\x87"))
    assert len(load("cifar100", tmp_path).train.labels) == 2


def write_stl10(folder, n=(6, 4)):
    """STL-10's binary files, byte by byte: of each image red, green, blue; each plane column by column."""
    folder.mkdir(parents=True)
    made = []
    for part, size in zip(("train", "test"), n, strict=True):
        images = RNG.integers(0, 256, (size, 96, 96, 3), dtype=np.uint8)
        labels = np.arange(size) % 10
        planes = [images[i, :, x, c].tobytes() for i in range(size) for c in range(3) for x in range(96)]
        (folder / f"{part}_X.bin").write_bytes(b"".join(planes))
        (folder / f"{part}_y.bin").write_bytes(bytes(int(label) + 1 for label in labels))
        made += [images, labels]
    return made


def test_stl10_from_column_major_planes(tmp_path):
    images, labels, test_images, test_labels = write_stl10(tmp_path / "stl10_binary")
    got = load("stl10", tmp_path)
    np.testing.assert_array_equal(got.train.images.permute(0, 2, 3, 1).numpy(), images)
    np.testing.assert_array_equal(got.test.images.permute(0, 2, 3, 1).numpy(), test_images)
    assert got.train.labels.tolist() == labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert got.test.labels.tolist() == test_labels.tolist()


def test_stl10_is_read_as_torchvision_reads_it(tmp_path, monkeypatch):
    write_stl10(tmp_path / "stl10_binary")
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    expected = datasets.STL10(tmp_path, split="train")
    got = load("stl10", tmp_path)
    np.testing.assert_array_equal(got.train.images.numpy(), expected.data)
    np.testing.assert_array_equal(got.train.labels.numpy(), expected.labels)


@pytest.mark.parametrize(("name", "size"), [("fashion_mini", 32), ("fashion_mnist", 32), ("stl10", 32)])
def test_another_image_size_resizes_as_torchvision_does_within_a_level(tmp_path, name, size):
    write_fashion(tmp_path / "FashionMNIST" / "raw")
    write_stl10(tmp_path / "stl10_binary")
    natural, got = load(name, tmp_path), load(name, tmp_path, image_size=size)
    assert got.info.image_size == size
    for part, before in ((got.train, natural.train), (got.test, natural.test)):
        expected = v2.functional.resize(before.images[:50].float(), [size, size], antialias=True)
        assert part.images.shape == (*before.images.shape[:2], size, size)
        assert part.images.is_contiguous(memory_format=torch.channels_last)
        # PIL rounds to whole levels after the rows and after the columns, half a level each.
        assert (part.images[:50].float() - expected).abs().max() <= 1.01
        assert torch.equal(part.labels, before.labels)


@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [
        ("fashion_mnist", "FashionMNIST/raw", "train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py", "data_batch_1"),
        ("cifar100", "cifar-100-python", "train"),
        ("stl10", "stl10_binary", "train_X.bin"),
    ],
)
def test_missing_files_are_named_with_the_two_ways_to_get_them(tmp_path, name, folder, file):
    ways = rf"Set download = true under \[data\], or put the standard files there, unpacked: {file}, "
    with pytest.raises(
        ConfigError, match=rf"{name} is incomplete \({file} is missing\) in {tmp_path / folder}\. {ways}"
    ):
        load(name, tmp_path)


def test_one_missing_file_is_named(tmp_path):
    write_fashion(tmp_path / "FashionMNIST" / "raw")
    (tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ConfigError, match=r"incomplete \(t10k-labels-idx1-ubyte is missing\)"):
        load("fashion_mnist", tmp_path)


def test_altered_cifar_files_are_named_and_not_unpickled(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    write_cifar(folder, ["train", "test"], "fine_labels", 100)
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": []}))
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", datasets.CIFAR100.meta | {"md5": md5["meta"]})
    load("cifar100", tmp_path)  # with these checksums it is whole
    (folder / "test").write_bytes((folder / "test").read_bytes()[:-1])
    monkeypatch.setattr(pickle, "load", None)
    with pytest.raises(
        ConfigError, match=rf"cifar100 is damaged \(test is truncated or altered\) in {folder}\. Set dow"
    ):
        load("cifar100", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "length", "why"),
    [
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte", 100, "100 bytes, where its header promises 7856"),
        ("fashion_mnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte", 17, "17 bytes, where its header promises 18"),
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte", 9, "it has no IDX header"),
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte", 0, "it has no IDX header"),
        (
            "stl10",
            "stl10_binary/test_X.bin",
            3 * 96 * 96,
            "27648 bytes, where the 4 labels of test_y.bin promise 110592",
        ),
        ("stl10", "stl10_binary/train_X.bin", 1, "1 bytes, where the 6 labels of train_y.bin promise 165888"),
    ],
)
def test_truncated_files_are_named(tmp_path, name, file, length, why):
    # 10 images of 28 x 28 after a header of 16 bytes; 10 labels after one of 8.
    write_fashion(tmp_path / "FashionMNIST" / "raw")
    write_stl10(tmp_path / "stl10_binary")
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:length])
    with pytest.raises(ConfigError, match=rf"{tmp_path / file} is truncated or damaged: {why}\. Put the whole file"):
        load(name, tmp_path)


def test_labels_that_do_not_fit_the_images_are_refused(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    write_fashion(folder)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(9, np.uint8)))
    with pytest.raises(ConfigError, match=r"fashion_mnist is damaged: 10 images have 9 labels up to 0\."):
        load("fashion_mnist", tmp_path)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(1, 11).astype(np.uint8)))
    with pytest.raises(ConfigError, match=r"fashion_mnist is damaged: 10 images have 10 labels up to 10\."):
        load("fashion_mnist", tmp_path)
    for kind in ("X", "y"):
        (tmp_path / "stl10_binary").mkdir(exist_ok=True)
        for part in ("train", "test"):
            (tmp_path / "stl10_binary" / f"{part}_{kind}.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"stl10 is damaged: 0 images have 0 labels"):
        load("stl10", tmp_path)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100", "stl10"])
def test_download_without_a_network(tmp_path, monkeypatch, name):
    def offline(self):
        raise OSError("no route\n to host")

    for reader in (datasets.MNIST, datasets.CIFAR10, datasets.STL10):
        monkeypatch.setattr(reader, "download", offline)
    with pytest.raises(ConfigError, match=rf"{name} could not be downloaded \(no route to host\) to {tmp_path}"):
        load(name, tmp_path, download=True)


def test_download_fetches_what_is_missing(tmp_path, monkeypatch):
    made = []
    folder = tmp_path / "FashionMNIST" / "raw"
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: made or made.extend(write_fashion(folder)))
    np.testing.assert_array_equal(load("fashion_mnist", tmp_path, download=True).train.images[:, 0].numpy(), made[0])


def test_unknown_names_list_the_known():
    known = "cifar10, cifar100, fashion_mini, fashion_mnist, folder:PATH, .*stl10, tiny_imagenet"
    with pytest.raises(ConfigError, match=rf"unknown data set 'cifar' at data\.dataset\..*Known: {known}\."):
        load("cifar")
    with pytest.raises(ConfigError, match=r"unknown data set 'x' at spec\.dataset"):
        data.info_of(DataConfig(dataset="x"), "spec")


@pytest.mark.parametrize("name", data.DATASETS)
def test_every_entry_is_consistent(name):
    info = data.DATASETS[name]
    assert info.name == name
    assert len(info.mean) == len(info.std) == info.in_channels
    assert all(0 < value < 1 for value in info.mean + info.std)


def test_overrides_take_the_place_of_what_is_known():
    info = data.info_of(DataConfig(dataset="cifar10", image_size=64, std=(0.1, 0.2, 0.3)))
    assert (info.image_size, info.mean, info.std) == (64, data.DATASETS["cifar10"].mean, (0.1, 0.2, 0.3))
    with pytest.raises(
        ConfigError, match=r"spec\.mean must have a value for each of the 1 channels of fashion_mini, but"
    ):
        data.info_of(DataConfig(dataset="fashion_mini", mean=(0.1, 0.2)), "spec")

import gc
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

from kdtrain import batches, data, resized_crops
from kdtrain.batches import Batches
from kdtrain.config import ConfigError, DataConfig, MethodRef, Recipe, TrialConfig, Where
from kdtrain.data import imagenet
from kdtrain.data.dataset import Info, Look
from kdtrain.draws import Stream

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WNIDS = ("n01440764", "n01443537", "n02102040")
INFO = Info(
    name="imagenet", num_classes=3, in_channels=3, image_size=32, mean=MEAN, std=STD, open=imagenet.open_
)  # fmt: skip
NORMALISE = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def write(root, wnids=WNIDS, train=5, val=2):
    """Small JPEGs of several sizes, smooth as photographs are. The class folders look a day old."""
    rng = np.random.default_rng(0)
    for split, n in (("train", train), ("val", val)):
        for wnid in reversed(wnids):
            folder = root / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            for i in rng.permutation(n):
                coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
                size = (int(rng.integers(40, 90)), int(rng.integers(40, 90)))
                coarse.resize(size, Image.BICUBIC).save(folder / f"{wnid}_{i}.JPEG", quality=90)
            os.utime(folder, (1e9, 1e9))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data set that no test changes."""
    root = tmp_path_factory.mktemp("data")
    write(root)
    return root


@pytest.fixture
def own(root, tmp_path):
    """A copy of it for one test."""
    shutil.copytree(root / "imagenet", tmp_path / "imagenet")
    return tmp_path


def load(root, cpus=1, info=INFO, **where):
    return info.open(info, Where(data_root=str(root), cpus=cpus, **where), CPU)


def original(root, split):
    """torchvision's reader: [(uint8 [3, H, W], label)]."""
    folder = datasets.ImageFolder(root / "imagenet" / split, v2.PILToTensor())
    return [folder[i] for i in range(len(folder))]


def views_of(source, indices, stream=Stream.VIEWS, turns=0, seed=7, epoch=2, augment=True):
    ((images,),) = source.look(seed, epoch, [[Look(torch.tensor(indices), stream, turns)]], augment)
    return images


@pytest.fixture
def trial(root, monkeypatch):
    """Batches of a trial whose method has partners and turned images, opened as trials do."""
    monkeypatch.setitem(data.DATASETS, "imagenet", INFO)
    monkeypatch.setattr(batches.methods, "partners", lambda ref: True)
    monkeypatch.setattr(batches.methods, "rotated", lambda ref: True)

    def build(cpus=1, seed=3, view_seed=None):
        config = TrialConfig(
            data=DataConfig(dataset="imagenet", val_size=3),
            train=Recipe(batch_size=5),
            student="resnet8",
            method=MethodRef(name="vanilla"),
            seed=seed,
            view_seed=view_seed,
        )
        return Batches(data.load(config.data, Where(data_root=str(root), cpus=cpus), CPU), config)

    return build


def everything(trial, epoch):
    """All tensors of an epoch and of the passes over the splits after it."""
    tensors = []
    for batch, partner in trial.epoch(epoch, epoch):
        tensors += [batch.images, batch.labels, batch.indices, partner]
    for split in ("train", "val", "test"):
        tensors += [part for batch in trial.plain(split) for part in (batch.images, batch.labels)]
    return tensors


def equal(some, others):
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("split", ["train", "val"])
def test_plain_images_and_labels_are_those_of_torchvision(root, split):
    source = load(root).train if split == "train" else load(root).test
    expected = original(root, split)
    assert source.labels.tolist() == [label for _, label in expected]
    (images,) = source.plain([torch.arange(len(expected))])
    transform = v2.Compose([v2.Resize(37), v2.CenterCrop(32), NORMALISE])  # 32 * 256 / 224 = 36.57
    torch.testing.assert_close(images, torch.stack([transform(image) for image, _ in expected]), rtol=0, atol=2e-6)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stream", [Stream.VIEWS, Stream.PARTNER_VIEWS, Stream.TURNED_180])
@pytest.mark.parametrize("turns", [0, 1])
def test_views_are_torchvisions_crop_and_flip_of_the_box_drawn(root, stream, turns):
    images, indices = original(root, "train"), [3, 0, 14, 3]
    flips = []
    for index, view in zip(indices, views_of(load(root).train, indices, stream, turns), strict=True):
        image, drawn = images[index][0], resized_crops.numbers(7, 2, index, stream)
        upright = drawn if stream is not Stream.TURNED_180 else resized_crops.numbers(7, 2, index, Stream.VIEWS)
        flips.append(resized_crops.flipped(upright))
        crop = v2.functional.resized_crop(image, *resized_crops.box(drawn, *image.shape[1:]), [32, 32])
        crop = v2.functional.horizontal_flip(crop) if flips[-1] else crop
        torch.testing.assert_close(view, torch.rot90(NORMALISE(crop), turns, (1, 2)), rtol=0, atol=2e-6)
    assert True in flips
    assert False in flips


def test_without_augmentation_views_are_the_plain_images(root):
    source = load(root).train
    (plain,) = source.plain([torch.tensor([4, 9])])
    assert torch.equal(views_of(source, [4, 9], augment=False), plain)
    assert torch.equal(views_of(source, [4, 9], turns=1, augment=False), torch.rot90(plain, 1, (2, 3)))


@pytest.mark.parametrize("size", [48, 64])
def test_images_have_the_size_of_the_trial(root, size, monkeypatch):
    monkeypatch.setitem(data.DATASETS, "imagenet", INFO)
    opened = data.load(DataConfig(dataset="imagenet", image_size=size), Where(data_root=str(root)), CPU)
    (plain,) = opened.test.plain([torch.arange(2)])
    assert views_of(opened.train, [0]).shape[1:] == plain.shape[1:] == (3, size, size)


def test_one_channel_is_pils_grey(root):
    info = Info(**{**vars(INFO), "in_channels": 1, "mean": (0.0,), "std": (1 / 255,)})
    grey = datasets.ImageFolder(root / "imagenet" / "val", v2.Compose([v2.Grayscale(), v2.PILToTensor()]))
    transform = v2.Compose([v2.Resize(37), v2.CenterCrop(32)])
    expected = torch.stack([transform(grey[i][0]) for i in range(len(grey))])
    (images,) = load(root, info=info).test.plain([torch.arange(6)])
    torch.testing.assert_close(images, expected.float(), rtol=0, atol=1e-4)
    assert views_of(load(root, info=info).train, [0]).shape == (1, 1, 32, 32)


def test_an_epoch_is_the_same_again_and_in_a_resumed_trial(trial):
    first = trial()
    epochs = [everything(first, epoch) for epoch in (1, 2)]
    assert not equal(*epochs)
    assert equal(everything(first, 2), epochs[1])
    assert equal(everything(trial(), 2), epochs[1])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one processor
def test_batches_do_not_depend_on_the_number_of_processes(trial):
    assert equal(everything(trial(cpus=3), 1), everything(trial(cpus=1), 1))


def test_views_do_not_depend_on_the_order_of_the_images(trial):
    seen = []
    for seed in (3, 4):
        shown = {}
        for batch, _ in trial(seed=seed, view_seed=0).epoch(1, 1):
            shown.update(zip(batch.indices.tolist(), batch.images, strict=False))  # the first are not turned
        seen.append(shown)
    assert list(seen[0]) != list(seen[1])
    assert all(torch.equal(seen[0][index], seen[1][index]) for index in range(15) if index in seen[0])


@pytest.mark.parametrize("cpus", [1, 2])
def test_random_numbers_of_the_process_are_left_alone(root, cpus):
    before = torch.get_rng_state()
    views_of(load(root, cpus).train, [0, 1])
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_end_with_the_pass_even_if_it_is_left_early(root):
    # What stays is the server that processes are forked off, and Python's resource tracker.
    source = load(root, cpus=2).train
    looks = [[Look(torch.tensor([i]), Stream.VIEWS)] for i in range(15)]
    list(source.look(0, 1, looks))
    resting = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(KeyboardInterrupt):
        leave(source.look(0, 1, looks))
    gc.collect()
    assert {child.pid for child in psutil.Process().children(recursive=True)} == resting


def leave(passing):
    for _ in passing:
        assert len(psutil.Process().children(recursive=True)) == 3
        raise KeyboardInterrupt


KILLED = """
import time, torch
from kdtrain.config import Where
from kdtrain.data import imagenet
from kdtrain.data.dataset import Info
info = Info(name="imagenet", num_classes=3, in_channels=3, image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3, open=None)
source = imagenet.open_(info, Where(data_root={root!r}, cpus=2), torch.device("cpu")).train
passing = source.plain(torch.arange(15).split(1))
next(passing)
print("reading", flush=True)
time.sleep(60)
"""


def test_processes_end_if_the_training_process_is_killed(root):
    command = [sys.executable, "-c", KILLED.format(root=str(root))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"reading\n"
        below = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(below) == 3
    assert psutil.wait_procs(below, timeout=20)[1] == []


def test_two_passes_may_be_under_way_at_once(root):
    source = load(root, cpus=2).train
    chunks = torch.arange(15).split(4)
    for one, other in zip(source.plain(chunks), source.plain(chunks), strict=True):
        assert torch.equal(one, other)


def test_grey_and_cmyk_files_are_turned_to_rgb(own):
    first, second = sorted((own / "imagenet" / "train" / WNIDS[0]).iterdir())[:2]
    Image.new("L", (50, 40), 100).save(first)
    # Ink of 255 / 2 on three channels, with a key of 0: 255 - 127 light in each.
    Image.new("CMYK", (50, 40), (127, 127, 127, 0)).save(second)
    (images,) = load(own).train.plain([torch.tensor([0, 1])])
    pixels = images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    for image, value in zip(pixels * 255, (100, 128), strict=True):
        assert (image - value).abs().max() < 2


def damage(folder, number=2):
    """The first image cut in half; returns its path."""
    path = sorted(folder.iterdir())[number]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_damaged_image_is_named_when_it_is_met(own, cpus):
    path = damage(own / "imagenet" / "train" / WNIDS[1])  # place 5 + 2
    source = load(own, cpus).train
    passing = source.plain([torch.tensor([6]), torch.tensor([7])])
    next(passing)
    with pytest.raises(ConfigError, match=rf"^{path} is corrupt or truncated \(.*skip_corrupt = true") as error:
        next(passing)
    assert "\n" not in str(error.value)


def test_an_image_that_is_gone_is_named(own):
    source = load(own).train
    path = own / "imagenet" / "train" / WNIDS[0] / source.files[0].split("/")[1]
    path.unlink()
    with pytest.raises(ConfigError, match=rf"^{path} .*No such file"):
        list(source.plain([torch.tensor([0])]))


def test_skip_corrupt_leaves_damaged_images_out_and_names_them(own):
    paths = [damage(own / "imagenet" / "train" / WNIDS[1]), damage(own / "imagenet" / "val" / WNIDS[2], 0)]
    for opened in (load(own, skip_corrupt=True), load(own, cpus=2, skip_corrupt=True)):  # made, and kept
        assert list(opened.skipped) == [str(path.relative_to(own / "imagenet")) for path in paths]
        assert opened.train.labels.tolist() == [0] * 5 + [1] * 4 + [2] * 5
        assert opened.test.labels.tolist() == [0, 0, 1, 1, 2]
        assert sum(len(images) for images in opened.train.plain(torch.arange(14).split(4))) == 14
    assert load(own).skipped == ()


def test_a_class_of_damaged_images_only_is_refused(own):
    folder = own / "imagenet" / "val" / WNIDS[0]
    for number in range(2):
        damage(folder, number)
    with pytest.raises(ConfigError, match=rf"but got none, or 2 that cannot be read in {folder}\."):
        load(own, skip_corrupt=True)


def flatten_val(folder):
    shutil.rmtree(folder / "val")
    (folder / "val").mkdir()
    (folder / "val" / "ILSVRC2012_val_00000001.JPEG").touch()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: shutil.rmtree(f),
            r"needs the folder train in .*/imagenet\. .* in 3 class folders each: train/<wnid>/\*",
        ),
        (lambda f: shutil.rmtree(f / "val"), r"imagenet needs the folder val in .*/imagenet\. Put"),
        (flatten_val, r"must be sorted into class folders val/<wnid>/\*\.JPEG, but .*/val holds them as downloaded\."),
        (lambda f: shutil.rmtree(f / "train" / WNIDS[0]), r"must have 3 class folders in .*/train, but got 2\."),
        (lambda f: (f / "val" / "n09").mkdir(), r"must have 3 class folders in .*/val, but got 4\."),
        (
            lambda f: (f / "val" / WNIDS[2]).rename(f / "val" / "n09"),
            rf"must have the same class folders, but got {WNIDS[2]} only in .*/train\.",
        ),
        (
            lambda f: [path.unlink() for path in (f / "train" / WNIDS[1]).iterdir()],
            rf"each class must have \*\.JPEG images, but got none in .*/train/{WNIDS[1]}\.",
        ),
    ],
)
def test_bad_layouts_are_refused_in_one_line(own, spoil, message):
    spoil(own / "imagenet")
    with pytest.raises(ConfigError, match=message) as error:
        load(own)
    assert "\n" not in str(error.value)


def test_other_files_are_no_images_and_hidden_folders_no_classes(own):
    train = own / "imagenet" / "train"
    (train / ".ipynb_checkpoints").mkdir()
    (train / "LOC_synset_mapping.txt").touch()
    (train / WNIDS[0] / "._n01440764_0.JPEG").touch()
    (train / WNIDS[0] / "Thumbs.db").touch()
    assert len(load(own).train.labels) == 15


def test_the_list_is_kept_until_a_class_folder_changes(own, monkeypatch):
    load(own)
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "_list", None)  # which could not be called
        assert len(load(own).train.labels) == 15
    assert [path.suffix for path in (own / "prepared").glob("imagenet-*")] == [".json"]
    folder = own / "imagenet" / "train" / WNIDS[2]
    shutil.copy(next(folder.iterdir()), folder / "n02102040_9.JPEG")
    assert load(own).train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 6


def test_the_list_is_kept_in_the_cache_folder(root, tmp_path):
    load(root, cache=str(tmp_path / "cache"))
    (path,) = (tmp_path / "cache").glob("imagenet-*.json")
    assert list(json.loads(path.read_text())["train"]) == list(WNIDS)


def test_a_cache_that_cannot_be_written_is_named(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"{tmp_path / 'file'} .*Set `cache`"):
        load(root, cache=str(tmp_path / "file"))


def test_a_thousand_classes(tmp_path):
    wnids = [f"n{7919 * i % 10**8:08}" for i in range(1000)]
    for split in ("train", "val"):
        for wnid in wnids:
            (tmp_path / "imagenet" / split / wnid).mkdir(parents=True)
            (tmp_path / "imagenet" / split / wnid / "a.JPEG").touch()
    opened = load(tmp_path, info=Info(**{**vars(INFO), "num_classes": 1000}))
    assert opened.train.labels.tolist() == opened.test.labels.tolist() == list(range(1000))
    assert opened.train.files == [f"{wnid}/a.JPEG" for wnid in sorted(wnids)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("cpus", [1, 2])
def test_images_on_cuda_are_those_on_the_cpu(root, cpus):
    device = torch.device("cuda")
    on_gpu = INFO.open(INFO, Where(data_root=str(root), cpus=cpus), device).train
    look = Look(torch.tensor([3, 0], device=device), Stream.VIEWS)
    ((images,),) = on_gpu.look(7, 2, [[look]])
    assert images.device.type == on_gpu.labels.device.type == "cuda"
    assert images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images.cpu(), views_of(load(root).train, [3, 0]))

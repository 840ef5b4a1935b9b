import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import utils
from torchvision.transforms import v2

from kdtrain import data
from kdtrain.config import ConfigError, DataConfig, Where

RNG = np.random.default_rng(0)
WNIDS = ["n03", "n01", "n02"]  # wnids.txt is not sorted


def load(root, **fields):
    config = DataConfig(dataset="tiny_imagenet", image_size=fields.pop("image_size", None))
    return data.load(config, Where(data_root=str(root), **fields), torch.device("cpu"))


def jpeg(grey=False):
    """A file's bytes, and the RGB pixels [H, W, C] that are decoded from them."""
    blocks = RNG.integers(0, 256, (8, 8) if grey else (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(file, "JPEG")
    pixels = np.asarray(Image.open(file))
    return file.getvalue(), np.stack([pixels] * 3, 2) if grey else pixels


@pytest.fixture
def made():
    """{name in the archive: bytes} and {name: pixels}, laid out as the published archive."""
    files, pixels = {"wnids.txt": "\n".join(WNIDS).encode() + b"\n", "words.txt": b"n01\tgoldfish\n"}, {}
    names = [f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(2)]
    names += [f"val/images/val_{i}.JPEG" for i in range(4)]
    for i, name in enumerate([*names, "test/images/test_0.JPEG"]):
        files[name], pixels[name] = jpeg(grey=i % 4 == 1)
    wnids = ["n02", "n03", "n01", "n02"]  # of val_0 to val_3
    lines = [f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n" for i, wnid in enumerate(wnids)]
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["train/n01/n01_boxes.txt"] = b"n01_0.JPEG\t0\t32\t44\t62\n"
    return files, pixels


def pack(root, files):
    root.mkdir(exist_ok=True)
    with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in files.items():
            archive.writestr(f"tiny-imagenet-200/{name}", contents)


def unpack(root, files):
    for name, contents in files.items():
        path = root / "tiny-imagenet-200" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)


@pytest.mark.parametrize("lay", [pack, unpack])
def test_as_downloaded_with_validation_images_as_the_test_split(tmp_path, made, lay):
    files, pixels = made
    lay(tmp_path, files)
    got = load(tmp_path)
    train = [f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in sorted(WNIDS) for i in range(2)]
    np.testing.assert_array_equal(got.train.images.permute(0, 2, 3, 1).numpy(), np.stack([pixels[n] for n in train]))
    assert got.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    # By class: val_2 is of n01, val_0 and val_3 of n02, val_1 of n03.
    test = [f"val/images/val_{i}.JPEG" for i in (2, 0, 3, 1)]
    np.testing.assert_array_equal(got.test.images.permute(0, 2, 3, 1).numpy(), np.stack([pixels[n] for n in test]))
    assert got.test.labels.tolist() == [0, 1, 1, 2]
    assert got.skipped == ()


def test_another_size_is_what_torchvision_makes_of_each_image(tmp_path, made):
    files, pixels = made
    pack(tmp_path, files)
    first = v2.functional.resize(Image.fromarray(pixels["train/n01/images/n01_0.JPEG"]), [32, 32])
    np.testing.assert_array_equal(load(tmp_path, image_size=32).train.images[0].permute(1, 2, 0).numpy(), first)


def test_an_unpacked_folder_that_changes_is_read_again(tmp_path, made):
    files, pixels = made
    unpack(tmp_path, files)
    load(tmp_path)
    name = "train/n01/images/n01_0.JPEG"
    contents, pixels[name] = jpeg()
    unpack(tmp_path, {name: contents})
    np.testing.assert_array_equal(load(tmp_path).train.images[0].permute(1, 2, 0).numpy(), pixels[name])


def test_missing_says_where_it_is_looked_for(tmp_path):
    message = (
        rf"neither {tmp_path}/tiny-imagenet-200 nor {tmp_path}/tiny-imagenet-200\.zip is there\. Set download = true"
    )
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


def test_download(tmp_path, made, monkeypatch):
    asked = []

    def fetch(url, root, filename=None, md5=None):
        asked.append((url, md5))
        pack(tmp_path, made[0])

    monkeypatch.setattr(utils, "download_url", fetch)
    assert len(load(tmp_path, download=True).train.labels) == 6
    assert len(load(tmp_path, download=True).train.labels) == 6
    assert asked == [("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")]


def test_download_without_a_network(tmp_path, monkeypatch):
    def offline(*arguments, **keywords):
        raise OSError("no route\n to host")

    monkeypatch.setattr(utils, "download_url", offline)
    with pytest.raises(
        ConfigError, match=rf"tiny_imagenet could not be downloaded \(no route to host\) to {tmp_path}\."
    ):
        load(tmp_path, download=True)


@pytest.mark.parametrize("length", [0, 100, -1])
def test_a_truncated_archive_is_named(tmp_path, made, length):
    pack(tmp_path, made[0])
    archive = tmp_path / "tiny-imagenet-200.zip"
    archive.write_bytes(archive.read_bytes()[:length])
    with pytest.raises(ConfigError, match=rf"{archive} is not a whole zip file \("):
        load(tmp_path)


@pytest.mark.parametrize("lay", [pack, unpack])
def test_a_truncated_image_is_named_or_left_out(tmp_path, made, lay):
    files, _ = made
    name = "train/n02/images/n02_1.JPEG"
    files[name] = files[name][:-100]
    lay(tmp_path, files)
    root = "tiny-imagenet-200.zip" if lay is pack else "tiny-imagenet-200"
    with pytest.raises(
        ConfigError, match=rf"{tmp_path}/{root}/{name} is corrupt or truncated \(.*set skip_corrupt = true"
    ):
        load(tmp_path)
    for _ in range(2):  # prepared and opened
        got = load(tmp_path, skip_corrupt=True)
        assert got.skipped == (name,)
        assert got.train.labels.tolist() == [0, 0, 1, 2, 2]
        assert len(got.train.images) == 5


def test_an_image_that_fails_its_checksum_in_the_archive_is_corrupt(tmp_path, made):
    files, _ = made
    pack(tmp_path, {})
    name = "val/images/val_1.JPEG"
    with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as archive:  # stored, not compressed
        for file, contents in files.items():
            archive.writestr(f"tiny-imagenet-200/{file}", contents)
    raw = (tmp_path / "tiny-imagenet-200.zip").read_bytes()
    place = raw.index(files[name]) + 50
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
    with pytest.raises(ConfigError, match=rf"{name} is corrupt or truncated \(Bad CRC-32"):
        load(tmp_path)


def test_a_class_emptied_by_skipping_is_an_error(tmp_path, made):
    files, _ = made
    for i in range(2):
        files[f"train/n02/images/n02_{i}.JPEG"] = b"\xff\xd8\xff nothing"
    pack(tmp_path, files)
    with pytest.raises(ConfigError, match=r"skip_corrupt leaves a class without images: all like .*n02_0\.JPEG"):
        load(tmp_path, skip_corrupt=True)


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("wnids.txt", None, r"tiny_imagenet is incomplete: .*/wnids\.txt is missing"),
        ("wnids.txt", b"\n", r"wnids\.txt is empty"),
        ("wnids.txt", b"\xff", r"wnids\.txt is damaged"),
        ("wnids.txt", b"n01\nn02\nn03\nn04\n", r"no image of class n04 in .*train"),
        ("val/val_annotations.txt", None, r"val_annotations\.txt is missing"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn9\t0", r"a line of .* has no known class: 'val_0\.JPEG\\tn9\\t0'"),
        ("val/val_annotations.txt", b"val_9.JPEG\tn01", r"a line of .* names an image that is not there: 'val_9"),
        ("val/val_annotations.txt", b"val_0.JPEG", r"has no known class: 'val_0\.JPEG'"),
    ],
)
@pytest.mark.parametrize("lay", [pack, unpack])
def test_what_is_wrong_with_the_lists_is_named(tmp_path, made, lay, name, contents, message):
    files, _ = made
    del files[name]
    lay(tmp_path, files | ({} if contents is None else {name: contents}))
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)

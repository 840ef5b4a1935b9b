import hashlib
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from kdtrain import data
from kdtrain.config import ConfigError, DataConfig, FolderRef, Where
from kdtrain.data import folder
from kdtrain.data.images import Corrupt, decode

RNG = np.random.default_rng(0)


def pixels(height=40, width=40, channels=3):
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path, array=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels() if array is None else array)
    image.save(path, **options)
    return path


def write(root, parts=("train", "test"), classes=("cat", "dog"), n=2):
    """PNG files of random images; returns {name: pixels}."""
    made = {f"{part}/{name}/{i}.png": pixels() for part in parts for name in classes for i in range(n)}
    for name, array in made.items():
        save(root / name, array)
    return made


@pytest.fixture
def where(tmp_path):
    return Where(data_root=str(tmp_path / "data"))


def load(root, where, planned=None, **fields):
    """As a trial does; `planned`: what `reference` said when it was planned, by default now."""
    ref, size = planned or folder.reference(f"folder:{root}", where)
    config = DataConfig(dataset=f"folder:{root}", **{"folder": ref, "image_size": size} | fields)
    return data.load(config, where, torch.device("cpu"))


def nhwc(source):
    return source.images.permute(0, 2, 3, 1).numpy()


class TestLayout:
    @pytest.mark.parametrize("part", ["test", "val"])
    def test_train_and_test_or_val(self, tmp_path, where, part):
        made = write(tmp_path / "pets", ("train", part))
        got = load(tmp_path / "pets", where)
        names = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(2)]
        np.testing.assert_array_equal(nhwc(got.train), [made[f"train/{name}"] for name in names])
        np.testing.assert_array_equal(nhwc(got.test), [made[f"{part}/{name}"] for name in names])
        assert got.train.labels.tolist() == got.test.labels.tolist() == [0, 0, 1, 1]
        assert (got.info.num_classes, got.info.in_channels, got.info.image_size) == (2, 3, 40)

    def test_test_comes_before_val(self, tmp_path, where):
        write(tmp_path, ("train", "val"), n=2)
        made = write(tmp_path, ("test",), n=1)
        np.testing.assert_array_equal(nhwc(load(tmp_path, where).test), list(made.values()))

    def test_classes_alone_give_a_fifth_of_each_as_test_split(self, tmp_path, where):
        for name, n in (("a", 10), ("b", 2), ("c", 13)):
            for i in range(n):
                save(tmp_path / "x" / name / f"{i:02}.png", np.full((8, 8, 3), i, np.uint8))
        got = load(tmp_path / "x", where)
        # 10 / 5, at least 1 of 2, round(2.6)
        assert got.test.labels.bincount().tolist() == [2, 1, 3]
        assert got.train.labels.bincount().tolist() == [8, 1, 10]
        for label, n in enumerate((10, 2, 13)):
            both = [part.images[part.labels == label, 0, 0, 0].tolist() for part in (got.train, got.test)]
            assert sorted(both[0] + both[1]) == list(range(n))
        assert torch.equal(load(tmp_path / "x", where).test.images, got.test.images)

    def test_hidden_files_and_other_files_are_ignored_and_nested_ones_are_not(self, tmp_path, where):
        write(tmp_path / "x")
        save(tmp_path / "x" / "train" / "cat" / "sub" / "9.JPG")
        (tmp_path / "x" / "train" / "readme.txt").write_text("by class")
        (tmp_path / "x" / "train" / "dog" / "Thumbs.db").write_text("")
        (tmp_path / "x" / "train" / "dog" / "._1.png").write_text("")
        save(tmp_path / "x" / "train" / ".ipynb_checkpoints" / "1.png")
        save(tmp_path / "x" / "train" / "dog" / ".trash" / "1.png")
        found = folder.layout(tmp_path / "x")
        assert found.classes == ("cat", "dog")
        assert found.train.names == [
            f"train/{n}" for n in ("cat/0.png", "cat/1.png", "cat/sub/9.JPG", "dog/0.png", "dog/1.png")
        ]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda root: root.rename(root.with_name("y")), r"there is no folder .*/x\."),
            (lambda root: remove(root / "test"), r"neither test nor val: folder:.*/x/train takes a fifth"),
            (lambda root: remove(root / "train" / "cat"), r"at least two classes, but has dog\."),
            (lambda root: [remove(root / "train" / name) for name in ("cat", "dog")], r"two classes, but has none\."),
            (lambda root: remove(root / "train" / "cat" / "0.png"), r"x/train/cat has no images \(\.bmp "),
            (lambda root: write(root, ("test",), ("eel",)), r"same classes in train and test, but eel is in test only"),
            (
                lambda root: write(root, ("train",), ("eel",)),
                r"same classes in train and test, but eel is in train only",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path, where, change, message):
        write(tmp_path / "x", n=1)
        change(tmp_path / "x")
        with pytest.raises(ConfigError, match=message) as caught:
            folder.reference(f"folder:{tmp_path / 'x'}", where)
        assert "\n" not in str(caught.value)

    def test_a_link_to_nowhere_is_named(self, tmp_path, where):
        write(tmp_path / "x")
        (tmp_path / "x" / "train" / "cat" / "5.png").symlink_to(tmp_path / "gone.png")
        with pytest.raises(ConfigError, match=r"train/cat/5\.png cannot be read \(No such file or directory\)"):
            folder.reference(f"folder:{tmp_path / 'x'}", where)

    def test_one_image_cannot_be_divided(self, tmp_path, where):
        write(tmp_path, ("x",), n=1)
        with pytest.raises(ConfigError, match=r"x/cat has one image, but training and test split need one each"):
            folder.reference(f"folder:{tmp_path / 'x'}", where)


def remove(path):
    for inner in sorted(path.rglob("*"), reverse=True):
        inner.rmdir() if inner.is_dir() else inner.unlink()
    path.rmdir() if path.is_dir() else path.unlink()


class TestReference:
    def test_sha256_is_of_paths_and_contents(self, tmp_path, where):
        write(tmp_path / "x")
        expected = hashlib.sha256()
        for path in sorted((tmp_path / "x").rglob("*.png")):
            for part in (str(path.relative_to(tmp_path / "x")).encode(), path.read_bytes()):
                expected.update(hashlib.sha256(part).digest())
        ref, _ = folder.reference(f"folder:{tmp_path / 'x'}", where)
        assert ref == FolderRef(sha256=expected.hexdigest(), num_classes=2)

    def test_it_is_the_same_wherever_the_folder_lies(self, tmp_path, where):
        write(tmp_path / "x")
        before = folder.reference(f"folder:{tmp_path / 'x'}", where)
        (tmp_path / "x").rename(tmp_path / "moved")
        assert folder.reference(f"folder:{tmp_path / 'moved'}", where) == before

    def test_files_are_read_once(self, tmp_path, where, monkeypatch):
        write(tmp_path / "x")
        before = folder.reference(f"folder:{tmp_path / 'x'}", where)
        monkeypatch.setattr(folder, "_identity", None)
        assert folder.reference(f"folder:{tmp_path / 'x'}", where) == before

    def test_a_touched_file_is_read_again_and_a_changed_one_is_another_folder(self, tmp_path, where):
        write(tmp_path / "x")
        name, file = f"folder:{tmp_path / 'x'}", tmp_path / "x" / "train" / "cat" / "0.png"
        before = folder.reference(name, where)
        os.utime(file, ns=(1, 1))
        assert folder.reference(name, where) == before
        save(file)
        assert folder.reference(name, where) != before

    def test_a_damaged_note_is_computed_again(self, tmp_path, where):
        write(tmp_path / "x")
        before = folder.reference(f"folder:{tmp_path / 'x'}", where)
        for note in (tmp_path / "data" / "prepared").glob("folder-*.json"):
            note.write_text("{")
        assert folder.reference(f"folder:{tmp_path / 'x'}", where) == before

    @pytest.mark.parametrize(
        ("shapes", "size"),
        [
            ([(28, 28)] * 4, 28),
            ([(64, 64)] * 4, 64),
            ([(4, 4)] * 4, 32),  # networks need 8
            ([(65, 65)] * 4, 64),
            ([(28, 28)] * 3 + [(30, 30)], 32),
            ([(40, 28)] * 4, 32),
            ([(90, 100), (300, 100), (200, 140), (150, 260)], 96),  # the median of 90, 100, 140, 150 is 120
            ([(500, 375)] * 4, 224),
            ([(224, 300)] * 4, 224),
        ],
    )
    def test_image_size(self, tmp_path, where, shapes, size):
        for i, (height, width) in enumerate(shapes):
            save(tmp_path / "x" / "ab"[i % 2] / f"{i}.png", np.zeros((height, width, 3), np.uint8))
        assert folder.reference(f"folder:{tmp_path / 'x'}", where)[1] == size

    def test_an_unwritable_cache_is_named(self, tmp_path):
        write(tmp_path / "x")
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match=rf"cannot be written to {tmp_path}/file/c .*Set `cache` under \[run\]"):
            folder.reference(f"folder:{tmp_path / 'x'}", Where(cache=str(tmp_path / "file" / "c")))


class TestInfo:
    REF = FolderRef(sha256="0" * 64, num_classes=7)

    def test_is_known_without_the_disk(self):
        info = data.info_of(DataConfig(dataset="folder:/nowhere", folder=self.REF, image_size=48))
        assert (info.name, info.num_classes, info.in_channels, info.image_size) == ("folder", 7, 3, 48)

    def test_needs_the_reference_and_the_size(self):
        with pytest.raises(ConfigError, match=r"data\.folder is required for the data set 'folder:/x'\."):
            data.info_of(DataConfig(dataset="folder:/x", image_size=32))
        with pytest.raises(ConfigError, match=r"spec\.image_size is required for the data set 'folder:/x'\."):
            data.info_of(DataConfig(dataset="folder:/x", folder=self.REF), "spec")
        with pytest.raises(ConfigError, match=r"data\.folder is for data sets `folder:PATH` only, but .* cifar10\."):
            data.info_of(DataConfig(dataset="cifar10", folder=self.REF))


class TestLoad:
    def test_mean_and_std_are_those_of_the_prepared_training_images(self, tmp_path, where):
        write(tmp_path / "x")
        got = load(tmp_path / "x", where)
        values = got.train.images.double() / 255
        np.testing.assert_allclose(got.info.mean, values.mean((0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(got.info.std, values.std((0, 2, 3), correction=0), rtol=1e-12)
        assert got.train.info is got.info
        (shown,) = got.train.plain([torch.arange(4)])
        torch.testing.assert_close(shown.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(shown.std((0, 2, 3), correction=0), torch.ones(3))

    def test_mean_and_std_given_are_kept(self, tmp_path, where):
        write(tmp_path / "x")
        own = load(tmp_path / "x", where).info
        got = load(tmp_path / "x", where, mean=(0.1, 0.2, 0.3)).info
        assert (got.mean, got.std) == ((0.1, 0.2, 0.3), own.std)

    def test_a_channel_that_never_changes_is_only_shifted(self, tmp_path, where):
        for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
            save(tmp_path / "x" / name, pixels() * np.array([1, 0, 1], np.uint8))
        got = load(tmp_path / "x", where)
        assert got.info.std[1] == 1
        assert torch.isfinite(next(got.train.plain([torch.arange(2)]))).all()

    def test_mixed_sizes_are_resized_and_cropped(self, tmp_path, where):
        made = {name: pixels(*shape) for name, shape in (("a/0", (50, 70)), ("a/1", (90, 41)), ("b/0", (33, 33)))}
        for part in ("train", "test"):
            for name, array in made.items():
                save(tmp_path / "x" / part / f"{name}.png", array)
        got = nhwc(load(tmp_path / "x", where, image_size=32).train)
        for image, array in zip(got, made.values(), strict=True):
            expected = v2.functional.center_crop(v2.functional.resize(Image.fromarray(array), 32), [32, 32])
            np.testing.assert_array_equal(image, expected)

    def test_changed_since_planned_is_refused(self, tmp_path, where):
        write(tmp_path / "x")
        planned = folder.reference(f"folder:{tmp_path / 'x'}", where)
        load(tmp_path / "x", where, planned)
        save(tmp_path / "x" / "train" / "cat" / "0.png")
        with pytest.raises(
            ConfigError, match=r"folder:.*/x has changed since it was planned with: .* SHA-256 [0-9a-f]{16}\."
        ):
            load(tmp_path / "x", where, planned)

    def test_a_touched_or_moved_folder_is_not_prepared_again(self, tmp_path, where):
        write(tmp_path / "x")
        load(tmp_path / "x", where)
        os.utime(tmp_path / "x" / "train" / "cat" / "0.png", ns=(1, 1))
        (tmp_path / "x").rename(tmp_path / "moved")
        load(tmp_path / "moved", where)
        assert len(list((tmp_path / "data" / "prepared").glob("folder-*/meta.json"))) == 1


class TestCorrupt:
    @pytest.fixture
    def root(self, tmp_path):
        """A folder with one truncated image; its header is whole."""
        write(tmp_path / "x", n=3)
        path = tmp_path / "x" / "train" / "cat" / "1.png"
        path.write_bytes(path.read_bytes()[:2000])
        return tmp_path / "x"

    def test_is_named(self, root, where):
        message = rf"{root}/train/cat/1\.png is corrupt or truncated \(.*set skip_corrupt = true under \[data\]"
        with pytest.raises(ConfigError, match=message):
            load(root, where)

    @pytest.mark.parametrize("contents", [b"", b"not an image", b"GIF89a"])
    def test_a_file_without_a_header_is_named_when_planned(self, root, where, contents):
        (root / "test" / "dog" / "0.png").write_bytes(contents)
        with pytest.raises(
            ConfigError, match=r"test/dog/0\.png is corrupt or truncated \(no image format that is known\)"
        ):
            folder.reference(f"folder:{root}", where)

    def test_is_left_out_and_told(self, root, where):
        skip = where.model_copy(update={"skip_corrupt": True})
        (root / "test" / "dog" / "0.png").write_bytes(b"")
        for _ in range(2):
            got = load(root, skip)
            assert got.skipped == ("train/cat/1.png", "test/dog/0.png")
            assert got.train.labels.tolist() == [0, 0, 1, 1, 1]
            assert got.test.labels.tolist() == [0, 0, 0, 1, 1]
        with pytest.raises(ConfigError, match=r"train/cat/1\.png is corrupt"):
            load(root, where, folder.reference(f"folder:{root}", skip))

    def test_skipping_does_not_change_what_the_folder_is(self, root, where):
        skip = where.model_copy(update={"skip_corrupt": True})
        assert folder.reference(f"folder:{root}", skip) == folder.reference(f"folder:{root}", where)

    def test_an_emptied_class_is_an_error(self, root, where):
        for i in range(3):
            (root / "train" / "cat" / f"{i}.png").write_bytes(b"")
        with pytest.raises(
            ConfigError, match=r"leaves a class without images: all like .*train/cat/0\.png are corrupt"
        ):
            load(root, where.model_copy(update={"skip_corrupt": True}))

    def test_more_images_than_are_decoded_at_once(self, tmp_path, where, monkeypatch):
        monkeypatch.setattr("kdtrain.data.images.CHUNK", 2)
        made = write(tmp_path / "x", n=5)
        for i in (2, 3):  # a whole chunk: 0 and 1, 2 and 3, 4 and dog/0, ...
            (tmp_path / "x" / "train" / "cat" / f"{i}.png").write_bytes(b"")
        got = load(tmp_path / "x", where.model_copy(update={"skip_corrupt": True}))
        left = [
            array
            for name, array in made.items()
            if name.startswith("train") and name[6:] not in ("cat/2.png", "cat/3.png")
        ]
        np.testing.assert_array_equal(nhwc(got.train), left)


def file_of(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


class TestDecode:
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "PPM"])
    def test_lossless_formats(self, kind):
        array = pixels(8, 8)
        options = {"lossless": True} if kind == "WEBP" else {}
        np.testing.assert_array_equal(decode(file_of(Image.fromarray(array), kind, **options), 8), array)

    def test_grey_and_16_bits(self):
        grey = pixels(8, 8)[..., 0]
        expected = np.stack([grey] * 3, 2)
        np.testing.assert_array_equal(decode(file_of(Image.fromarray(grey), "PNG"), 8), expected)
        # The lower byte is noise.
        wide = grey.astype(np.uint16) * 256 + pixels(8, 8)[..., 0]
        for kind in ("PNG", "TIFF"):
            np.testing.assert_array_equal(decode(file_of(Image.fromarray(wide), kind), 8), expected)

    def test_two_levels(self):
        flat = Image.new("1", (8, 8), 1)
        assert decode(file_of(flat, "PNG"), 8).tolist() == [[[255] * 3] * 8] * 8

    def test_palette_and_first_frame(self):
        red, blue = (Image.new("RGB", (8, 8), colour).quantize(2) for colour in ("red", "blue"))
        animated = file_of(red, "GIF", save_all=True, append_images=[blue])
        assert decode(animated, 8).tolist() == [[[255, 0, 0]] * 8] * 8

    def test_what_is_transparent_is_over_black(self):
        array = np.zeros((8, 8, 4), np.uint8)
        array[..., 0] = 200
        array[:4, :, 3] = 255
        got = decode(file_of(Image.fromarray(array), "PNG"), 8)
        assert got[:4].tolist() == [[[200, 0, 0]] * 8] * 4
        assert got[4:].tolist() == [[[0, 0, 0]] * 8] * 4
        array[..., 3] = 51  # a fifth: 40 of 200
        assert decode(file_of(Image.fromarray(array), "PNG"), 8)[0, 0].tolist() == [40, 0, 0]

    def test_transparent_palette(self):
        image = Image.new("P", (8, 8), 1)
        image.putpalette([9, 9, 9, 255, 0, 0])
        assert decode(file_of(image, "PNG", transparency=1), 8).max() == 0
        assert decode(file_of(image, "PNG", transparency=bytes([255, 255])), 8)[0, 0].tolist() == [255, 0, 0]

    def test_cmyk(self):
        got = decode(file_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), 8)
        assert got.tolist() == [[[255, 0, 0]] * 8] * 8

    # What a viewer does for each orientation: https://exiftool.org/TagNames/EXIF.html, 0x0112.
    @pytest.mark.parametrize(
        ("orientation", "upright"),
        [
            (1, lambda a: a),
            (2, lambda a: a[:, ::-1]),
            (3, lambda a: a[::-1, ::-1]),
            (4, lambda a: a[::-1]),
            (6, lambda a: np.rot90(a, -1)),
            (8, lambda a: np.rot90(a, 1)),
        ],
    )
    def test_exif_orientation(self, orientation, upright):
        array = pixels(8, 8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        np.testing.assert_array_equal(decode(file_of(Image.fromarray(array), "PNG", exif=exif), 8), upright(array))

    @pytest.mark.parametrize("shape", [(17, 30), (64, 20), (9, 9), (41, 40)])
    @pytest.mark.parametrize("size", [8, 16, 33])
    def test_size_as_torchvision_within_a_level(self, shape, size):
        array = pixels(*shape)
        got = decode(file_of(Image.fromarray(array), "PNG"), size)
        tensor = torch.from_numpy(array).permute(2, 0, 1).float()
        expected = v2.functional.center_crop(v2.functional.resize(tensor, size, antialias=True), [size, size])
        assert np.abs(got - expected.permute(1, 2, 0).numpy()).max() <= 1.01

    def test_floating_point_pixels_are_refused(self):
        with pytest.raises(Corrupt, match="floating-point numbers, whose range is not known"):
            decode(file_of(Image.new("F", (8, 8)), "TIFF"), 8)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
    def test_truncated_files_are_corrupt(self, kind):
        whole = file_of(Image.fromarray(pixels(64, 64)), kind)
        for length in (0, 4, 20, len(whole) // 2):
            with pytest.raises(Corrupt):
                decode(whole[:length], 32)

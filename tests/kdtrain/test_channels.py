"""`channels`: colour images in grey as torchvision and PIL make them, grey ones in three channels, and who they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from kdtrain import build, data, models
from kdtrain.config import ConfigError, DataConfig, MethodRef, Recipe, TrialConfig, Where
from kdtrain.data.dataset import Info, Look
from kdtrain.data.images import Chunk
from kdtrain.data.memory import Arrays, opener
from kdtrain.data.prepared import Contents
from kdtrain.data.prepared import opener as prepared
from kdtrain.draws import Stream
from kdtrain.loop import Training

CPU = torch.device("cpu")
SIZE = 16
# In levels of 0..255: normalised by these, images are their levels.
LEVELS = {"mean": (0.0,), "std": (1 / 255,)}


def random_images(n, channels, seed):
    """Of all colours; the first rows hold the corners of the cube, where weights that are wrong show most."""
    images = torch.randint(0, 256, (n, channels, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    corners = torch.cartesian_prod(*[torch.tensor([0, 255])] * channels).view(-1, channels)
    images[:, :, 0, : len(corners)] = corners.T
    return images.to(torch.uint8)


ARRAYS = {
    channels: Arrays(
        random_images(12, channels, 0), torch.arange(12) % 3, random_images(6, channels, 1), torch.arange(6) % 3
    )
    for channels in (1, 3)
}


def in_files(arrays):
    """The same images by way of the cache of prepared ones."""
    chunks = [
        Chunk(images.permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy())
        for images, labels in (arrays[:2], arrays[2:])
    ]
    return prepared(lambda where: [], lambda info, where: Contents(chunks[:1], chunks[1:]))


@pytest.fixture(autouse=True)
def sets(monkeypatch):
    """`grey` and `colour` in memory, `mapped` from the cache."""
    grey = {"mean": (0.4,), "std": (0.2,)}
    colour = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.1)}
    for name, channels, statistics, opened in (
        ("grey", 1, grey, opener(lambda where: ARRAYS[1])),
        ("colour", 3, colour, opener(lambda where: ARRAYS[3])),
        ("mapped", 3, colour, in_files(ARRAYS[3])),
    ):
        info = Info(name=name, num_classes=3, in_channels=channels, image_size=SIZE, **statistics, open=opened)
        monkeypatch.setitem(data.DATASETS, name, info)


def load(where=None, **fields):
    return data.load(DataConfig(**fields), where or Where(), CPU)


def shown(source):
    """All images as the network gets them."""
    return next(source.plain([torch.arange(len(source.labels))]))


def pil_grey(images):
    """PIL's own conversion to mode L."""
    arrays = (image.permute(1, 2, 0).numpy() for image in images)
    return torch.stack([torch.from_numpy(np.array(Image.fromarray(array).convert("L")))[None] for array in arrays])


class TestGrey:
    @pytest.mark.parametrize("name", ["colour", "mapped"])
    @pytest.mark.parametrize("theirs", [pil_grey, functional.rgb_to_grayscale])
    def test_colours_become_the_grey_of_pil_and_torchvision_within_a_level(self, name, theirs, tmp_path):
        got = load(Where(cache=str(tmp_path)), dataset=name, channels=1, **LEVELS)
        assert got.info.in_channels == 1
        for source, images in ((got.train, ARRAYS[3].train_images), (got.test, ARRAYS[3].test_images)):
            assert shown(source).shape == (len(images), 1, SIZE, SIZE)
            assert (shown(source) - theirs(images).float()).abs().max() <= 1.001

    def test_weights_are_those_of_itu_r_601(self, monkeypatch):
        # 0.299, 0.587 and 0.114 of 255, rounded; of two of them and of all.
        pure = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 255, 255]], dtype=torch.uint8)
        images = pure[:, :, None, None].expand(-1, -1, SIZE, SIZE)
        arrays = Arrays(images, torch.arange(5), images, torch.arange(5))
        monkeypatch.setitem(data.DATASETS, "pure", replace(data.DATASETS["colour"], open=opener(lambda where: arrays)))
        got = shown(load(dataset="pure", channels=1, **LEVELS).train)
        assert got[:, 0, 3, 5].round().tolist() == [76, 150, 29, 226, 255]

    def test_images_are_resized_before_they_become_grey(self):
        got = shown(load(dataset="colour", channels=1, image_size=8, **LEVELS).train)
        theirs = functional.resize(functional.rgb_to_grayscale(ARRAYS[3].train_images.float()), 8, antialias=True)
        assert (got - theirs).abs().max() <= 2  # each step rounds

    def test_views_are_cut_out_of_the_grey_images(self):
        grey = functional.rgb_to_grayscale(ARRAYS[3].train_images)
        source = load(dataset="colour", channels=1, **LEVELS).train
        ((view,),) = source.look(3, 1, [[Look(torch.arange(12), Stream.VIEWS)]])
        assert view.shape == (12, 1, SIZE, SIZE)
        # Crops of padded images: each value is one of the image's, or the padding's 0.
        for image, levels in zip(view.round().long(), grey, strict=True):
            near = torch.cat([levels.unique().long() + shift for shift in (-1, 0, 1)] + [torch.zeros(1).long()])
            assert torch.isin(image.unique(), near).all()

    def test_streamed_images_are_grey_too(self, tmp_path, monkeypatch):
        for split in ("train", "val"):
            for wnid in ("n01", "n02"):
                folder = tmp_path / "imagenet" / split / wnid
                folder.mkdir(parents=True)
                for i, image in enumerate(ARRAYS[3].train_images[:2]):
                    Image.fromarray(image.permute(1, 2, 0).numpy()).resize((40, 40)).save(folder / f"{i}.JPEG")
        small = {"num_classes": 2, "image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
        monkeypatch.setitem(data.DATASETS, "imagenet", replace(data.DATASETS["imagenet"], **small))
        where = Where(data_root=str(tmp_path))
        got, colours = (load(where, dataset="imagenet", **fields) for fields in ({"channels": 1, **LEVELS}, {}))
        pixels = shown(colours.test) * 0.5 + 0.5
        assert (shown(got.test) - 255 * functional.rgb_to_grayscale(pixels)).abs().max() <= 2
        assert shown(got.test).shape == (4, 1, 32, 32)


class TestThree:
    def test_grey_images_have_three_equal_channels_of_their_own_statistics(self):
        wanted = shown(load(dataset="grey").train)
        got = load(dataset="grey", channels=3)
        assert (got.info.in_channels, got.info.mean, got.info.std) == (3, (0.4,) * 3, (0.2,) * 3)
        assert torch.equal(shown(got.train), wanted.expand(-1, 3, -1, -1))
        assert shown(got.train).is_contiguous(memory_format=torch.channels_last)

    def test_statistics_of_three_channels_may_differ(self):
        got = shown(load(dataset="grey", channels=3, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25)).test)
        pixels = ARRAYS[1].test_images.float() / 255
        wanted = torch.cat([pixels, (pixels - 0.5) / 0.5, (pixels - 1) / 0.25], 1)
        torch.testing.assert_close(got, wanted)

    def test_a_student_of_either_kind_trains(self):
        for name, channels, extra in (("grey", 3, {}), ("colour", 1, LEVELS)):
            trial = TrialConfig(
                data=DataConfig(dataset=name, channels=channels, **extra),
                train=Recipe(epochs=1, batch_size=6, lr=1e-3), student="resnet8", method=MethodRef(name="vanilla"),
            )  # fmt: skip
            build.check(trial)
            training = Training(trial, Where(device="cpu"))
            training.run_epoch()
            assert training.student.conv1.in_channels == channels
            assert training.result().n_train == 12


class TestRules:
    @pytest.mark.parametrize("given", [{}, {"mean": (0.5,)}, {"std": (0.5,)}])
    def test_grey_needs_statistics_that_no_colours_have(self, given):
        message = r"^spec\.mean and spec\.std are required for colour with spec\.channels = 1\.$"
        with pytest.raises(ConfigError, match=message):
            data.info_of(DataConfig(dataset="colour", channels=1, **given), "spec")

    def test_statistics_have_a_value_for_each_channel_that_is_seen(self):
        message = r"data\.mean must have a value for each of the 1 channels of colour, but got \[0\.5, 0\.5, 0\.5\]"
        with pytest.raises(ConfigError, match=message):
            data.info_of(DataConfig(dataset="colour", channels=1, mean=(0.5,) * 3, std=(0.5,)))
        message = r"data\.std must have a value for each of the 3 channels of grey, but got \[0\.5\]"
        with pytest.raises(ConfigError, match=message):
            data.info_of(DataConfig(dataset="grey", channels=3, std=(0.5,)))

    def test_own_number_of_channels_changes_nothing(self):
        for name, channels in (("grey", 1), ("colour", 3)):
            assert data.info_of(DataConfig(dataset=name, channels=channels)) == data.DATASETS[name]


class TestIdentity:
    @staticmethod
    def of(name="colour", **fields):
        images = DataConfig(dataset=name, **fields)
        return build.trial_id(TrialConfig(data=images, student="resnet8", method=MethodRef(name="vanilla")))

    @pytest.mark.parametrize(("name", "channels"), [("grey", 1), ("colour", 3)])
    def test_what_the_data_set_has_itself_is_the_same_trial(self, name, channels):
        info = data.DATASETS[name]
        own = {"channels": channels, "image_size": SIZE, "mean": info.mean, "std": info.std}
        for key, value in own.items():
            assert self.of(name, **{key: value}) == self.of(name), key
        assert self.of(name, **own) == self.of(name)

    def test_anything_else_is_another(self):
        others = [
            {}, {"channels": 1, **LEVELS}, {"channels": 1, **LEVELS, "mean": (0.1,)}, {"image_size": 12},
            {"mean": (0.4, 0.5, 0.7)}, {"std": (0.2, 0.3, 0.2)},
        ]  # fmt: skip
        assert len({self.of(**fields) for fields in others}) == len(others)
        assert self.of("grey") != self.of("grey", channels=3)


def test_networks_are_built_for_the_channels_that_are_seen():
    info = data.info_of(DataConfig(dataset="colour", channels=1, **LEVELS))
    network, shapes = build.network_for("resnet8", info)
    assert network.conv1.weight.shape[1] == 1
    assert shapes.logits.shape == (1, 3)
    assert models.build("resnet8", 3, 1)(torch.zeros(1, 1, SIZE, SIZE)).logits.shape == (1, 3)

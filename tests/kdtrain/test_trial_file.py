"""A trial's TOML file: named recipes, teachers of any origin, a person's own images, and what is refused."""

import hashlib
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from kdtrain import data, models
from kdtrain.__main__ import main
from kdtrain.build import trial_id
from kdtrain.config import ConfigError, DataConfig, Where
from kdtrain.data.dataset import Info
from kdtrain.data.memory import Arrays, opener
from kdtrain.trial_file import read

DOWNLOAD = "torchvision.models._api.load_state_dict_from_url"
TRIAL = """
student = "resnet8"
seed = 1
[data]
dataset = "fashion_mini"
fraction = 0.01
[train]
epochs = 1
[method]
name = "vanilla"
"""
KD = TRIAL.replace("vanilla", "kd")


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """Read the text of a trial, in its folder."""
    monkeypatch.chdir(tmp_path)

    def parsed(text):
        data.named.cache_clear()
        path = tmp_path / "trial.toml"
        path.write_text(text)
        return read(path)

    return parsed


@pytest.fixture
def run(parsed, tmp_path, monkeypatch, capsys):
    """Call kd-train run on the text of a trial; what it printed at its end."""

    def run(text):
        (tmp_path / "trial.toml").write_text(text)
        monkeypatch.setattr(sys, "argv", ["kd-train", "run", "trial.toml", "--cpus", "1"])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert not end.value.code, captured.err
        return json.loads(captured.out)

    return run


class TestRecipe:
    def test_named_recipe_is_its_keys_and_other_keys_go_before(self, parsed):
        trial, _ = parsed(TRIAL.replace("epochs = 1", 'recipe = "cid_cifar"'))
        train = trial.train
        # CID's CIFAR-100 code: 240 epochs of 64 images, 0.05 reduced in epochs 151, 181 and 211, Nesterov.
        assert (train.epochs, train.batch_size, train.lr, train.nesterov) == (240, 64, 0.05, True)
        assert (train.milestones, train.momentum, train.weight_decay) == ([150, 180, 210], 0.9, 5e-4)
        trial, _ = parsed(TRIAL.replace("epochs = 1", 'recipe = "cid_cifar"\nepochs = 24\nlr = 0.01'))
        assert (trial.train.epochs, trial.train.lr, trial.train.milestones) == (24, 0.01, [15, 18, 21])

    def test_keys_written_out_are_the_same_trial(self, parsed):
        written = "epochs = 240\nbatch_size = 64\nlr = 0.05\nlr_milestones = [150, 180, 210]\nnesterov = true"
        one, other = (parsed(TRIAL.replace("epochs = 1", text))[0] for text in ('recipe = "cid_cifar"', written))
        assert trial_id(one) == trial_id(other)

    @pytest.mark.parametrize("value", ["'cid_cifra'", "3", "[]"])
    def test_unknown_recipe_lists_the_known(self, parsed, value):
        with pytest.raises(ConfigError, match=r"^unknown recipe .* at train\.recipe\..* Known: .*cid_cifar, .*ps_kd"):
            parsed(TRIAL.replace("epochs = 1", f"recipe = {value}"))


def foreign(path, model="resnet14", num_classes=10, in_channels=1):
    """A teacher's file as RepDistiller writes it, beside its epoch and its optimizer; returns the state."""
    torch.manual_seed(7)
    state = models.build(model, num_classes, in_channels).state_dict()
    before_0_4_1 = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save({"epoch": 240, "best_acc": 75.6, "model": before_0_4_1, "optimizer": {"param_groups": [{}]}}, path)
    return state


def accuracy(network, dataset):
    """Percent of the test images of a data set."""
    test = data.load(DataConfig(dataset=dataset), Where(), torch.device("cpu")).test
    with torch.no_grad():
        outputs = network(next(test.plain([torch.arange(len(test.labels))])))
    right = getattr(outputs, "logits", outputs).argmax(1) == test.labels
    return 100 * right.double().mean().item()


class TestForeignTeacher:
    TABLE = "[teacher]\nmodel = 'resnet14'\nweights = 'teacher.pth'\n"

    @pytest.fixture
    def few(self, monkeypatch):
        """Some images of the ten classes of fashion_mini."""
        info = data.DATASETS["fashion_mini"]
        whole = info.open(info, Where(), torch.device("cpu"))
        parts = []
        for part, n in ((whole.train, 3), (whole.test, 5)):
            chosen = torch.cat([(part.labels == label).nonzero()[:n, 0] for label in range(10)])
            parts += [part.images[chosen], part.labels[chosen]]
        monkeypatch.setitem(data.DATASETS, "few", replace(info, name="few", open=opener(lambda where: Arrays(*parts))))

    def test_id_is_the_sha256_of_the_file(self, parsed, tmp_path):
        foreign(tmp_path / "teacher.pth")
        trial, file = parsed(KD + self.TABLE)
        digest = hashlib.sha256((tmp_path / "teacher.pth").read_bytes()).hexdigest()
        assert (trial.teacher.model, trial.teacher.id) == ("resnet14", digest)
        assert file.where.teacher_weights == "teacher.pth"

    def test_it_teaches(self, run, tmp_path, few):
        state = foreign(tmp_path / "teacher.pth")
        ended = run(KD.replace('"fashion_mini"\nfraction = 0.01', '"few"') + self.TABLE)
        teacher = models.build("resnet14", 10, 1).eval()
        teacher.load_state_dict(state)
        assert (ended["teacher_top1"], ended["n_train"]) == (accuracy(teacher, "few"), 30)

    def test_another_architecture_is_named(self, parsed, tmp_path):
        foreign(tmp_path / "teacher.pth", "resnet8")
        message = r"^teacher\.weights must be of resnet14 with 10 classes, .*It fits resnet8 with 10 classes\.$"
        with pytest.raises(ConfigError, match=message):
            parsed(KD + self.TABLE)

    def test_another_number_of_classes_is_named(self, parsed, tmp_path):
        foreign(tmp_path / "teacher.pth", num_classes=100)
        message = r"fc\.weight is \[100, 64\] and not \[10, 64\].*It fits resnet14 with 100 classes\.$"
        with pytest.raises(ConfigError, match=message):
            parsed(KD + self.TABLE)

    def test_a_file_that_needs_unpickling_is_refused_with_the_way_to_convert_it(self, parsed, tmp_path):
        torch.save(models.build("resnet14", 10, 1), tmp_path / "teacher.pth")
        with pytest.raises(ConfigError, match=r"^teacher\.weights must be a file of tensors, but 'teacher\.pth'.*con"):
            parsed(KD + self.TABLE)

    def test_of_a_method_without_a_teacher_it_is_no_part(self, parsed):
        trial, file = parsed(TRIAL + self.TABLE)  # there is no such file
        assert (trial.teacher, file.teacher, file.where.teacher_weights) == (None, None, None)


class TestTorchvision:
    TEXT = """
student = "resnet18"
[data]
dataset = "many"
[train]
epochs = 1
batch_size = 6
lr = 1e-3
[teacher]
model = "resnet18"
weights = "torchvision"
[method]
name = "kd"
"""

    @pytest.fixture(autouse=True)
    def many(self, monkeypatch, tmp_path):
        """A data set of 1000 classes, few of which have images, and a folder of torch.hub for each test."""
        images = torch.randint(0, 256, (12, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        arrays = Arrays(images, torch.arange(12) * 83, images[:4], torch.arange(4) * 83)
        monkeypatch.setitem(data.DATASETS, "many", Info(
            name="many", num_classes=1000, in_channels=3, image_size=64, mean=(0.5,) * 3, std=(0.25,) * 3,
            open=opener(lambda where: arrays),
        ))  # fmt: skip
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    def test_read_without_a_download(self, parsed, monkeypatch):
        monkeypatch.setattr(DOWNLOAD, lambda *_, **__: pytest.fail("downloads"))
        trial, _ = parsed(self.TEXT)
        assert trial.teacher.id == "torchvision-resnet18-imagenet1k_v1"

    def test_it_is_fetched_measured_and_teaches(self, run, monkeypatch):
        torch.manual_seed(3)
        source = torchvision.models.resnet18(weights=None).eval()
        monkeypatch.setattr(DOWNLOAD, lambda *_, **__: source.state_dict())
        with torch.no_grad():  # else it takes all images for one class, and an accuracy of 0 says little
            source.fc.bias[83 * 2] += 100
        ended = run(self.TEXT)
        assert ended["teacher_top1"] == accuracy(source, "many") == 25
        assert ended["n_train"] == 12

    def test_named_weights_and_unknown_ones(self, parsed):
        text = self.TEXT.replace('"resnet18"\nweights = "torchvision"', '"resnet50"\nweights = "torchvision:{}"')
        assert parsed(text.format("IMAGENET1K_V2"))[0].teacher.id == "torchvision-resnet50-imagenet1k_v2"
        with pytest.raises(ConfigError, match=r"unknown weights of resnet50 'IMAGENET1K_V3' at teacher\.weights\."):
            parsed(text.format("IMAGENET1K_V3"))

    def test_they_do_not_fit_another_number_of_classes(self, parsed):
        message = r"^teacher\.weights must be of resnet18 with 10 classes, but torchvision's have 1000\."
        with pytest.raises(ConfigError, match=message):  # before anything is downloaded
            parsed(self.TEXT.replace('"many"', '"fashion_mini"\nchannels = 3\nimage_size = 64'))


class TestFolder:
    TEXT = TRIAL.replace('"fashion_mini"\nfraction = 0.01', '"folder:pets"')

    @pytest.fixture(autouse=True)
    def pets(self, tmp_path):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / name).mkdir(parents=True)
            for i in range(3):
                values = np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8)
                Image.fromarray(values).save(tmp_path / "pets" / name / f"{i}.png")

    def test_is_looked_at(self, parsed, tmp_path):
        images = parsed(self.TEXT)[0].data
        assert images.dataset == f"folder:{tmp_path}/pets"
        assert (images.image_size, images.folder.num_classes, len(images.folder.sha256)) == (48, 2, 64)
        assert (tmp_path / "data" / "prepared").is_dir()

    def test_size_and_cache_may_be_given(self, parsed, tmp_path):
        trial, file = parsed(self.TEXT.replace("[train]", "image_size = 16\ncache = 'fast'\n[train]"))
        assert trial.data.image_size == 16
        assert file.where.cache == "fast"
        assert [path.name for path in tmp_path.iterdir() if path.name in ("fast", "data")] == ["fast"]

    def test_that_is_not_there_is_named(self, parsed, tmp_path):
        with pytest.raises(ConfigError, match=rf"^there is no folder {tmp_path}/gone\.$"):
            parsed(self.TEXT.replace("pets", "gone"))


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("seed = 1", "sede = 1", r"^unknown key 'sede' at sede\. Did you mean 'seed'\? Known: assistant, data, "),
            ("fraction", "fractoin", r"^unknown key 'fractoin' at data\.fractoin\. Did you mean 'fraction'\?"),
            ("epochs", "epoch", r"^unknown key 'epoch' at train\.epoch\. Did you mean 'epochs'\?"),
            (
                "[method]",
                "[teacher]\nmodel = ''\nweights = ''\nwithni = 1\n[method]",
                r"^unknown key 'withni' at teacher\.withni\. Did you mean 'within'\?",
            ),
            ("[method]", "[probe]\n[method]", r"^unknown key 'probe' at probe\."),
            ('"vanilla"', '"kd"\ntua = 1', r"^unknown key 'tua' at kd\.tua\. Did you mean 'tau'\?"),
            ("[train]", "folder = {}\n[train]", r"^data\.folder\.sha256 is required\.$"),
            ('"fashion_mini"', '"fashion"', r"^unknown data set 'fashion' at data\.dataset\. Did you mean 'fashion_mi"),
            ("[data]", "data = 3\n[date]", r"^data should be "),
            ("[train]", "[[train]]", r"^train should be "),
            ("epochs = 1", "epochs = 1979-05-27", r"^dates and times are no values here, but got 1979-05-27\.$"),
        ],
    )
    def test_are_refused_in_a_line(self, parsed, old, new, message):
        with pytest.raises(ConfigError, match=message) as error:
            parsed(TRIAL.replace(old, new, 1))
        assert "\n" not in str(error.value)

    def test_text_that_is_not_utf_8(self, parsed, tmp_path):
        parsed(TRIAL)
        (tmp_path / "trial.toml").write_bytes(b"student = '\xff'")
        with pytest.raises(ConfigError, match=r"trial\.toml: it is not UTF-8 text\.$"):
            read(tmp_path / "trial.toml")

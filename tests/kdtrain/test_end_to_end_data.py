"""A person's own images and streamed ones from the command, or the training loop, to the exported student."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdtrain import checkpoint, data
from kdtrain.__main__ import main
from kdtrain.config import DataConfig, MethodRef, Recipe, TeacherRef, TrialConfig, Where
from kdtrain.loop import Training

CLASSES = ("cats", "dogs", "eels")
TRIAL = """
student = "resnet8"
seed = 1
[data]
dataset = "folder:{}"
[train]
epochs = 2
batch_size = 8
lr = 0.01
[method]
name = "vanilla"
"""


def pixels(seed, size=(40, 40), channels=3):
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)


def write_folder(root: Path, n: int = 6) -> Path:
    """Class folders of images as people have them: of several sizes, formats and modes."""
    kinds = [
        lambda array: (Image.fromarray(array), "png"),
        lambda array: (Image.fromarray(array).resize((50, 36)), "jpg"),
        lambda array: (Image.fromarray(array).convert("L"), "jpg"),
        lambda array: (Image.fromarray(array).convert("P"), "png"),
        lambda array: (Image.fromarray(np.dstack([array, array[..., :1]])), "png"),  # RGBA
        lambda array: (Image.fromarray(array).resize((33, 61)).convert("CMYK"), "jpg"),
    ]
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(n):
            image, kind = kinds[i % len(kinds)](pixels(100 * label + i) // 3 + 80 * label)
            image.save(root / name / f"{i}.{kind}")
    return root


def damage(path: Path) -> Path:
    """Cut a file off behind its header."""
    path.write_bytes(path.read_bytes()[:700])
    return path


@pytest.fixture
def kd_train(monkeypatch, capsys, tmp_path):
    """Call kd-train in tmp_path; (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> tuple[int, str, str]:
        data.named.cache_clear()  # each call of the command is a process of its own
        monkeypatch.setattr(sys, "argv", ["kd-train", *map(str, args)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def run(kd_train, tmp_path):
    """Call kd-train run on the text of a trial."""

    def call(text: str, *args: object) -> tuple[int, str, str]:
        (tmp_path / "trial.toml").write_text(text)
        return kd_train("run", "trial.toml", "--cpus", 1, *args)

    return call


def result(ended: tuple[int, str, str]) -> dict[str, object]:
    """What a run printed, without times."""
    assert ended[0] == 0, ended[2]
    return {key: value for key, value in json.loads(ended[1]).items() if not key.endswith("seconds")}


class TestFolder:
    def test_images_of_all_kinds_train_by_a_relative_path(self, run, tmp_path):
        write_folder(tmp_path / "pets")
        ended = result(run(TRIAL.format("pets"), "-o", "out"))
        # Of each class 6 images, of which round(6 / 5) = 1 is of the test split.
        assert (ended["n_train"], len(ended["class_recall"])) == (15, 3)
        trial = checkpoint.read_trial("out/model.safetensors")
        assert trial.data.dataset == f"folder:{tmp_path}/pets"
        # The shorter sides are 40, 36 and 33, their median at least 32 and below 64.
        assert (trial.data.image_size, trial.data.folder.num_classes) == (32, 3)
        assert result(run(TRIAL.format(tmp_path / "pets"), "-o", "again")) == ended

    def test_moved_folder_is_the_same_trial_and_a_changed_image_another(self, run, tmp_path):
        write_folder(tmp_path / "pets")
        text = TRIAL.replace("epochs = 2", "epochs = 1")
        before = result(run(text.format("pets"), "-o", "one"))
        (tmp_path / "pets").rename(tmp_path / "moved")
        assert result(run(text.format("moved"), "-o", "two")) == before
        Image.fromarray(pixels(7)).save(tmp_path / "moved" / "dogs" / "0.png")
        changed = result(run(text.format("moved"), "-o", "three"))
        assert changed["trial_id"] != before["trial_id"]

    def test_corrupt_image_is_named_or_left_out_and_counted(self, run, tmp_path):
        path = damage(write_folder(tmp_path / "pets") / "eels" / "2.jpg")
        code, out, err = run(TRIAL.format("pets"))
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {path} is corrupt or truncated (")
        assert len(err.splitlines()) == 1
        skipping = TRIAL.format("pets").replace("[train]", "skip_corrupt = true\n[train]")
        ended = run(skipping, "-o", "out")
        assert result(ended)["n_train"] == 14
        lines = ended[2].splitlines()
        assert lines[0] == f"folder:{tmp_path}/pets: 1 corrupt image is left out: eels/2.jpg"
        assert [line.split(":")[0] for line in lines[1:]] == ["epoch 1", "epoch 2"]

    def test_student_is_exported_with_the_statistics_of_its_images(self, run, kd_train, tmp_path):
        damage(write_folder(tmp_path / "pets") / "eels" / "2.jpg")
        text = TRIAL.format("pets").replace("[train]", "skip_corrupt = true\n[train]")
        trained = result(run(text, "-o", "out"))
        code, out, err = kd_train("export", "out/model.safetensors", "-o", "exported", "--format", "pt2")
        assert code == 0, err
        card = json.loads(out)
        assert (card["trial_id"], card["test_top1"]) == (trained["trial_id"], trained["test_top1"])
        assert (card["dataset"], card["input_shape"]) == ("folder:pets", [3, 32, 32])
        place = Where(skip_corrupt=True)
        opened = data.load(checkpoint.read_trial("out/model.safetensors").data, place, torch.device("cpu"))
        values = opened.train.images.double() / 255
        assert card["mean"] == pytest.approx(values.mean((0, 2, 3)).tolist())
        assert card["std"] == pytest.approx(values.std((0, 2, 3), correction=0).tolist())
        # The program gives, from the pixels of the test images, the accuracy that the trial had.
        program = torch.export.load("exported/model.pt2").module()
        right = program(opened.test.images.float() / 255).argmax(1) == opened.test.labels
        assert 100 * right.double().mean().item() == pytest.approx(trained["test_top1"])

    def test_one_class_is_refused(self, run, tmp_path):
        root = write_folder(tmp_path / "pets")
        for name in CLASSES[1:]:
            (root / name).rename(tmp_path / name)
        code, out, err = run(TRIAL.format("pets"))
        assert (code, out) == (2, "")
        message = f"error: {root} must have a folder of images for each of at least two classes, but has cats.\n"
        assert err == message

    def test_grey_student_of_coloured_images(self, run, kd_train, tmp_path):
        write_folder(tmp_path / "pets")
        text = TRIAL.format("pets").replace("[train]", "channels = 1\nmean = [0.5]\nstd = [0.25]\n[train]")
        assert result(run(text, "-o", "out"))["n_train"] == 15
        assert checkpoint.read_trial("out/model.safetensors").data.channels == 1
        (tmp_path / "pets").rename(tmp_path / "gone")  # its statistics are known: the images are not opened
        code, out, _ = kd_train("export", "out/model.safetensors", "-o", "exported", "--format", "safetensors")
        assert code == 0
        assert json.loads(out)["input_shape"] == [1, 32, 32]

    def test_folder_changed_between_stop_and_resume_is_not_gone_on_with(self, run, tmp_path):
        write_folder(tmp_path / "pets")
        first = result(run(TRIAL.format("pets"), "-o", "out"))
        Image.fromarray(pixels(9)).save(tmp_path / "pets" / "cats" / "0.png")
        code, _, err = run(TRIAL.format("pets"), "-o", "out")
        assert code == 2
        assert err.startswith(f"error: out holds another trial ({first['trial_id']})")


STREAMED = {
    "vanilla": {},
    "kd": {},
    "sskd": {"pretrain_epochs": 1.0},
    "cs_kd": {},
}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """The layout of ImageNet with 3 classes of JPEG files of several sizes, seen in 64 x 64: its root."""
    root = tmp_path_factory.mktemp("data")
    for split, n in (("train", 4), ("val", 2)):
        for label, wnid in enumerate(("n01440764", "n01443537", "n02102040")):
            folder = root / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            for i in range(n):
                coarse = Image.fromarray(pixels(100 * label + i, (6, 7)) // 3 + 80 * label)
                coarse.resize((70 + 9 * i, 90 - 5 * i)).save(folder / f"{wnid}_{i}.JPEG")
    few = replace(data.DATASETS["imagenet"], num_classes=3, image_size=64, train_images=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "imagenet", few)
        yield str(root)


def streamed(method, student, teacher=None, epochs=2):
    return TrialConfig(
        data=DataConfig(dataset="imagenet"),
        train=Recipe(epochs=epochs, batch_size=6, lr=0.01),
        teacher=teacher if method in ("kd", "sskd") else None,
        student=student,
        method=MethodRef(name=method, params=STREAMED[method]),
        seed=3,
    )


@pytest.fixture(scope="module")
def teacher(imagenet, tmp_path_factory):
    """A narrow MobileNet trained for an epoch on the streamed images, and its file."""
    torch.set_num_threads(1)
    training = Training(streamed("vanilla", "mobilenet_v1_w0.25", epochs=1), Where(data_root=imagenet, device="cpu"))
    training.run_epoch()
    path = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    path.write_bytes(training.weights())
    return TeacherRef(model="mobilenet_v1_w0.25", id=training.id), str(path)


class TestStreamed:
    @pytest.mark.parametrize("student", ["mobilenet_v1", "resnet18"])
    @pytest.mark.parametrize("method", STREAMED)
    def test_resumed_run_equals_uninterrupted_one(self, outcome, imagenet, teacher, method, student):
        ref, path = teacher
        where = Where(data_root=imagenet, device="cpu", teacher_weights=path if method in ("kd", "sskd") else None)
        trial = streamed(method, student, ref)
        whole = Training(trial, where)
        first = whole.run_epoch()
        resumed = Training(trial, where, whole.pack())
        torch.manual_seed(99)  # whatever the process did before must not matter
        for training in (whole, resumed):
            while not training.done:
                training.run_epoch()
        assert outcome(resumed) == outcome(whole)
        assert whole.records[0] == first
        assert [record.stage for record in whole.records[-2:]] == ["train", "train"]
        assert len(whole.records) == (3 if method == "sskd" else 2)
        assert all(np.isfinite(value) for record in whole.records for value in record.terms.values())
        logits, labels = whole.predictions("test")
        assert (tuple(logits.shape), labels.tolist()) == ((6, 3), [0, 0, 1, 1, 2, 2])
        assert torch.isfinite(logits).all()
        assert whole.result().n_train == 12

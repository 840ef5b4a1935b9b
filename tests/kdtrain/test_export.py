"""Exported students predict as their trials did, in every format, and nothing unchecked is written."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch

from kdtrain import checkpoint, data, export
from kdtrain.config import ConfigError, DataConfig, MethodRef, Probe, Recipe, TeacherRef, TrialConfig, Where
from kdtrain.data.dataset import Info
from kdtrain.data.memory import Arrays, opener
from kdtrain.export import ExportError, Predictor
from kdtrain.loop import Training

MEAN, STD = (0.2, 0.4, 0.6), (0.5, 0.25, 0.1)
# numpy and onnxruntime alone: what a program has that knows nothing of torch.
PROGRAM = """
import sys
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
pixels = np.load(sys.argv[2])
assert pixels.dtype == np.uint8 and "torch" not in sys.modules
(logits,) = session.run(["logits"], {"pixels": pixels.astype(np.float32) / 255})
print(*logits.argmax(1))
"""


def images(n, seed):
    return torch.randint(0, 256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


ARRAYS = Arrays(images(12, 0), torch.arange(12) % 4, images(9, 1), torch.arange(9) % 4)


@pytest.fixture(autouse=True, scope="module")
def tiny():
    """A data set of random images, 4 classes, whose channels have different statistics."""
    info = Info(
        name="tiny", num_classes=4, in_channels=3, image_size=16, mean=MEAN, std=STD, open=opener(lambda where: ARRAYS)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "tiny", info)
        yield


class Trained(NamedTuple):
    training: Training
    path: object  # of the weights
    wanted: object  # [9, 4], what the live training predicts for the test images


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train a student in no time: its training, its file, and its logits for the test images."""
    torch.set_num_threads(1)

    def run(method, student="resnet8", teacher=None, params=None, **recipe):
        trial = TrialConfig(
            data=DataConfig(dataset="tiny"),
            train=Recipe(**{"epochs": 2, "batch_size": 6, "lr": 0.01, **recipe}),
            teacher=teacher and TeacherRef(model="resnet14", id=teacher.training.id),
            student=student,
            method=MethodRef(name=method, params=params or {}),
            seed=3,
        )
        training = Training(trial, Where(device="cpu", teacher_weights=teacher and str(teacher.path)))
        while not training.done:
            training.run_epoch()
        path = tmp_path_factory.mktemp("student") / "model.safetensors"
        path.write_bytes(training.weights())
        return Trained(training, path, training.predictions("test")[0])

    return run


@pytest.fixture(scope="module")
def teacher(train):
    return train("vanilla", "resnet14", epochs=1)


@pytest.fixture(scope="module")
def cid(train, teacher):
    return train("cid", teacher=teacher, params={"init_epochs": 1})


@pytest.fixture(scope="module")
def exported(cid, tmp_path_factory):
    """The card and the folder of CID's student in all formats."""
    out = tmp_path_factory.mktemp("out") / "new"
    cid.path.with_name("result.json").write_text(json.dumps({"trial_id": cid.training.id, "test_top1": 44.5}))
    return export.export(cid.path, out), out


def pixels(arrays=ARRAYS.test_images):
    return arrays.float() / 255


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("vanilla", {}), ("kd", {}), ("crd", {}), ("srrl", {}), ("sskd", {}),
        ("cid", {"init_epochs": 1}), ("cid", {"inv": False}), ("cid+sp", {"cid": {"init_epochs": 1}}),
    ],
)  # fmt: skip
def test_predictor_of_a_file_gives_the_logits_of_the_live_training(method, params, train, teacher):
    trained = train(method, teacher=None if method == "vanilla" else teacher, params=params)
    predictor = export.load(trained.path)
    torch.testing.assert_close(predictor(pixels()), trained.wanted, rtol=1e-5, atol=1e-5)
    own = {f"student.{name}" for name in trained.training.student.state_dict()}
    extra = {"method.centres", "method.classifier.weight", "method.classifier.bias"} if "init" in str(params) else set()
    assert set(predictor.state_dict()) == own | extra | {"mean", "std"}


def test_cids_predictor_is_not_the_student_alone(cid):
    with torch.no_grad():
        own = export.load(cid.path).student(
            (pixels() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        )
    assert (own.logits - cid.wanted).abs().max() > 0.01


def test_loading_draws_no_random_numbers_and_needs_no_gradient(cid):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    predictor = export.load(cid.path)
    assert torch.equal(torch.rand(3), expected)
    assert not predictor.training
    assert not any(parameter.requires_grad for parameter in predictor.parameters())


class TestFiles:
    def test_onnx_gives_the_same_classes_in_a_process_without_torch(self, exported, cid, tmp_path):
        np.save(tmp_path / "pixels.npy", ARRAYS.test_images.numpy())
        command = [sys.executable, "-c", PROGRAM, str(exported[1] / "model.onnx"), str(tmp_path / "pixels.npy")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert [int(word) for word in done.stdout.split()] == cid.wanted.argmax(1).tolist()

    @pytest.mark.parametrize("n", [1, 2, 9])
    def test_onnx_gives_the_same_logits(self, n, exported, cid):
        import onnxruntime

        session = onnxruntime.InferenceSession(exported[1] / "model.onnx", providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape == ["batch", 3, 16, 16]
        (logits,) = session.run(None, {"pixels": pixels()[:n].numpy()})
        np.testing.assert_allclose(logits, cid.wanted[:n].numpy(), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("n", [1, 2, 9])
    def test_program_gives_the_same_logits(self, n, exported, cid):
        program = torch.export.load(exported[1] / "model.pt2").module()
        torch.testing.assert_close(program(pixels()[:n]), cid.wanted[:n], rtol=1e-5, atol=1e-5)

    def test_weights_fill_a_fresh_predictor(self, exported, cid):
        fresh = Predictor(cid.training.trial.model_copy(update={"seed": 99}))
        assert not torch.equal(fresh(pixels()), export.load(cid.path)(pixels()))
        fresh.load_state_dict(safetensors.torch.load_file(exported[1] / "model.safetensors"))
        assert torch.equal(fresh(pixels()), export.load(cid.path)(pixels()))

    def test_there_are_no_others(self, exported):
        names = {"model.safetensors", "model.pt2", "model.onnx", "card.json"}
        assert {path.name for path in exported[1].iterdir()} == names

    @pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
    def test_programs_do_not_tell_where_they_were_made(self, name, exported):
        assert str(Path(export.__file__).parent).encode() not in (exported[1] / name).read_bytes()

    def test_card_tells_what_they_are(self, exported, cid):
        card = json.loads((exported[1] / "card.json").read_text())
        for name in ("model.safetensors", "model.pt2", "model.onnx"):
            assert card["sha256"].pop(name) == hashlib.sha256((exported[1] / name).read_bytes()).hexdigest()
        assert card.pop("sha256") == {}
        assert set(card.pop("versions")) == {"kdsweep", "torch", "safetensors", "onnx", "onnxscript", "onnxruntime"}
        params = card.pop("params")
        assert (params["alpha"], params["init_epochs"]) == (10.0, 1.0)
        # resnet8 with 3 channels and 4 classes: stem 432 + 32; three stages, the last two with a shortcut.
        stages = [2 * (9 * 16 * 16 + 32)]
        stages += [9 * c * 2 * c + 9 * 4 * c * c + c * 2 * c + 3 * 2 * 2 * c for c in (16, 32)]
        student = 432 + 32 + sum(stages) + 64 * 4 + 4
        macs = 256 * (432 + 2 * 9 * 256) + 64 * (9 * 512 + 9 * 1024 + 512) + 16 * (9 * 2048 + 9 * 4096 + 2048) + 256
        assert card == {
            "student": "resnet8", "dataset": "tiny", "num_classes": 4, "input_shape": [3, 16, 16],
            "input_range": [0.0, 1.0], "mean": list(MEAN), "std": list(STD), "method": "cid", "teacher": "resnet14",
            "seed": 3, "fraction": 1.0, "trial_id": cid.training.id, "parameters": student + 4 * 129,
            "multiply_adds": macs, "test_top1": 44.5, "tolerance": 1e-4,
        }  # fmt: skip


@pytest.mark.parametrize("student", ["wrn_16_1", "vgg8"])
def test_other_architectures_pass_the_checks(student, train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = train("vanilla", student, epochs=1)
    card = export.export(trained.path, tmp_path / "out", ("pt2", "onnx"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["card.json", "model.onnx", "model.pt2", "out"]
    assert (card.teacher, card.test_top1) == (None, None)


def test_statistics_that_only_the_opened_images_tell_are_asked_of_them(cid, monkeypatch):
    info = data.DATASETS["tiny"]
    unread = replace(info, mean=(), std=(), open=lambda unread, where, device: info.open(info, where, device))
    monkeypatch.setitem(data.DATASETS, "tiny", unread)
    torch.testing.assert_close(export.load(cid.path)(pixels()), cid.wanted, rtol=1e-5, atol=1e-5)


def test_result_of_another_trial_is_not_the_cards(train, tmp_path):
    trained = train("vanilla", epochs=1)
    for text in ('{"trial_id": "0123", "test_top1": 1.0}', "no JSON", "[]", "{}"):
        trained.path.with_name("result.json").write_text(text)
        assert export.export(trained.path, tmp_path / "out", ("safetensors",)).test_top1 is None


class TestRefused:
    def check(self, path, out, match, error=ConfigError, **formats):
        before = sorted(out.iterdir()) if out.is_dir() else None
        with pytest.raises(error, match=match):
            export.export(path, out, **formats)
        assert (sorted(out.iterdir()) if out.is_dir() else None) == before

    def test_damaged_weights(self, cid, tmp_path):
        content = bytearray(cid.path.read_bytes())
        content[-5] ^= 1
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        self.check(path, tmp_path / "out", "is damaged: its tensors do not have the SHA-256")

    def test_file_without_its_trial(self, cid, tmp_path):
        path = tmp_path / "model.safetensors"
        path.write_bytes(checkpoint.pack_weights(cid.training.student.state_dict(), {}, cid.training.id))
        self.check(path, tmp_path / "out", "does not say which trial trained it")
        safetensors.torch.save_file({"fc.weight": torch.zeros(4, 64)}, path)
        self.check(path, tmp_path / "out", "does not say which trial trained it")

    def test_file_that_is_not_there(self, tmp_path):
        self.check(tmp_path / "none", tmp_path / "out", "none")

    def test_file_without_what_its_method_predicts_with(self, cid, tmp_path):
        path, training = tmp_path / "model.safetensors", cid.training
        path.write_bytes(checkpoint.pack_weights(training.student.state_dict(), {}, training.id, training.trial))
        self.check(path, tmp_path / "out", "does not fit the method 'cid': Missing key.*centres")

    def test_file_of_a_probe(self, cid, tmp_path):
        probe = Probe(source="0123", dataset="tiny", num_classes=4, lrs=(0.1,), holdout=0.1)
        trial = cid.training.trial.model_copy(update={"probe": probe})
        path = tmp_path / "model.safetensors"
        path.write_bytes(checkpoint.pack_weights(cid.training.student.state_dict(), {}, "4567", trial))
        self.check(path, tmp_path / "out", "is of a linear probe: export the student 0123 itself")

    def test_missing_packages(self, cid, tmp_path, monkeypatch):
        monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
        self.check(cid.path, tmp_path / "out", r"onnx needs onnxscript: pip install 'kdsweep\[export\]'")
        export.export(cid.path, tmp_path / "out", ("safetensors",))

    def test_unknown_format(self, cid, tmp_path):
        self.check(
            cid.path, tmp_path / "out", "unknown format 'onyx' at formats. Did you mean 'onnx'", formats=("onyx",)
        )

    def test_file_in_place_of_the_folder(self, cid, tmp_path):
        (tmp_path / "out").write_text("")
        self.check(cid.path, tmp_path / "out", "need a folder, but got the file")

    def test_folder_of_the_weights_themselves(self, cid):
        self.check(cid.path, cid.path.parent, "holds weights that are not exported ones")
        export.load(cid.path)

    def test_program_that_computes_something_else(self, cid, tmp_path, monkeypatch):
        right = export.load(cid.path)
        with torch.no_grad():
            right.method.classifier.bias += 0.01
        program = torch.nn.Module()
        program.module = lambda: right
        monkeypatch.setattr(torch.export, "load", lambda file: program)
        message = "the pt2 program must give the student's classes, and its logits to within 0.0001"
        self.check(cid.path, tmp_path / "out", message, ExportError, formats=("safetensors", "pt2"))

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda z: torch.where(z == z.max(), torch.nan, z),
            lambda z: z + 0.01,
            lambda z: z + torch.tensor([0, 0, 1e-6]),  # another class of two that are equal
        ],
    )
    def test_logits_that_differ(self, wrong):
        predictor = Constant()
        export._compare("onnx", predictor, predictor)
        with pytest.raises(ExportError, match="the onnx program must give"):
            export._compare("onnx", lambda pixels: wrong(predictor(pixels)), predictor)


class Constant:
    shape = (3, 16, 16)

    def __call__(self, pixels):
        return torch.tensor([[-1.0, 2.0, 2.0]]).repeat(len(pixels), 1)


def test_a_second_export_leaves_no_file_that_its_card_does_not_speak_of(cid, train, tmp_path):
    out = tmp_path / "out"
    export.export(cid.path, out, ("safetensors", "pt2"))
    (out / "notes.txt").write_text("mine")
    card = export.export(train("vanilla", epochs=1).path, out, ("onnx",))
    assert set(card.sha256) == {"model.onnx"}
    assert {path.name for path in out.iterdir()} == {"card.json", "model.onnx", "notes.txt"}

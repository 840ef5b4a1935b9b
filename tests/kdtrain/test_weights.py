"""The names and shapes of published files are written down here from the authors' code, not asked of our models."""

import argparse
import hashlib
import os
import re
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from kdtrain import models, weights
from kdtrain.config import ConfigError


def norm(name, width):
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.num_batches_tracked": ()
    }


def conv_norm(conv, bn, *shape):
    return {f"{conv}.weight": shape, **norm(bn, shape[0])}


def linear(name, width, classes):
    return {f"{name}.weight": (classes, width), f"{name}.bias": (classes,)}


def resnet(n, widths, classes):
    shapes, c_in = conv_norm("conv1", "bn1", widths[0], 3, 3, 3), widths[0]
    for stage, c in enumerate(widths[1:], 1):
        for i in range(n):
            block = f"layer{stage}.{i}"
            shapes |= conv_norm(f"{block}.conv1", f"{block}.bn1", c, c_in, 3, 3)
            shapes |= conv_norm(f"{block}.conv2", f"{block}.bn2", c, c, 3, 3)
            if c_in != c:
                shapes |= conv_norm(f"{block}.downsample.0", f"{block}.downsample.1", c, c_in, 1, 1)
            c_in = c
    return shapes | linear("fc", c_in, classes)


def wrn(n, k, classes):
    shapes, c_in = {"conv1.weight": (16, 3, 3, 3)}, 16
    for stage, c in enumerate((16 * k, 32 * k, 64 * k), 1):
        for i in range(n):
            block = f"block{stage}.layer.{i}"
            shapes |= {**norm(f"{block}.bn1", c_in), f"{block}.conv1.weight": (c, c_in, 3, 3)}
            shapes |= {**norm(f"{block}.bn2", c), f"{block}.conv2.weight": (c, c, 3, 3)}
            if c_in != c:
                shapes[f"{block}.convShortcut.weight"] = (c, c_in, 1, 1)
            c_in = c
    return shapes | norm("bn1", c_in) | linear("fc", c_in, classes)


def vgg(convolutions, classes):
    shapes, c_in = {}, 3
    for stage, c in enumerate((64, 128, 256, 512, 512)):
        for i in range(convolutions):
            conv, bn = f"block{stage}.{3 * i}", f"block{stage}.{3 * i + 1}"
            shapes |= {**conv_norm(conv, bn, c, c_in, 3, 3), f"{conv}.bias": (c,)}
            c_in = c
    return shapes | linear("classifier", c_in, classes)


def resnet50(classes):
    shapes, c_in = conv_norm("conv1", "bn1", 64, 3, 3, 3), 64
    for stage, (n, c) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], 1):
        for i in range(n):
            block = f"layer{stage}.{i}"
            shapes |= conv_norm(f"{block}.conv1", f"{block}.bn1", c, c_in, 1, 1)
            shapes |= conv_norm(f"{block}.conv2", f"{block}.bn2", c, c, 3, 3)
            shapes |= conv_norm(f"{block}.conv3", f"{block}.bn3", 4 * c, c, 1, 1)
            if i == 0:
                shapes |= conv_norm(f"{block}.shortcut.0", f"{block}.shortcut.1", 4 * c, c_in, 1, 1)
            c_in = 4 * c
    return shapes | linear("linear", c_in, classes)


def mobilenet_v2(classes):
    shapes, c_in = conv_norm("conv1.0", "conv1.1", 16, 3, 3, 3), 16
    rows = [(1, 8, 1), (6, 12, 2), (6, 16, 3), (6, 32, 4), (6, 48, 3), (6, 80, 3), (6, 160, 1)]
    for stage, (t, c, n) in enumerate(rows):
        for i in range(n):
            conv = f"blocks.{stage}.{i}.conv"
            shapes |= conv_norm(f"{conv}.0", f"{conv}.1", t * c_in, c_in, 1, 1)
            shapes |= conv_norm(f"{conv}.3", f"{conv}.4", t * c_in, 1, 3, 3)
            shapes |= conv_norm(f"{conv}.6", f"{conv}.7", c, t * c_in, 1, 1)
            c_in = c
    return shapes | conv_norm("conv2.0", "conv2.1", 1280, c_in, 1, 1) | linear("classifier.0", 1280, classes)


def shufflenet_v1(classes):
    shapes, c_in = conv_norm("conv1", "bn1", 24, 3, 1, 1), 24
    for stage, (n, width) in enumerate([(4, 240), (8, 480), (4, 960)], 1):
        for i in range(n):
            block, c = f"layer{stage}.{i}", width - c_in if i == 0 else width
            shapes |= conv_norm(f"{block}.conv1", f"{block}.bn1", c // 4, c_in // (1 if c_in == 24 else 3), 1, 1)
            shapes |= conv_norm(f"{block}.conv2", f"{block}.bn2", c // 4, 1, 3, 3)
            shapes |= conv_norm(f"{block}.conv3", f"{block}.bn3", c, c // 4 // 3, 1, 1)
            c_in = width
    return shapes | linear("linear", c_in, classes)


def shufflenet_v2(classes):
    shapes, c_in = conv_norm("conv1", "bn1", 24, 3, 1, 1), 24
    for stage, (n, width) in enumerate([(3, 116), (7, 232), (3, 464)], 1):
        down, c = f"layer{stage}.0", width // 2
        sizes = [(c_in, 1, 3, 3), (c, c_in, 1, 1), (c, c_in, 1, 1), (c, 1, 3, 3), (c, c, 1, 1)]
        for i, size in enumerate(sizes, 1):
            shapes |= conv_norm(f"{down}.conv{i}", f"{down}.bn{i}", *size)
        for block in range(1, n + 1):
            for i, size in enumerate([(c, c, 1, 1), (c, 1, 3, 3), (c, c, 1, 1)], 1):
                shapes |= conv_norm(f"layer{stage}.{block}.conv{i}", f"layer{stage}.{block}.bn{i}", *size)
        c_in = width
    return shapes | conv_norm("conv2", "bn2", 1024, c_in, 1, 1) | linear("linear", 1024, classes)


# Our name: the shapes for 100 classes, RepDistiller's number of parameters and of entries, the head's name.
PUBLISHED = {
    "resnet56": (resnet(9, (16, 16, 32, 64), 100), 861_620, 344, "fc"),
    "resnet8x4": (resnet(1, (32, 64, 128, 256), 100), 1_233_540, 62, "fc"),
    "wrn_40_2": (wrn(6, 2, 100), 2_255_156, 227, "fc"),
    "wrn_16_1": (wrn(2, 1, 100), 180_916, 82, "fc"),
    "vgg13": (vgg(2, 100), 9_462_180, 72, "classifier"),
    "resnet50_cifar": (resnet50(100), 23_705_252, 320, "linear"),
    "mobilenet_v2": (mobilenet_v2(100), 812_836, 320, "classifier.0"),
    "shufflenet_v1": (shufflenet_v1(100), 949_258, 296, "linear"),
    "shufflenet_v2": (shufflenet_v2(100), 1_355_528, 338, "linear"),
}
SMALL = resnet(1, (16, 16, 32, 64), 100)  # resnet8


def filled(shapes, seed=0):
    """A state_dict of these shapes with values that are all different."""
    random = torch.Generator().manual_seed(seed)
    return OrderedDict(
        (name, torch.randn(shape, generator=random) if shape else torch.tensor(93_600 + len(name)))
        for name, shape in shapes.items()
    )


def renamed(state, old, new):
    return OrderedDict((re.sub(f"^{re.escape(old)}(?=[.])", new, name), tensor) for name, tensor in state.items())


def prefixed(prefix, state):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def sgd(state):
    """The state of an optimizer with momentum, as RepDistiller saves it beside the network."""
    parameters = [torch.nn.Parameter(t) for name, t in state.items() if t.ndim and "running" not in name]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    torch.stack([parameter.sum() for parameter in parameters]).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def loaded(path, name, num_classes=100):
    """What a network holds after the file has been loaded strictly."""
    torch.manual_seed(1)
    model = models.build(name, num_classes)
    model.load_state_dict(weights.fit(model, weights.read(str(path)), str(path), name=name), strict=True)
    return model


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def own_head(model):
    return next(name for name, module in model.named_modules() if module is model.head)


@pytest.fixture
def save(tmp_path):
    """Save with torch.save; the path."""

    def save_(content, name="teacher.pth", **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save_


def refused(path, name="resnet8", num_classes=100):
    """The message with which a file is refused: one line that begins with the key and has the file."""
    with pytest.raises(ConfigError, match=r"^teacher\.weights must be") as error:
        loaded(path, name, num_classes)
    message = str(error.value)
    assert repr(str(path)) in message
    assert "\n" not in message
    assert len(message) < 1500
    return message


class TestPublished:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_the_table_here_has_the_published_sizes(self, name):
        shapes, parameters, entries, _ = PUBLISHED[name]
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        assert (
            sum(torch.Size(shape).numel() for key, shape in shapes.items() if not key.endswith(buffers)) == parameters
        )
        assert len(shapes) == entries

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_every_tensor_of_repdistillers_file_has_its_place(self, save, name):
        shapes, *_, head = PUBLISHED[name]
        state = filled(shapes)
        small = {key: tensor for key, tensor in state.items() if tensor.numel() < 20_000}
        path = save({"epoch": 240, "model": state, "accuracy": torch.tensor(72.34), "optimizer": sgd(small)})
        model = loaded(path, name)
        assert_same(model.state_dict(), renamed(state, head, own_head(model)))

    @pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_1", "shufflenet_v2"])
    def test_files_of_pytorch_0_4_have_no_counters(self, save, name):
        shapes, *_, head = PUBLISHED[name]
        state = filled(shapes)
        old = OrderedDict((key, tensor) for key, tensor in state.items() if not key.endswith("num_batches_tracked"))
        path = save({"epoch": 240, "model": old}, _use_new_zipfile_serialization=False)
        model = loaded(path, name)
        counted = {key: state[key] if key in old else torch.tensor(0) for key in state}
        assert_same(model.state_dict(), renamed(counted, head, own_head(model)))

    @pytest.mark.parametrize(("name", "head"), [
        ("mobilenet_v2", "classifier"), ("mobilenet_v2", "fc"), ("shufflenet_v1", "fc"), ("shufflenet_v2", "fc")
    ])  # fmt: skip
    def test_heads_of_sskd_and_cid(self, save, name, head):
        shapes, *_, published = PUBLISHED[name]
        state = filled(shapes)
        model = loaded(save({"model": renamed(state, published, head)}), name)
        assert_same(model.state_dict(), renamed(state, published, own_head(model)))

    @pytest.mark.parametrize("head", ["linear", "classifier", "classifier.0", "classifier.1", "head"])
    def test_any_usual_head(self, save, head):
        state = filled(SMALL)
        assert_same(loaded(save(renamed(state, "fc", head)), "resnet8").state_dict(), state)

    def test_a_head_that_the_model_has_goes_before_others(self, save):
        state = filled(SMALL)
        both = {**renamed(filled(SMALL, seed=1), "fc", "linear"), **state}
        assert_same(loaded(save(both), "resnet8").state_dict(), state)


class TestWrappers:
    STATE = filled(SMALL)
    OTHER = filled(resnet(1, (32, 64, 128, 256), 100))

    WRAPPED = {  # noqa: RUF012
        "raw": STATE,
        "cid, mdistiller": {"epoch": 240, "model": STATE, "best_acc": 72.3},
        "sskd": {"epoch": 240, "state_dict": STATE, "acc": 73.44},
        "ps-kd": {"net": prefixed("module.", STATE), "best_acc": 80.0, "accuracy_top5": 95.0},
        "model_state_dict": {"model_state_dict": STATE},
        "teacher": {"teacher": STATE},
        "data parallel": {"model": prefixed("module.", STATE)},
        "sskd with its head": {
            "state_dict": {
                **prefixed("backbone.", STATE),
                **filled({"proj_head.0.weight": (64, 64), "proj_head.0.bias": (64,), "proj_head.2.weight": (64, 64)}),
            }
        },
        "head beside the network": {**STATE, "proj_head.0.weight": torch.ones(64, 64)},
        "encoder": {"state_dict": prefixed("module.encoder.", STATE)},
        "student and a larger teacher": {"model": {**prefixed("student.", STATE), **prefixed("teacher.", OTHER)}},
        "a copy further inside": {"model": STATE, "aux": {"ema": filled(SMALL, seed=1)}},
    }

    @pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
    def test_the_network_is_found(self, save, wrapped):
        assert_same(loaded(save(wrapped), "resnet8").state_dict(), self.STATE)

    def test_the_one_that_fits_is_found(self, save):
        path = save(self.WRAPPED["student and a larger teacher"])
        assert_same(loaded(path, "resnet8x4").state_dict(), self.OTHER)

    def test_of_several_that_fit_none_is_chosen(self, save):
        both = {**prefixed("student.", self.STATE), **prefixed("teacher.", filled(SMALL, seed=1))}
        message = refused(save({"model": both}))
        assert message.endswith("(it holds several networks that fit: model.student., model.teacher.).")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions_become_float32(self, save, dtype):
        other = {name: tensor.to(dtype) if tensor.ndim else tensor for name, tensor in self.STATE.items()}
        found = loaded(save({"model": other}), "resnet8").state_dict()
        assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.int64}
        assert_same(found, {name: tensor.to(self.STATE[name].dtype) for name, tensor in other.items()})

    def test_dictionaries_that_hold_themselves_end(self, save):
        wrapped = {"model": self.STATE}
        wrapped["self"] = wrapped
        assert_same(loaded(save(wrapped), "resnet8").state_dict(), self.STATE)

    def test_safetensors(self, tmp_path):
        path = tmp_path / "teacher.safetensors"
        safetensors.torch.save_file(prefixed("module.", self.STATE), path, {"format": "pt"})
        assert_same(loaded(path, "resnet8").state_dict(), self.STATE)

    def test_the_kind_of_file_is_seen_in_its_content(self, tmp_path, save):
        path = save(self.STATE, "teacher.safetensors")
        assert_same(loaded(path, "resnet8").state_dict(), self.STATE)
        safetensors.torch.save_file(dict(self.STATE), tmp_path / "teacher.pth")
        assert_same(loaded(tmp_path / "teacher.pth", "resnet8").state_dict(), self.STATE)


class TestOtherNetworks:
    @pytest.fixture(autouse=True)
    def few_architectures(self, monkeypatch):
        """All of them take seconds to be looked through."""
        monkeypatch.setattr(models, "MODELS", {name: models.MODELS[name] for name in ("wrn", "vgg", "resnet")})

    def test_another_number_of_classes(self, save):
        message = refused(save({"model": filled(SMALL)}), num_classes=10)
        assert message.startswith("teacher.weights must be of resnet8 with 10 classes, but got ")
        assert (
            "fc.weight is [100, 64] and not [10, 64]; fc.bias is [100] and not [10]. It fits resnet8 with 100"
            in message
        )

    def test_another_number_of_classes_under_another_name_of_the_head(self, save):
        message = refused(save({"net": renamed(filled(SMALL), "fc", "linear")}), num_classes=10)
        assert "where fc.weight is [100, 64] and not [10, 64]; fc.bias" in message

    def test_a_shallower_network(self, save):
        message = refused(save({"model": filled(SMALL)}), "resnet14")
        assert "where layer1.1.conv1.weight is missing; layer1.1.bn1.weight is missing (" in message
        assert message.endswith("It fits resnet8 with 100 classes.")

    def test_a_deeper_network_is_not_cut(self, save):
        state = filled(PUBLISHED["resnet56"][0])
        message = refused(save(prefixed("module.", state)))
        assert "where layer1.1.conv1.weight has no place; layer1.1.bn1.weight has no place (" in message
        assert message.endswith("(288 differences in all). It fits resnet56 with 100 classes.")  # 344 - 56

    def test_a_further_stage_is_not_cut(self, save):
        state = filled(SMALL) | filled({"layer4.0.conv1.weight": (64, 64, 3, 3)})
        assert "where layer4.0.conv1.weight has no place." in refused(save(state))

    def test_a_wider_network(self, save):
        message = refused(save({"model": filled(PUBLISHED["resnet8x4"][0])}))
        assert "where conv1.weight is [32, 3, 3, 3] and not [16, 3, 3, 3]; bn1.weight is [32] and not [16]; " in message
        assert "; layer1.0.downsample.0.weight has no place; layer1.0.downsample.1.weight has no place (" in message
        assert message.endswith("It fits resnet8x4 with 100 classes.")

    def test_another_family(self, save):
        message = refused(save({"state_dict": filled(PUBLISHED["vgg13"][0])}), "wrn_16_1")
        assert "conv1.weight is missing" in message
        assert message.endswith("It fits vgg13 with 100 classes.")

    def test_a_network_that_nobody_knows(self, save):
        message = refused(save({"net": {"conv.weight": torch.ones(8, 3, 5, 5), "fc.weight": torch.ones(7, 8)}}))
        assert "conv1.weight is missing" in message
        assert "It fits" not in message

    def test_networks_that_cannot_have_its_channels_are_passed_over(self, save, monkeypatch):
        def build(match, num_classes, in_channels):
            raise ConfigError("three channels only")

        picky = replace(models.MODELS["vgg"], build=build)
        monkeypatch.setattr(models, "MODELS", {"vgg": picky, "resnet": models.MODELS["resnet"]})
        message = refused(save(filled(SMALL)), num_classes=10)
        assert message.endswith("It fits resnet8 with 100 classes.")

    def test_whole_numbers_are_no_weights(self, save):
        state = filled(SMALL)
        state["conv1.weight"] = state["conv1.weight"].to(torch.int8)
        assert "where conv1.weight is torch.int8 and not torch.float32." in refused(save(state))


class TestFilesThatNeedUnpickling:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_are_refused(self, save, zipped):
        content = {"opt": argparse.Namespace(model="resnet8"), "model": filled(SMALL)}
        message = refused(save(content, _use_new_zipfile_serialization=zipped))
        assert "also holds argparse.Namespace, and unpickling that may run any code. If you trust the file" in message

    def test_the_command_converts_them(self, save):
        state = filled(SMALL)
        options = argparse.Namespace(model="resnet8", trial="1")  # as in RepDistiller's resnet8_last.pth
        content = {"opt": options, "model": state, "optimizer": sgd(state)}
        path = save(content, "it's the last.pth", _use_new_zipfile_serialization=False)
        self.run(refused(path).partition("convert it: ")[2])
        assert_same(loaded(path.with_name("it's the last.tensors.pth"), "resnet8").state_dict(), state)

    def test_also_of_a_whole_module(self, save):
        state = filled(SMALL)
        model = models.build("resnet8", 100)
        model.load_state_dict(state)
        path = save({"net": torch.nn.DataParallel(model), "acc": 70.0})
        message = refused(path)
        assert "kdtrain.models.resnet.ResNet" in message
        self.run(message.partition("convert it: ")[2])
        assert_same(loaded(path.with_suffix(".tensors.pth"), "resnet8").state_dict(), state)

    def test_nothing_of_them_is_run(self, save, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "made"),)

        for zipped in (True, False):
            refused(save({"model": filled(SMALL), "evil": Evil()}, _use_new_zipfile_serialization=zipped))
        assert not (tmp_path / "made").exists()

    @staticmethod
    def run(command):
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        env = {**os.environ, "PATH": path, "PYTHONWARNINGS": "ignore"}
        subprocess.run(["sh", "-c", command], check=True, env=env, timeout=120)


class TestDamagedFiles:
    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("kept", [1, 100, 0.5, 0.99])
    def test_cut_short(self, save, zipped, kept):
        path = save({"model": filled(SMALL)}, _use_new_zipfile_serialization=zipped)
        data = path.read_bytes()
        path.write_bytes(data[: kept if kept >= 1 else int(kept * len(data))])
        assert "(it is damaged, or neither safetensors nor written by torch.save)" in refused(path)

    @pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
    def test_safetensors_cut_short(self, tmp_path, kept):
        path = tmp_path / "teacher.safetensors"
        data = safetensors.torch.save(dict(filled(SMALL)))
        path.write_bytes(data[: int(kept * len(data))])
        assert "(it is damaged: " in refused(path)
        with pytest.raises(ConfigError, match=r"^assistant\[1\]\.weights must be a file of weights, but got"):
            weights.identity(str(path), "assistant[1].weights")

    @pytest.mark.parametrize(
        "content", [b"", b"\x80" * 100, b"<!DOCTYPE html><html>Not found", b"version https://git-lfs", b"PK\x03\x04"]
    )
    def test_something_else(self, tmp_path, content):
        path = tmp_path / "teacher.pth"
        path.write_bytes(content)
        assert "(it is damaged, or neither safetensors nor written by torch.save)" in refused(path)

    @pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2), {"epoch": 3}, {}])
    def test_no_tensors_by_name(self, save, content):
        assert "(it holds no tensors by name)" in refused(save(content))

    def test_missing(self, tmp_path):
        assert "(No such file or directory)" in refused(tmp_path / "none.pth")
        with pytest.raises(ConfigError, match=r"^assistant\[0\]\.weights must be a file of weights, but got '"):
            weights.identity(str(tmp_path / "none.pth"), "assistant[0].weights")

    def test_a_folder(self, tmp_path):
        assert "(Is a directory)" in refused(tmp_path)


class TestIdentity:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_of_a_file_of_torch_is_its_sha256(self, save, zipped):
        path = save({"model": filled(SMALL)}, _use_new_zipfile_serialization=zipped)
        assert weights.identity(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_of_safetensors_of_others_too(self, tmp_path):
        path = tmp_path / "teacher.safetensors"
        safetensors.torch.save_file(dict(filled(SMALL)), path, {"format": "pt"})
        assert weights.identity(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()

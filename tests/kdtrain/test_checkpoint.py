import hashlib
import os

import pytest
import safetensors.torch
import torch

from kdtrain import checkpoint, models
from kdtrain.config import ConfigError, DataConfig, MethodRef, Recipe, TeacherRef, TrialConfig
from kdtrain.weights import identity

CPU = torch.device("cpu")
ID = "0123456789abcdef"


def network(name="resnet8", seed=0):
    torch.manual_seed(seed)
    return models.build(name, 10, 1)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def weights(tmp_path):
    """A file of weights of a resnet8, with what its method needs to predict: here CID's."""
    path = tmp_path / "weights.safetensors"
    method = {"centres": torch.ones(10, 64), "classifier.weight": torch.zeros(10, 128)}
    path.write_bytes(checkpoint.pack_weights(network().state_dict(), method, ID))
    return path


class TestState:
    def test_round_trip(self):
        student = network()
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
        student(torch.ones(2, 1, 28, 28)).logits.sum().backward()
        optimizer.step()
        state = {
            "trial_id": ID,
            "student": student.state_dict(),
            "optimizer": optimizer.state_dict(),
            "records": [{"epoch": 1, "terms": {"ce": 2.5}, "val_acc": None}],
        }
        found = checkpoint.unpack_state(checkpoint.pack_state(state), CPU)
        assert list(found) == list(state)
        assert found["trial_id"] == ID
        assert found["records"] == state["records"]
        assert same(found["student"], state["student"])
        momenta = [{0: entry["momentum_buffer"]} for entry in state["optimizer"]["state"].values()]
        restored = [{0: entry["momentum_buffer"]} for entry in found["optimizer"]["state"].values()]
        assert all(same(a, b) for a, b in zip(restored, momenta, strict=True))
        assert found["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]

    def test_packing_copies(self):
        tensor = torch.zeros(3)
        packed = checkpoint.pack_state({"tensor": tensor})
        tensor.fill_(1)
        assert checkpoint.unpack_state(packed, CPU)["tensor"].sum() == 0

    def test_objects_are_not_unpickled(self):
        packed = checkpoint.pack_state({"date": os.path.realpath})
        assert checkpoint.unpack_state(packed, CPU) is None

    @pytest.mark.parametrize("cut", [0, 1, 100, -1])
    def test_damaged_state_is_none(self, cut):
        packed = checkpoint.pack_state({"tensor": torch.zeros(100)})
        assert checkpoint.unpack_state(packed[:cut], CPU) is None


class TestWeights:
    def test_round_trip(self, weights):
        tensors = safetensors.torch.load_file(weights)
        student = {name: tensor for name, tensor in tensors.items() if not name.startswith("method.")}
        assert same(student, dict(network().state_dict()))
        assert same({name: tensors[f"method.{name}"] for name in ("centres", "classifier.weight")}, {
            "centres": torch.ones(10, 64), "classifier.weight": torch.zeros(10, 128)
        })  # fmt: skip
        assert len(tensors) == len(student) + 2

    def test_layout_in_memory_does_not_matter(self):
        student = network()
        plain = checkpoint.pack_weights(student.state_dict(), {}, ID)
        channels_last = student.to(memory_format=torch.channels_last)
        assert checkpoint.pack_weights(channels_last.state_dict(), {}, ID) == plain

    def test_loaded_teacher_equals_the_trained_student(self, weights):
        teacher = network(seed=1)
        checkpoint.load_teacher(teacher, str(weights), ID)
        assert same(teacher.state_dict(), network().state_dict())


class TestIdentity:
    def test_is_the_trials_id(self, weights):
        assert identity(str(weights)) == ID

    @pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
    def test_of_other_files_is_their_hash(self, tmp_path, metadata):
        path = tmp_path / "other.safetensors"
        safetensors.torch.save_file(dict(network().state_dict()), path, metadata)
        assert identity(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()

    @pytest.mark.parametrize("save", [safetensors.torch.save_file, torch.save])
    def test_hash_is_accepted_as_id(self, tmp_path, save):
        path = tmp_path / "other.weights"
        save(dict(network().state_dict()), path)
        teacher = network(seed=1)
        checkpoint.load_teacher(teacher, str(path), hashlib.sha256(path.read_bytes()).hexdigest())
        assert same(teacher.state_dict(), network().state_dict())


class TestRefusals:
    def test_another_teacher(self, weights):
        message = rf"^the teacher {'f' * 16} was asked for, but .*weights\.safetensors holds {ID}\.$"
        with pytest.raises(ConfigError, match=message):
            checkpoint.load_teacher(network(), str(weights), "f" * 16)

    @pytest.mark.parametrize("name", ["resnet14", "wrn_16_1", "resnet8x4"])
    def test_another_architecture(self, weights, name):
        with pytest.raises(ConfigError, match=r"^teacher\.weights must be of the teacher with 10 classes, but got '"):
            checkpoint.load_teacher(network(name), str(weights), ID)

    def test_the_architecture_is_named_where_it_is_known(self, weights):
        with pytest.raises(ConfigError, match=r"^teacher\.weights must be of resnet14 with 10 classes, but got '"):
            checkpoint.load_teacher(network("resnet14"), str(weights), ID, "resnet14")

    def test_another_number_of_classes(self, weights):
        with pytest.raises(
            ConfigError, match=r"weights\.safetensors', where fc\.weight is \[10, 64\] and not \[100, 64\]"
        ):
            checkpoint.load_teacher(models.build("resnet8", 100, 1), str(weights), ID)

    def test_the_refusal_is_one_line_whatever_does_not_fit(self, weights):
        with pytest.raises(ConfigError, match="must be of the teacher") as error:
            checkpoint.load_teacher(network("resnet110"), str(weights), ID)
        assert len(str(error.value).splitlines()) == 1
        assert len(str(error.value)) < 1000

    def test_a_missing_file(self, tmp_path):
        path = str(tmp_path / "none.safetensors")
        message = r"^teacher\.weights must be a file of weights, but got '.*none\.safetensors' \(No such file"
        with pytest.raises(ConfigError, match=message):
            identity(path)

    def test_the_key_that_gives_the_file_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match=r"^assistant\[1\]\.weights must be a file of weights, but got '"):
            identity(str(tmp_path / "none.safetensors"), "assistant[1].weights")

    def test_another_format(self, tmp_path):
        path = tmp_path / "teacher.pth"
        path.write_bytes(b"not a file of tensors")
        with pytest.raises(ConfigError, match=r"^teacher\.weights must be a file of weights, but got '.*teacher\.pth'"):
            checkpoint.load_teacher(network(), str(path), identity(str(path)))

    def test_a_file_cut_short(self, weights):
        weights.write_bytes(weights.read_bytes()[:-1000])
        with pytest.raises(ConfigError, match=r"^teacher\.weights must be a file of weights, but got '.*is damaged"):
            checkpoint.load_teacher(network(), str(weights), ID)


class TestTrial:
    """A file of weights has the trial of which it is, so that it can be used by itself."""

    TRIAL = TrialConfig(
        data=DataConfig(dataset="fashion_mini", fraction=0.5, val_size=100, mean=(0.3,)),
        train=Recipe(epochs=3, lr_milestones=(0.5, 2), warmup_epochs=1),
        teacher=TeacherRef(model="resnet8", id="0" * 16),
        student="resnet8",
        method=MethodRef(name="kd", params={"tau": 2.5, "unset": None}),
        seed=2**32,
        view_seed=5,
    )

    def test_is_read_back(self, tmp_path):
        path = tmp_path / "model.safetensors"
        path.write_bytes(checkpoint.pack_weights(network().state_dict(), {}, ID, self.TRIAL))
        assert checkpoint.read_trial(str(path)) == self.TRIAL
        assert identity(str(path)) == ID

    def test_of_other_files_is_none(self, weights, tmp_path):
        path = tmp_path / "teacher.pth"
        torch.save(network().state_dict(), path)
        assert checkpoint.read_trial(str(weights)) is None
        assert checkpoint.read_trial(str(path)) is None

    def test_of_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"^student must be a file of weights, but got '.*' \(No such file"):
            checkpoint.read_trial(str(tmp_path / "none.safetensors"), "student")


class TestWriteFile:
    def test_writes_and_replaces_and_makes_folders(self, tmp_path):
        path = tmp_path / "new" / "folder" / "file.bin"
        for data in (b"one", b"another"):
            checkpoint.write_file(data, path)
            assert path.read_bytes() == data
        assert os.listdir(path.parent) == ["file.bin"]

    def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        path = tmp_path / "file.bin"
        checkpoint.write_file(b"old", path)

        def fail(source, target):
            assert source.read_bytes() == b"new"  # all of it is there before the name changes
            raise OSError("disk full")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            checkpoint.write_file(b"new", path)
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["file.bin"]

    def test_nothing_is_left_where_the_name_is_a_folders(self, tmp_path):
        (tmp_path / "file.bin").mkdir()
        with pytest.raises(OSError, match="directory"):
            checkpoint.write_file(b"new", tmp_path / "file.bin")
        assert os.listdir(tmp_path) == ["file.bin"]


def test_weights_with_one_wrong_bit_are_refused(tmp_path):
    packed = bytearray(checkpoint.pack_weights({"w": torch.ones(50)}, {}, "0" * 16))
    packed[-3] ^= 1
    path = tmp_path / "model.safetensors"
    path.write_bytes(packed)
    with pytest.raises(ConfigError, match="is damaged: its tensors do not have the SHA-256"):
        checkpoint.load_teacher(torch.nn.Linear(1, 1), str(path), "0" * 16)

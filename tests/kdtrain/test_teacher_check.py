from dataclasses import replace

import pytest
import torch

from kdtrain import checkpoint, data, models, teacher_check
from kdtrain.config import ConfigError, DataConfig, TeacherRef, Where
from kdtrain.data.memory import Arrays, opener

MINI = DataConfig(dataset="fashion_mini")


@pytest.fixture
def save(tmp_path):
    """Save a network as its trial would; the reference and the path."""

    def save_(model, name="resnet8"):
        path = tmp_path / "teacher.safetensors"
        path.write_bytes(checkpoint.pack_weights(model.state_dict(), {}, "0" * 16))
        return TeacherRef(model=name, id="0" * 16), str(path)

    return save_


def network(num_classes=10):
    torch.manual_seed(0)
    return models.build("resnet8", num_classes, 1)


def bright(width, right, n):
    """A reader of `n` images by turns bright and dark, labelled 1 and 0, the last `n - right` wrongly."""

    def read(where):
        images = torch.zeros(n, 1, width, width, dtype=torch.uint8)
        images[::2] = 255
        labels = torch.zeros(n, dtype=torch.int64)
        labels[::2] = 1
        labels[right:] = 1 - labels[right:]
        return Arrays(images[:2], labels[:2], images, labels)

    return read


def judge_of_brightness():
    """A resnet8 that says 1 for positive and 0 for negative images, through one channel of each layer.

    Its shortcuts carry the first channel, its blocks add nothing: the head sees the mean of relu(x).
    """
    model = network(2).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 4 or name.startswith("fc"):
                parameter.zero_()
        model.conv1.weight[0, 0, 1, 1] = 1.0
        for layer in (model.layer2, model.layer3):
            layer[0].downsample[0].weight[0, 0, 0, 0] = 1.0
        model.fc.weight[1, 0] = 1.0
        model.fc.bias[0] = 0.01
    return model


class TestEvaluate:
    def test_of_a_judge_of_brightness(self, save, monkeypatch):
        info = replace(
            data.DATASETS["fashion_mini"], num_classes=2, image_size=8, mean=(0.5,), std=(0.5,),
            open=opener(bright(8, 900, 1200)),
        )  # fmt: skip
        monkeypatch.setitem(data.DATASETS, "fashion_mini", info)
        ref, path = save(judge_of_brightness())
        found = teacher_check.evaluate(ref, MINI, path, Where())
        assert found.top1 == 75  # of 1200 images, in three batches, the last 300 are labelled wrong
        assert found.class_recall == (75, 75)

    def test_equals_the_share_found_image_by_image(self, save):
        model = network().eval()
        ref, path = save(model)
        test = data.load(MINI, Where(), torch.device("cpu")).test
        with torch.inference_mode():
            right = sum(
                int(model(next(test.plain([places]))).logits.argmax(1).eq(test.labels[places]).sum())
                for places in torch.arange(len(test.labels)).split(125)
            )
        found = teacher_check.evaluate(ref, MINI, path, Where())
        assert len(test.labels) == 2000
        assert found.top1 == pytest.approx(right / 20)

    def test_leaves_the_generator_alone(self, save):
        ref, path = save(network())
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        teacher_check.evaluate(ref, MINI, path, Where())
        assert torch.rand(1) == expected

    def test_of_another_network_is_refused_by_name(self, save):
        _, path = save(network())
        ref = TeacherRef(model="resnet14", id="0" * 16)
        with pytest.raises(
            ConfigError, match=r"must be of resnet14 with 10 classes, but got .* It fits resnet8 with 10"
        ):
            teacher_check.evaluate(ref, MINI, path, Where())

    def test_of_a_changed_file_is_refused(self, save):
        ref, path = save(network())
        with pytest.raises(
            ConfigError, match=r"the teacher 1111111111111111 was asked for, but .* holds 0000000000000000"
        ):
            teacher_check.evaluate(ref.model_copy(update={"id": "1" * 16}), MINI, path, Where())

    def test_unknown_device_is_refused(self, save):
        ref, path = save(network())
        with pytest.raises(ConfigError, match="device must be one of this machine, but got 'foo'"):
            teacher_check.evaluate(ref, MINI, path, Where(device="foo"))

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_is_the_same_on_the_gpu(self, save):
        ref, path = save(network())
        found = teacher_check.evaluate(ref, MINI, path, Where(device="cuda"))
        assert found.nll == pytest.approx(teacher_check.evaluate(ref, MINI, path, Where(device="cpu")).nll, rel=1e-3)


class TestExpect:
    WHAT = "teacher resnet56 (resnet56.pth) on cifar100"

    @pytest.mark.parametrize("top1", [72.24, 72.3, 72.34, 72.44])
    def test_within_is_accepted_ends_included(self, top1):
        teacher_check.expect(top1, 72.34, 0.1, self.WHAT)

    @pytest.mark.parametrize("top1", [72.23, 72.45, 71.02, 1.0, float("nan")])
    def test_beyond_is_refused(self, top1):
        with pytest.raises(ConfigError) as error:
            teacher_check.expect(top1, 72.34, 0.1, self.WHAT)
        assert str(error.value) == f"{self.WHAT} must have a top-1 of 72.34 ± 0.1, but has {top1:g} in float32."

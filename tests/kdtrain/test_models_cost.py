import time

import pytest
import torch
import torchvision
from torch import nn

from kdtrain import models
from kdtrain.config import ConfigError
from kdtrain.models import cost as module
from kdtrain.models.cost import cost, latency, parameters
from kdtrain.models.outputs import Model, Outputs

EXAMPLES = [example for family in models.MODELS.values() for example in family.examples]


@pytest.fixture
def by_hand(monkeypatch):
    """Multiply-adds of each convolution and linear layer that runs in `cost`, from their shapes."""
    counts = []

    def conv(layer, _, out):
        height, width = layer.kernel_size
        counts.append(out[0].numel() * layer.in_channels // layer.groups * height * width)

    def linear(layer, inputs, _):
        counts.append(inputs[0].shape[0] * layer.in_features * layer.out_features)

    def watched(*args):
        model = build(*args)
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(conv)
            elif isinstance(layer, nn.Linear):
                layer.register_forward_hook(linear)
        return model

    def forget():
        for remembered in (module.unfilled, module.shapes, cost):
            remembered.cache_clear()

    build = models.build
    monkeypatch.setattr(module.models, "build", watched)
    forget()  # networks that were built before are not watched
    yield counts
    forget()


@pytest.mark.parametrize("name", EXAMPLES)
def test_multiply_adds_are_those_of_convolutions_and_linear_layers(name, by_hand):
    # 32 for CIFAR; where that does not fit, 64 for ImageNet.
    try:
        its = cost(name, 10, 32)
    except ConfigError:
        assert not by_hand
        its = cost(name, 10, 64)
    assert its.multiply_adds == sum(by_hand)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet34", "resnet50"]
    + [f"torchvision:{name}" for name in ("mobilenet_v2", "vgg16", "regnet_y_400mf", "vit_b_32", "swin_t")],
)
def test_published_numbers(name):
    weights = torchvision.models.get_model_weights(name.removeprefix("torchvision:"))["IMAGENET1K_V1"]
    its = cost(name, 1000, weights.transforms().crop_size[0])
    assert its.params == parameters(name, 1000) == weights.meta["num_params"]
    # In 10^9 multiply-adds, three decimals.
    assert its.multiply_adds / 1e9 == pytest.approx(weights.meta["_ops"], abs=6e-4)


def test_a_network_counted_by_hand():
    # resnet8 (widths 16, 32, 64; one block a stage) at 32 x 32: 3 x 3 convolutions, two 1 x 1 shortcuts, the head.
    at = 32 * 32
    first = at * 9 * 3 * 16 + 2 * at * 9 * 16 * 16
    second = at // 4 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32)
    third = at // 16 * (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64)
    its = cost("resnet8", 100, 32)
    assert its.multiply_adds == first + second + third + 64 * 100
    assert its.params == 83_892  # of RepDistiller's modules
    assert [tuple(stage.shape) for stage in its.shapes.stages] == [(1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8)]


def test_grey_images_cost_less():
    assert cost("resnet8", 10, 32).multiply_adds - cost("resnet8", 10, 32, 1).multiply_adds == 32 * 32 * 9 * 2 * 16


def test_errors_name_the_network():
    with pytest.raises(ConfigError, match=r"^resnet8: ResNet needs images .* but got 30 x 30\.$"):
        cost("resnet8", 10, 30)
    for function in (lambda: cost("resnet7", 10, 32), lambda: latency("resnet7", 10, 32)):
        with pytest.raises(ConfigError, match=r"but got resnet7 at model\.$"):
            function()


class Sleeper(Model):
    """Takes some milliseconds, the first pass 0.3 s, and remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.given = []

    def outputs(self, x):
        pooled = x.mean((2, 3))
        if not x.is_meta:
            time.sleep(0.005 if self.given else 0.3)
            ours = torch.is_inference_mode_enabled(), self.training
            self.given.append((tuple(x.shape), x.is_contiguous(memory_format=torch.channels_last), *ours))
        return Outputs(self.fc(pooled), pooled, x, (), ())

    @property
    def head(self):
        return self.fc

    @property
    def trunk(self):
        return ()

    @property
    def preact_norms(self):
        return ()


def test_latency_is_that_of_the_forward_pass_after_a_warm_up(monkeypatch):
    built = []
    monkeypatch.setattr(module.models, "build", lambda *_: built.append(Sleeper()) or built[-1])
    found = latency("any", 2, 8, batch_size=4, seconds=0.1)
    assert 5 <= found.low <= found.median <= found.high
    assert found.median < 100  # the first pass is not among them
    assert 2 <= found.n <= 20
    given = built[-1].given
    assert len(given) == found.n + module.WARM_UP
    assert set(given) == {((4, 3, 8, 8), True, True, False)}
    assert (found.batch_size, found.threads) == (4, torch.get_num_threads())


def test_latency_of_a_network_leaves_the_random_numbers_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = latency("resnet8", 10, 32, seconds=0.02)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.n >= 2
    assert 0 < found.low <= found.median <= found.high


def test_the_quartiles_are_of_the_times(monkeypatch):
    monkeypatch.setattr(module, "_times", lambda *_: [4.0, 1.0, 3.0, 2.0, 5.0])
    found = latency("resnet8", 10, 32)
    assert (found.low, found.median, found.high, found.n) == (2.0, 3.0, 4.0, 5)

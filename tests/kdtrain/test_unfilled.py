"""Networks without weights: the shapes they tell are those of real ones, and nothing is drawn or allocated for them."""

import pytest
import torch

from kdtrain import models
from kdtrain.config import ConfigError
from kdtrain.models.cost import cost
from kdtrain.models.unfilled import shapes, unfilled

FIRST = [family.examples[0] for family in models.MODELS.values()]


@pytest.fixture(autouse=True)
def anew():
    """What other tests had remembered would hide how it comes about."""
    for known in (unfilled, shapes, cost):
        known.cache_clear()


def size_for(model):
    size = max(model.least, 32)
    return size + -size % model.multiple


def of(outputs):
    """The shapes of all that a network shows."""
    single = [tuple(tensor.shape) for tensor in (outputs.logits, outputs.pooled, outputs.stem)]
    return single, *([tuple(tensor.shape) for tensor in maps] for maps in (outputs.stages, outputs.preact))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FIRST)
def test_shapes_are_those_of_a_real_forward_pass(name, channels):
    model = models.build(name, 7, channels).eval()
    size = size_for(model)
    with torch.inference_mode():
        real = model(torch.randn(1, channels, size, size))
    assert of(shapes(name, 7, size, channels)) == of(real)


@pytest.mark.parametrize("name", FIRST)
def test_names_and_shapes_of_the_weights_are_those_of_a_network_on_the_meta_device(name):
    with torch.device("meta"):
        whole = models.build(name, 7)
    assert {key: (value.shape, value.dtype) for key, value in unfilled(name, 7).state_dict().items()} == {
        key: (value.shape, value.dtype) for key, value in whole.state_dict().items()
    }
    assert of(shapes(name, 7, size_for(whole))) == of(
        whole.eval()(torch.empty(1, 3, size_for(whole), size_for(whole), device="meta"))
    )


@pytest.mark.parametrize("name", FIRST)
def test_nothing_is_drawn_and_nothing_allocated(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = unfilled(name, 7)
    outputs = shapes(name, 7, size_for(model))
    assert torch.equal(torch.get_rng_state(), before)
    tensors = [*model.parameters(), *model.buffers(), *outputs[:3], *outputs.stages, *outputs.preact]
    assert all(tensor.is_meta for tensor in tensors)
    assert not model.training


def test_real_networks_built_after_one_have_weights_that_are_drawn():
    unfilled("resnet8", 7)
    torch.manual_seed(0)
    model = models.build("resnet8", 7)
    assert model.conv1.weight.std() > 0
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert (model(torch.randn(2, 3, 16, 16)).pooled >= 0).all()  # a ReLU that computes


def test_one_network_serves_all_and_others_have_their_own():
    assert unfilled("resnet8", 7) is unfilled("resnet8", 7)
    assert unfilled("resnet8", 8).head.out_features == 8
    assert unfilled("resnet8", 7, 1).conv1.in_channels == 1


def test_counts_are_not_changed_by_what_was_remembered():
    first = cost("resnet8", 10, 32)
    shapes("resnet8", 10, 32)
    cost.cache_clear()
    again = cost("resnet8", 10, 32)
    assert (first.params, first.multiply_adds) == (again.params, again.multiply_adds)
    # 78,042 parameters (RepDistiller's modules); by hand 3 x 3 convolutions on 32, 16 and 8 rows, 1 x 1 shortcuts.
    convolutions = 32**2 * (3 * 16 + 2 * 16 * 16) * 9 + 16**2 * (16 * 32 + 32 * 32) * 9 + 8**2 * (32 * 64 + 64 * 64) * 9
    shortcuts = 16**2 * 16 * 32 + 8**2 * 32 * 64
    assert (first.params, first.multiply_adds) == (78_042, convolutions + shortcuts + 64 * 10)


def test_sizes_that_do_not_fit_and_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"^mobilenet_v1: MobileNetV1 needs images .* multiples of 32 .* 32 x 32"):
        shapes("mobilenet_v1", 10, 32)
    with pytest.raises(ConfigError, match=r"unknown model 'resnet'"):
        shapes("resnet", 10, 32)
    with pytest.raises(ConfigError, match=r"unknown model 'resnet'"):
        unfilled("resnet", 10)

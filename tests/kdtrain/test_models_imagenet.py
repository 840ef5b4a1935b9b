import pytest
import torch
import torch.nn.functional as F
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor

from kdtrain import models
from kdtrain.config import ConfigError

# name: blocks of each stage, channels of each stage
RESNETS = {
    "resnet18": ((2, 2, 2, 2), (64, 128, 256, 512)),
    "resnet34": ((3, 4, 6, 3), (64, 128, 256, 512)),
    "resnet50": ((3, 4, 6, 3), (256, 512, 1024, 2048)),
}


def on_meta(name, num_classes=1000, in_channels=3):
    with torch.device("meta"):
        return models.build(name, num_classes, in_channels)


def seeded(name, num_classes=10, in_channels=3):
    torch.manual_seed(0)
    return models.build(name, num_classes, in_channels)


def with_statistics(model):
    """The model in eval mode, with running statistics and BatchNorm weights that a wrong order would not survive."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


# torchvision's documentation; for MobileNet the sum over its layers: 3 * 3 * 3 * 32 + 64, then of each unit
# 9 * c_in + c_in * c_out + 2 * (c_in + c_out), at last 1024 * 1000 + 1000.
@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("mobilenet_v1", 4_231_976)],
)
def test_parameters(name, count):
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == count


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_entries_are_torchvisions(name):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None).state_dict()
    ours = on_meta(name).state_dict()
    assert [(key, tensor.shape) for key, tensor in ours.items()] == [(k, t.shape) for k, t in theirs.items()]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_start_with_torchvisions_weights(name):
    ours = seeded(name).state_dict()
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=10).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_features_are_those_of_torchvisions_graph(name):
    model = with_statistics(seeded(name))
    theirs = torchvision.models.get_model(name, weights=None, num_classes=10)
    theirs.load_state_dict(model.state_dict())
    layers = [f"layer{i}" for i in (1, 2, 3, 4)]
    sums = [f"{layer}.{blocks - 1}.add" for layer, blocks in zip(layers, RESNETS[name][0], strict=True)]
    nodes = ["maxpool", *layers, "flatten", "fc"]
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        out, full = model(x), create_feature_extractor(theirs.eval(), nodes)(x)
        # A graph that ends at a sum: the ReLU after it works in place.
        preact = [create_feature_extractor(theirs, [node])(x)[node] for node in sums]
    torch.testing.assert_close(out.stem, full["maxpool"])
    torch.testing.assert_close(out.stages, tuple(full[layer] for layer in layers))
    torch.testing.assert_close(out.preact, tuple(preact))
    torch.testing.assert_close((out.pooled, out.logits), (full["flatten"], full["fc"]))


def test_the_sums_of_a_resnet_are_not_overwritten():
    out = seeded("resnet18")(torch.randn(2, 3, 64, 64))
    for preact, stage in zip(out.preact, out.stages, strict=True):
        assert preact.min() < 0
        torch.testing.assert_close(stage, preact.clamp(min=0))


@pytest.mark.parametrize("name", RESNETS)
@pytest.mark.parametrize(("size", "channels"), [(224, 3), (64, 1)])
def test_resnet_shapes(name, size, channels):
    out = on_meta(name, 7, channels)(torch.empty(2, channels, size, size, device="meta"))
    widths = RESNETS[name][1]
    assert (out.logits.shape, out.pooled.shape) == ((2, 7), (2, widths[-1]))
    assert out.stem.shape == (2, 64, size // 4, size // 4)
    expected = [(2, width, size // s, size // s) for width, s in zip(widths, (4, 8, 16, 32), strict=True)]
    assert [tuple(stage.shape) for stage in out.stages] == expected
    assert [tuple(preact.shape) for preact in out.preact] == expected


def test_a_resnet_for_grey_images_starts_as_wide():
    conv1 = seeded("resnet18", in_channels=1).conv1
    assert conv1.weight.shape == (64, 1, 7, 7)
    # fan_out, 64 * 7 * 7, does not know the number of images' channels; five standard errors of a standard deviation.
    assert conv1.weight.std().item() == pytest.approx((2 / 3136) ** 0.5, rel=5 / (2 * 3136) ** 0.5)


@pytest.mark.parametrize(
    ("width", "name", "channels"),
    [(1, "mobilenet_v1", (128, 256, 512, 1024)), (0.25, "mobilenet_v1_w0.25", (32, 64, 128, 256))],
)
@pytest.mark.parametrize("size", [224, 64])
def test_mobilenet_shapes(width, name, channels, size):
    out = on_meta(name, 7, 1)(torch.empty(2, 1, size, size, device="meta"))
    assert (out.logits.shape, out.pooled.shape) == ((2, 7), (2, channels[-1]))
    assert out.stem.shape == (2, 32 * width, size // 2, size // 2)
    expected = [(2, c, size // s, size // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)]
    assert [tuple(stage.shape) for stage in out.stages] == expected
    assert [tuple(preact.shape) for preact in out.preact] == expected


def test_mobilenet_keys():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {"fc.weight", "fc.bias"}
    for unit in range(14):
        for place in (0, 3) if unit else (0,):
            keys.add(f"model.{unit}.{place}.weight")
            keys |= {f"model.{unit}.{place + 1}.{entry}" for entry in norm}
    assert set(on_meta("mobilenet_v1").state_dict()) == keys


def norm(x, w, key):
    return F.batch_norm(x, w[f"{key}.running_mean"], w[f"{key}.running_var"], w[f"{key}.weight"], w[f"{key}.bias"])


def test_mobilenet_equals_its_formula_on_the_state_dict():
    model = with_statistics(seeded("mobilenet_v1_w0.25"))
    w, x = model.state_dict(), torch.randn(2, 3, 96, 64)
    h = stem = F.relu(norm(F.conv2d(x, w["model.0.0.weight"], stride=2, padding=1), w, "model.0.1"))
    sums = {}
    for unit in range(1, 14):
        key, stride = f"model.{unit}", 2 if unit in (2, 4, 6, 12) else 1
        h = F.conv2d(h, w[f"{key}.0.weight"], stride=stride, padding=1, groups=h.shape[1])
        h = F.conv2d(F.relu(norm(h, w, f"{key}.1")), w[f"{key}.3.weight"])
        sums[unit] = norm(h, w, f"{key}.4")
        h = F.relu(sums[unit])
    with torch.no_grad():
        out = model(x)
    preact = tuple(sums[unit] for unit in (3, 5, 11, 13))
    torch.testing.assert_close(out.preact, preact)
    torch.testing.assert_close(out.stages, tuple(map(F.relu, preact)))
    torch.testing.assert_close(out.stem, stem)
    torch.testing.assert_close(out.pooled, h.mean((2, 3)))
    torch.testing.assert_close(out.logits, h.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"])


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("resnet34", ("layer1.2.bn2", "layer2.3.bn2", "layer3.5.bn2", "layer4.2.bn2")),
        ("resnet50", ("layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3")),
        ("mobilenet_v1", ("model.3.4", "model.5.4", "model.11.4", "model.13.4")),
    ],
)
def test_norms_before_the_last_relu(name, norms):
    model = on_meta(name)
    modules = dict(model.named_modules())
    assert list(model.preact_norms) == [modules[key] for key in norms]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v1_w0.25"])
def test_each_part_of_the_trunk_makes_its_map(name):
    # A part that is changed changes its own map and later ones, no earlier one; together they are all but the head.
    x = torch.randn(1, 3, 64, 64)
    model = with_statistics(seeded(name))
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    held = [parameter for part in model.trunk for module in part for parameter in module.parameters()]
    assert {*held, *model.head.parameters()} == set(model.parameters())
    assert len(held) == len(set(held))
    with torch.no_grad():
        before = model(x)
        for i, part in enumerate(model.trunk):
            for module in part:
                for parameter in module.parameters():
                    parameter.mul_(1.5)
            after = model(x)
            pairs = zip((before.stem, *before.stages), (after.stem, *after.stages), strict=True)
            assert [torch.equal(a, b) for a, b in pairs] == [j < i for j in range(5)]
            model.load_state_dict(state)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v1_w0.25"])
def test_gradients_reach_every_parameter_and_statistics_move_once(name):
    model = seeded(name)
    F.cross_entropy(model(torch.randn(4, 3, 64, 64)).logits, torch.arange(4)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, key
    counts = [tensor.item() for key, tensor in model.state_dict().items() if key.endswith("num_batches_tracked")]
    assert set(counts) == {1}


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v1"])
@pytest.mark.parametrize("size", [32, 80])
def test_image_sizes_that_do_not_fit_are_refused(name, size):
    with pytest.raises(ConfigError, match=rf"multiples of 32 and at least 64, but got {size} x {size}\."):
        on_meta(name)(torch.empty(1, 3, size, size, device="meta"))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "mobilenet_v1", "mobilenet_v1_w0.5"])
def test_known_names(name):
    models.check(name, "student")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilenet_v1_w0.3", r"32 times the width must be whole .*, but got mobilenet_v1_w0\.3 at student\."),
        ("mobilenet_v1_w0", r"32 times the width must be whole .*, but got mobilenet_v1_w0 at student\."),
        ("mobilenet_v1_w1", r"written mobilenet_v1, but got mobilenet_v1_w1 at student\."),
        ("mobilenet_v1_w0.50", r"written mobilenet_v1_w0\.5, but got mobilenet_v1_w0\.50 at student\."),
        ("mobilenet_v1_half", r"unknown model 'mobilenet_v1_half' at student\."),
    ],
)
def test_names_that_are_not_right(name, message):
    with pytest.raises(ConfigError, match=message):
        models.check(name, "student")

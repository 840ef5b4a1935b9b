"""The networks of PS-KD, and ResNet-50 of RepDistiller, whose family has one of them."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from kdtrain import models
from kdtrain.config import ConfigError

# name: parameters for 100 classes, counted on the modules of RepDistiller and of PS-KD, and pooled width.
TABLE = {
    "resnet50_cifar": (23_705_252, 2048),
    "resnet101_cifar": (42_697_380, 2048),
    "resnet18_cifar": (11_217_444, 512),
    "densenet121_cifar": (7_048_548, 1024),
    "resnext29_8x64d": (34_518_948, 1024),
}
BLOCKS = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "densenet121": (6, 12, 24, 16),
    "densenet169": (6, 12, 32, 32),
    "densenet201": (6, 12, 48, 32),
}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
TINY = ["resnet50_cifar_w0.125", "resnet18_cifar_w0.125", "densenet121_cifar_k4", "resnext11_2x4d"]


def on_meta(name, num_classes=10):
    with torch.device("meta"):
        return models.build(name, num_classes)


def seeded(name, num_classes=10, in_channels=3):
    torch.manual_seed(0)
    return models.build(name, num_classes, in_channels)


def with_statistics(model):
    """The model in float64 and eval mode, with statistics and norm weights that a wrong order would not survive."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.double().eval()


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", TABLE)
def test_parameters(name):
    of_100, d = TABLE[name]
    for num_classes, expected in ((100, of_100), (10, of_100 - 90 * (d + 1)), (200, of_100 + 100 * (d + 1))):
        assert parameters(on_meta(name, num_classes)) == expected


def conv(c_in, c_out, k=1, groups=1):
    """Weights of a k x k convolution and its BatchNorm."""
    return k * k * c_in // groups * c_out + 2 * c_out


@pytest.mark.parametrize(
    ("name", "w"), [("resnet50_cifar_w0.5", 32), ("resnet101_cifar_w2", 128), ("resnet152_cifar", 64)]
)
def test_parameters_of_other_bottleneck_networks(name, w):
    total, c_in = conv(3, w, 3), w
    for n, planes in zip(BLOCKS[name.split("_")[0]], (w, 2 * w, 4 * w, 8 * w), strict=True):
        for _ in range(n):
            total += conv(c_in, planes) + conv(planes, planes, 3) + conv(planes, 4 * planes)
            total += conv(c_in, 4 * planes) * (c_in != 4 * planes)
            c_in = 4 * planes
    assert parameters(on_meta(name, 100)) == total + (c_in + 1) * 100


@pytest.mark.parametrize(
    ("name", "w"), [("resnet18_cifar_w0.25", 16), ("resnet34_cifar", 64), ("resnet34_cifar_w2", 128)]
)
def test_parameters_of_other_pre_activation_networks(name, w):
    total, c_in = conv(3, w, 3), w
    for n, c in zip(BLOCKS[name.split("_")[0]], (w, 2 * w, 4 * w, 8 * w), strict=True):
        for _ in range(n):
            total += 2 * c_in + 9 * c_in * c + 2 * c + 9 * c * c
            total += c_in * c * (c_in != c)
            c_in = c
    assert parameters(on_meta(name, 100)) == total + (c_in + 1) * 100


@pytest.mark.parametrize(
    ("name", "k"), [("densenet121_cifar_k12", 12), ("densenet169_cifar", 32), ("densenet201_cifar_k1", 1)]
)
def test_parameters_of_other_densenets(name, k):
    c = 2 * k
    total = 27 * c
    for i, n in enumerate(BLOCKS[name.split("_")[0]]):
        if i:
            total += 2 * c + c * (c // 2)
            c //= 2
        for _ in range(n):
            total += 2 * c + c * 4 * k + 2 * 4 * k + 9 * 4 * k * k
            c += k
    assert parameters(on_meta(name, 100)) == total + 2 * c + (c + 1) * 100


@pytest.mark.parametrize(("depth", "groups", "base"), [(11, 2, 4), (20, 4, 16), (29, 16, 64)])
def test_parameters_of_other_resnexts(depth, groups, base):
    total, c_in = conv(3, 64, 3), 64
    for c, inner in ((256, groups * base), (512, 2 * groups * base), (1024, 4 * groups * base)):
        for _ in range((depth - 2) // 9):
            total += conv(c_in, inner) + conv(inner, inner, 3, groups) + conv(inner, c)
            total += conv(c_in, c) * (c_in != c)
            c_in = c
    assert parameters(on_meta(f"resnext{depth}_{groups}x{base}d", 100)) == total + 1025 * 100


def entries(*names):
    """Keys of BatchNorms."""
    return {f"{name}.{entry}" for name in names for entry in NORM}


def test_entries_of_resnet50():
    assert len(on_meta("resnet50_cifar").state_dict()) == 320  # counted on RepDistiller's module


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_bottleneck_keys(depth):
    keys = {"conv1.weight", "linear.weight", "linear.bias"} | entries("bn1")
    for stage, n in enumerate(BLOCKS[f"resnet{depth}"], 1):
        for block, i in itertools.product(range(n), (1, 2, 3)):
            keys |= {f"layer{stage}.{block}.conv{i}.weight"} | entries(f"layer{stage}.{block}.bn{i}")
        keys |= {f"layer{stage}.0.shortcut.0.weight"} | entries(f"layer{stage}.0.shortcut.1")
    assert set(on_meta(f"resnet{depth}_cifar").state_dict()) == keys


@pytest.mark.parametrize("depth", [18, 34])
def test_pre_activation_keys(depth):
    keys = {"conv1.weight", "linear.weight", "linear.bias"} | entries("bn1")
    for stage, n in enumerate(BLOCKS[f"resnet{depth}"], 1):
        for block, i in itertools.product(range(n), (1, 2)):
            keys |= {f"layer{stage}.{block}.conv{i}.weight"} | entries(f"layer{stage}.{block}.bn{i}")
    keys |= {f"layer{stage}.0.shortcut.0.weight" for stage in (2, 3, 4)}
    assert set(on_meta(f"resnet{depth}_cifar").state_dict()) == keys


@pytest.mark.parametrize("depth", [121, 169, 201])
def test_densenet_keys(depth):
    keys = {"conv1.weight", "linear.weight", "linear.bias"} | entries("bn")
    for stage, n in enumerate(BLOCKS[f"densenet{depth}"], 1):
        for layer, i in itertools.product(range(n), (1, 2)):
            keys |= {f"dense{stage}.{layer}.conv{i}.weight"} | entries(f"dense{stage}.{layer}.bn{i}")
    for stage in (1, 2, 3):
        keys |= {f"trans{stage}.conv.weight"} | entries(f"trans{stage}.bn")
    assert set(on_meta(f"densenet{depth}_cifar").state_dict()) == keys


@pytest.mark.parametrize(("name", "n"), [("resnext29_8x64d", 3), ("resnext11_2x4d", 1)])
def test_resnext_keys(name, n):
    keys = {"conv_1_3x3.weight", "classifier.weight", "classifier.bias"} | entries("bn_1")
    for stage, block in itertools.product((1, 2, 3), range(n)):
        prefix = f"stage_{stage}.stage_{stage}_bottleneck_{block}"
        keys |= {f"{prefix}.conv_{part}.weight" for part in ("reduce", "conv", "expand")}
        keys |= entries(f"{prefix}.bn_reduce", f"{prefix}.bn", f"{prefix}.bn_expand")
        if block == 0:
            keys |= {f"{prefix}.shortcut.shortcut_conv.weight"} | entries(f"{prefix}.shortcut.shortcut_bn")
    assert set(on_meta(name).state_dict()) == keys


# Rows of the stages at 32, at 64 and at 28: a convolution rounds 7/2 up, the mean of 2 x 2 windows rounds it down.
FOUR = {32: (32, 16, 8, 4), 64: (64, 32, 16, 8), 28: (28, 14, 7, 4)}
DENSE = FOUR | {28: (28, 14, 7, 3)}
THREE = {size: rows[:3] for size, rows in FOUR.items()}


@pytest.mark.parametrize(
    ("name", "stem", "widths", "rows"),
    [
        ("resnet50_cifar", 64, (256, 512, 1024, 2048), FOUR),
        ("resnet101_cifar_w0.5", 32, (128, 256, 512, 1024), FOUR),
        ("resnet18_cifar", 64, (64, 128, 256, 512), FOUR),
        ("resnet34_cifar_w0.25", 16, (16, 32, 64, 128), FOUR),
        ("densenet121_cifar", 64, (256, 512, 1024, 1024), DENSE),  # 64 + 6 * 32, 128 + 12 * 32, 256 + 24 * 32, ...
        ("densenet121_cifar_k12", 24, (96, 192, 384, 384), DENSE),
        ("resnext29_8x64d", 64, (256, 512, 1024), THREE),
    ],
)
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (64, 3), (28, 1)])
def test_shapes(name, stem, widths, rows, size, channels):
    with torch.device("meta"):
        out = models.build(name, 7, channels).eval()(torch.empty(2, channels, size, size))
    assert (out.logits.shape, out.pooled.shape) == ((2, 7), (2, widths[-1]))
    assert out.stem.shape == (2, stem, size, size)
    shapes = [(2, width, h, h) for width, h in zip(widths, rows[size], strict=True)]
    assert [tuple(map_.shape) for map_ in out.stages] == shapes
    assert [tuple(map_.shape) for map_ in out.preact] == shapes


@pytest.mark.parametrize(
    ("name", "stem", "stages", "pooled"),
    [
        ("resnet50_cifar_w0.125", False, False, False),
        ("resnet18_cifar_w0.125", False, True, True),
        ("densenet121_cifar_k4", True, True, False),
        ("resnext11_2x4d", False, False, False),
    ],
)
def test_which_features_can_be_negative(name, stem, stages, pooled):
    out = seeded(name)(torch.randn(4, 3, 32, 32))
    assert bool((out.stem < 0).any()) == stem
    assert all(bool((map_ < 0).any()) == stages for map_ in out.stages)
    assert bool((out.pooled < 0).any()) == pooled
    assert all((map_ < 0).any() and (map_ > 0).any() for map_ in out.preact)


@pytest.mark.parametrize("name", TINY)
def test_pooling_is_that_of_the_windows_it_replaces(name):
    model = with_statistics(seeded(name))
    out = model(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    last = F.relu(out.preact[-1]) if name.startswith("densenet") else out.stages[-1]
    assert last.shape[-1] == (8 if name.startswith("resnext") else 4)
    torch.testing.assert_close(out.pooled, F.avg_pool2d(last, last.shape[-1]).flatten(1))


def norm(x, w, key):
    return F.batch_norm(x, w[f"{key}.running_mean"], w[f"{key}.running_var"], w[f"{key}.weight"], w[f"{key}.bias"])


def check(model, x, stem, stages, preact, pooled):
    """The network gives these features, and the logits of its last layer's entries."""
    out, state = model(x), model.state_dict()
    weight, bias = (state[key] for key in list(state)[-2:])
    torch.testing.assert_close(out.stem, stem)
    torch.testing.assert_close(out.stages, tuple(stages))
    torch.testing.assert_close(out.preact, tuple(preact))
    torch.testing.assert_close(out.pooled, pooled)
    torch.testing.assert_close(out.logits, pooled @ weight.T + bias)


def test_bottlenecks_equal_their_formula_on_the_state_dict():
    model = with_statistics(seeded("resnet50_cifar_w0.0625"))
    w, x = model.state_dict(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    h = stem = F.relu(norm(F.conv2d(x, w["conv1.weight"], padding=1), w, "bn1"))
    stages, sums = [], []
    for stage, n in enumerate((3, 4, 6, 3), 1):
        for block in range(n):
            key, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            a = F.relu(norm(F.conv2d(h, w[f"{key}.conv1.weight"]), w, f"{key}.bn1"))
            a = F.relu(norm(F.conv2d(a, w[f"{key}.conv2.weight"], stride=stride, padding=1), w, f"{key}.bn2"))
            a = norm(F.conv2d(a, w[f"{key}.conv3.weight"]), w, f"{key}.bn3")
            if block == 0:
                h = norm(F.conv2d(h, w[f"{key}.shortcut.0.weight"], stride=stride), w, f"{key}.shortcut.1")
            total = a + h
            h = F.relu(total)
        stages.append(h)
        sums.append(total)
    check(model, x, stem, stages, sums, h.mean((2, 3)))


def test_pre_activation_blocks_equal_their_formula_on_the_state_dict():
    model = with_statistics(seeded("resnet18_cifar_w0.125"))
    w, x = model.state_dict(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    h = stem = F.relu(norm(F.conv2d(x, w["conv1.weight"], padding=1), w, "bn1"))
    stages, preact = [], []
    for stage, block in itertools.product((1, 2, 3, 4), (0, 1)):
        key, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
        normed = norm(h, w, f"{key}.bn1")
        if stage > 1 and block == 0:
            preact.append(normed)
        o = F.relu(normed)
        a = F.relu(norm(F.conv2d(o, w[f"{key}.conv1.weight"], stride=stride, padding=1), w, f"{key}.bn2"))
        a = F.conv2d(a, w[f"{key}.conv2.weight"], padding=1)
        h = a + (o if stride == 1 else F.conv2d(o, w[f"{key}.shortcut.0.weight"], stride=2))
        if block == 1:
            stages.append(h)
    check(model, x, stem, stages, (*preact, h), h.mean((2, 3)))


def test_dense_blocks_equal_their_formula_on_the_state_dict():
    model = with_statistics(seeded("densenet121_cifar_k2"))
    w, x = model.state_dict(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    h = stem = F.conv2d(x, w["conv1.weight"], padding=1)
    stages, preact = [], []
    for stage, n in enumerate((6, 12, 24, 16), 1):
        for layer in range(n):
            key = f"dense{stage}.{layer}"
            a = F.conv2d(F.relu(norm(h, w, f"{key}.bn1")), w[f"{key}.conv1.weight"])
            a = F.conv2d(F.relu(norm(a, w, f"{key}.bn2")), w[f"{key}.conv2.weight"], padding=1)
            h = torch.cat((a, h), 1)
        stages.append(h)
        preact.append(norm(h, w, f"trans{stage}.bn" if stage < 4 else "bn"))
        if stage < 4:
            h = F.conv2d(F.relu(preact[-1]), w[f"trans{stage}.conv.weight"])
            h = h.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))
    check(model, x, stem, stages, preact, F.relu(preact[-1]).mean((2, 3)))


def test_grouped_bottlenecks_equal_their_formula_on_the_state_dict():
    model = with_statistics(seeded("resnext20_2x4d"))
    w, x = model.state_dict(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    h = stem = F.relu(norm(F.conv2d(x, w["conv_1_3x3.weight"], padding=1), w, "bn_1"))
    stages, sums = [], []
    for stage, block in itertools.product((1, 2, 3), (0, 1)):
        key, stride = f"stage_{stage}.stage_{stage}_bottleneck_{block}", 2 if stage > 1 and block == 0 else 1
        a = F.relu(norm(F.conv2d(h, w[f"{key}.conv_reduce.weight"]), w, f"{key}.bn_reduce"))
        halves = zip(a.chunk(2, 1), w[f"{key}.conv_conv.weight"].chunk(2), strict=True)
        a = torch.cat([F.conv2d(half, weight, stride=stride, padding=1) for half, weight in halves], 1)
        a = norm(F.conv2d(F.relu(norm(a, w, f"{key}.bn")), w[f"{key}.conv_expand.weight"]), w, f"{key}.bn_expand")
        if block == 0:
            shortcut = F.conv2d(h, w[f"{key}.shortcut.shortcut_conv.weight"], stride=stride)
            h = norm(shortcut, w, f"{key}.shortcut.shortcut_bn")
        total = a + h
        h = F.relu(total)
        if block == 1:
            stages.append(h)
            sums.append(total)
    check(model, x, stem, stages, sums, h.mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("resnet50_cifar", ("layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3")),
        ("resnet101_cifar", ("layer1.2.bn3", "layer2.3.bn3", "layer3.22.bn3", "layer4.2.bn3")),
        ("densenet121_cifar", ("trans1.bn", "trans2.bn", "trans3.bn", "bn")),
        ("resnext29_8x64d", tuple(f"stage_{i}.stage_{i}_bottleneck_2.bn_expand" for i in (1, 2, 3))),
    ],
)
def test_norms_before_the_last_relu(name, norms):
    model = on_meta(name)
    modules = dict(model.named_modules())
    assert list(model.preact_norms) == [modules[key] for key in norms]


@pytest.mark.parametrize("name", ["resnet18_cifar", "resnet34_cifar_w0.5"])
def test_pre_activation_networks_say_that_no_norm_follows_the_last_stage(name):
    message = rf"needs the BatchNorm before each stage's last ReLU cannot work with {name}: neither BatchNorm nor ReLU"
    with pytest.raises(ConfigError, match=message):
        _ = on_meta(name).preact_norms


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("resnet50_cifar_w0.125", ("linear",)),
        ("resnet18_cifar_w0.125", ("linear",)),
        ("densenet121_cifar_k4", ("linear", "bn")),
        ("resnext11_2x4d", ("classifier",)),
    ],
)
def test_the_trunk_holds_all_before_the_end_of_the_last_stage(name, after):
    model = on_meta(name)
    held = {parameter for part in model.trunk for module in part for parameter in module.parameters()}
    assert held == {p for key, p in model.named_parameters() if not key.startswith(tuple(f"{end}." for end in after))}


KAIMING = ["resnet50_cifar_w0.125", "resnet152_cifar_w0.125", "resnext11_2x4d"]
DEFAULT = ["resnet101_cifar_w0.125", "resnet18_cifar_w0.125", "resnet34_cifar_w0.125", "densenet121_cifar_k4"]


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]


@pytest.mark.parametrize("name", KAIMING)
def test_convolutions_that_start_from_kaiming_normal(name):
    for module in convolutions(seeded(name)):
        n = module.weight.numel()
        std = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
        # Five standard errors of a standard deviation (relative) and of a mean.
        assert module.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n))
        assert abs(module.weight.mean().item()) < 5 * std / math.sqrt(n)


@pytest.mark.parametrize("name", DEFAULT)
def test_convolutions_that_start_from_torchs_default(name):
    # Uniform in +-1/sqrt(inputs): 64 draws or more all stay below 0.8 of it once in 1.6e6 times.
    for module in convolutions(seeded(name)):
        bound = 1 / math.sqrt(module.weight[0].numel())
        assert 0.8 * bound < module.weight.abs().max() <= bound


@pytest.mark.parametrize("name", [*KAIMING, *DEFAULT])
def test_norms_start_as_one_and_zero(name):
    for module in seeded(name).modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))


def test_initial_heads():
    # torch's default, uniform in +-1/sqrt(inputs); ResNeXt has kaiming_normal of its 1024 inputs and zeros.
    for name, d in (("resnet50_cifar_w0.125", 256), ("resnet18_cifar_w0.125", 64), ("densenet121_cifar_k4", 128)):
        head = seeded(name, 100).head
        assert 0.99 / math.sqrt(d) < head.weight.abs().max() <= 1 / math.sqrt(d)
        assert 0.9 / math.sqrt(d) < head.bias.abs().max() <= 1 / math.sqrt(d)
    head = seeded("resnext11_2x4d", 100).head
    assert head.weight.std().item() == pytest.approx(math.sqrt(2 / 1024), rel=5 / math.sqrt(2 * 102400))
    assert head.bias.abs().max() == 0

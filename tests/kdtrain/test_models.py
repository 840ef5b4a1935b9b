import math

import pytest
import torch
import torch.nn.functional as F

from kdtrain import models
from kdtrain.config import ConfigError

# name: parameters for 100 classes, for 10 classes, entries of the state dict; counted on RepDistiller's modules.
TABLE = {
    "resnet8": (83_892, 78_042, 56),
    "resnet14": (181_108, 175_258, 92),
    "resnet20": (278_324, 272_474, 128),
    "resnet32": (472_756, 466_906, 200),
    "resnet44": (667_188, 661_338, 272),
    "resnet56": (861_620, 855_770, 344),
    "resnet110": (1_736_564, 1_730_714, 668),
    "resnet8x4": (1_233_540, 1_210_410, 62),
    "resnet32x4": (7_433_860, 7_410_730, 206),
    "wrn_16_1": (180_916, 175_066, 82),
    "wrn_16_2": (703_284, 691_674, 83),
    "wrn_16_4": (2_772_020, 2_748_890, 83),
    "wrn_40_1": (569_780, 563_930, 226),
    "wrn_40_2": (2_255_156, 2_243_546, 227),
    "wrn_40_4": (8_972_340, 8_949_210, 227),
}
EXAMPLES = [example for family in models.MODELS.values() for example in family.examples]
SMALL = ["resnet8", "resnet8x4", "wrn_16_1", "wrn_16_2"]


def on_meta(name, num_classes):
    with torch.device("meta"):
        return models.build(name, num_classes)


def seeded(name, num_classes=10, in_channels=3, seed=0):
    torch.manual_seed(seed)
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


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_entries(name):
    for num_classes, expected in zip((100, 10), TABLE[name][:2], strict=True):
        model = on_meta(name, num_classes)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert len(model.state_dict()) == TABLE[name][2]


def test_every_example_is_in_the_table():
    assert set(EXAMPLES) >= set(TABLE)


@pytest.mark.parametrize(("name", "downsampled"), [("resnet14", (2, 3)), ("resnet14x4", (1, 2, 3))])
def test_resnet_keys(name, downsampled):
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {"conv1.weight", "fc.weight", "fc.bias"} | {f"bn1.{entry}" for entry in norm}
    for stage in (1, 2, 3):
        for block in (0, 1):
            for i in (1, 2):
                keys.add(f"layer{stage}.{block}.conv{i}.weight")
                keys |= {f"layer{stage}.{block}.bn{i}.{entry}" for entry in norm}
    for stage in downsampled:
        keys.add(f"layer{stage}.0.downsample.0.weight")
        keys |= {f"layer{stage}.0.downsample.1.{entry}" for entry in norm}
    assert set(on_meta(name, 10).state_dict()) == keys


@pytest.mark.parametrize(("name", "shortcuts"), [("wrn_16_1", (2, 3)), ("wrn_16_2", (1, 2, 3))])
def test_wrn_keys(name, shortcuts):
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {"conv1.weight", "fc.weight", "fc.bias"} | {f"bn1.{entry}" for entry in norm}
    for stage in (1, 2, 3):
        for block in (0, 1):
            for i in (1, 2):
                keys.add(f"block{stage}.layer.{block}.conv{i}.weight")
                keys |= {f"block{stage}.layer.{block}.bn{i}.{entry}" for entry in norm}
    keys |= {f"block{stage}.layer.0.convShortcut.weight" for stage in shortcuts}
    assert set(on_meta(name, 10).state_dict()) == keys


@pytest.mark.parametrize(
    ("name", "stem", "widths"),
    [
        ("resnet20", 16, (16, 32, 64)),
        ("resnet32x4", 32, (64, 128, 256)),
        ("wrn_40_1", 16, (16, 32, 64)),
        ("wrn_16_2", 16, (32, 64, 128)),
        ("wrn_40_4", 16, (64, 128, 256)),
    ],
)
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (28, 1)])
def test_shapes(name, stem, widths, size, channels):
    with torch.device("meta"):
        out = models.build(name, 7, channels)(torch.empty(2, channels, size, size))
    assert out.logits.shape == (2, 7)
    assert out.pooled.shape == (2, widths[-1])
    assert out.stem.shape == (2, stem, size, size)
    sizes = (size, size // 2, size // 4)
    assert [tuple(stage.shape) for stage in out.stages] == [
        (2, width, s, s) for width, s in zip(widths, sizes, strict=True)
    ]


@pytest.mark.parametrize("name", SMALL)
def test_signs_of_the_features(name):
    out = seeded(name)(torch.randn(4, 3, 32, 32))
    signed = name.startswith("wrn")
    for feature in (out.stem, *out.stages):
        assert bool((feature < 0).any()) == signed
    assert out.pooled.min() >= 0


@pytest.mark.parametrize("name", SMALL)
def test_pooled_is_the_mean_map_and_the_head_makes_the_logits(name):
    model = with_statistics(seeded(name))
    out = model(torch.randn(3, 3, 32, 32))
    last = out.stages[-1]
    if name.startswith("wrn"):
        last = F.relu(model.bn1(last))
    torch.testing.assert_close(out.pooled, last.mean((2, 3)))
    # RepDistiller's pooling, which ours replaces.
    torch.testing.assert_close(out.pooled, F.avg_pool2d(last, 8).flatten(1))
    torch.testing.assert_close(out.logits, out.pooled @ model.head.weight.T + model.head.bias)


def norm(x, state, key):
    return F.batch_norm(
        x, state[f"{key}.running_mean"], state[f"{key}.running_var"], state[f"{key}.weight"], state[f"{key}.bias"]
    )


def test_resnet8_equals_its_formula_on_the_state_dict():
    model = with_statistics(seeded("resnet8"))
    w, x = model.state_dict(), torch.randn(2, 3, 32, 32)
    stem = F.relu(norm(F.conv2d(x, w["conv1.weight"], padding=1), w, "bn1"))
    h, stages = stem, []
    for key, stride in (("layer1.0", 1), ("layer2.0", 2), ("layer3.0", 2)):
        a = F.relu(norm(F.conv2d(h, w[f"{key}.conv1.weight"], stride=stride, padding=1), w, f"{key}.bn1"))
        a = norm(F.conv2d(a, w[f"{key}.conv2.weight"], padding=1), w, f"{key}.bn2")
        if stride == 2:
            h = norm(F.conv2d(h, w[f"{key}.downsample.0.weight"], stride=2), w, f"{key}.downsample.1")
        h = F.relu(a + h)
        stages.append(h)
    logits = h.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]
    out = model(x)
    torch.testing.assert_close(out.stem, stem)
    torch.testing.assert_close(out.stages, tuple(stages))
    torch.testing.assert_close(out.logits, logits)


def test_wrn_10_2_equals_its_formula_on_the_state_dict():
    model = with_statistics(seeded("wrn_10_2"))
    w, x = model.state_dict(), torch.randn(2, 3, 32, 32)
    h = stem = F.conv2d(x, w["conv1.weight"], padding=1)
    stages = []
    for key, stride in (("block1.layer.0", 1), ("block2.layer.0", 2), ("block3.layer.0", 2)):
        a = F.relu(norm(h, w, f"{key}.bn1"))
        b = F.relu(norm(F.conv2d(a, w[f"{key}.conv1.weight"], stride=stride, padding=1), w, f"{key}.bn2"))
        h = F.conv2d(b, w[f"{key}.conv2.weight"], padding=1)
        h = h + F.conv2d(a, w[f"{key}.convShortcut.weight"], stride=stride)
        stages.append(h)
    logits = F.relu(norm(h, w, "bn1")).mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]
    out = model(x)
    torch.testing.assert_close(out.stem, stem)
    torch.testing.assert_close(out.stages, tuple(stages))
    torch.testing.assert_close(out.logits, logits)


def test_wrn_identity_shortcut_is_of_the_raw_input():
    block = with_statistics(seeded("wrn_16_2")).block2.layer[1]
    for conv in (block.conv1, block.conv2):
        torch.nn.init.zeros_(conv.weight)
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter(name):
    model = seeded(name)
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)).logits, torch.arange(4)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2"])
def test_initial_weights(name):
    model = seeded(name)
    for key, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            std = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            # Five standard errors of a standard deviation (relative) and of a mean.
            n = module.weight.numel()
            assert module.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n)), key
            assert abs(module.weight.mean().item()) < 5 * std / math.sqrt(n), key
        elif isinstance(module, torch.nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))


def test_initial_head():
    # torch's default: uniform in +-1/sqrt(inputs); wide ResNets start with a bias of zero.
    fc = seeded("resnet8x4", 100).head
    assert 0.99 / 16 < fc.weight.abs().max() <= 1 / 16
    assert 0.9 / 16 < fc.bias.abs().max() <= 1 / 16
    assert seeded("wrn_16_2").head.bias.abs().max() == 0


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_the_weights(name):
    one, same, other = (seeded(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize("name", ["resnet26", "resnet1202", "resnet14x4", "wrn_10_1", "wrn_28_10", *EXAMPLES])
def test_known_names(name):
    models.check(name, "student")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet21", r"^depth must be 6n\+2 with n >= 1, but got resnet21 at grid\.student\[0\]\.$"),
        ("resnet2", r"^depth must be 6n\+2 with n >= 1, but got resnet2 at"),
        ("resnet10x4", r"^depth must be 6n\+2 with n >= 1, but got resnet10x4 at"),
        ("wrn_15_2", r"^depth must be 6n\+4 with n >= 1, but got wrn_15_2 at grid\.student\[0\]\.$"),
        ("wrn_4_2", r"^depth must be 6n\+4 with n >= 1, but got wrn_4_2 at"),
    ],
)
def test_bad_depths(name, message):
    with pytest.raises(ConfigError, match=message):
        models.check(name, "grid.student[0]")


@pytest.mark.parametrize(
    "name", ["resnet", "resnet020", "resnet20x2", "resnet20 ", "wrn_40", "wrn_40_0", "wrn-40-2", ""]
)
def test_unknown_names_list_the_known(name):
    message = rf"^unknown model '{name}' at student\..* Known: resnet110, .*wrn_40_4\. In general: resnet<6n\+2>, "
    with pytest.raises(ConfigError, match=message):
        models.check(name, "student")


def test_near_names_are_suggested():
    with pytest.raises(ConfigError, match=r"unknown model 'wrn-40-2' at model\. Did you mean 'wrn_40_2'\?"):
        models.build("wrn-40-2", 10)

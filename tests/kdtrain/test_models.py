import math
import re

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
    "vgg8": (3_965_028, 3_918_858, 37),
    "vgg13": (9_462_180, 9_416_010, 72),
}
EXAMPLES = [example for family in models.MODELS.values() for example in family.examples]
SMALL = ["resnet8", "resnet8x4", "wrn_16_1", "wrn_16_2", "vgg8"]

# A member of each family that is quickly built, of those for small images and of the others; without an entry, the
# first example.
TINY = {
    "resnet": "resnet8",
    "vgg": "vgg8_w0.125",
    "wrn": "wrn_10_2",
    "bottleneck_cifar": "resnet50_cifar_w0.125",
    "preact_resnet_cifar": "resnet18_cifar_w0.125",
    "densenet_cifar": "densenet121_cifar_k4",
    "resnext_cifar": "resnext11_2x4d",
    "mobilenet_v2": "mobilenet_v2_w0.25",
    "shufflenet_v1": "shufflenet_v1_w0.5",
    "shufflenet_v2": "shufflenet_v2_w0.5",
}
LARGER = {"mobilenet_v1": "mobilenet_v1_w0.25", "torchvision": "torchvision:shufflenet_v2_x0_5"}
MEMBERS = [(TINY | LARGER).get(key, family.examples[0]) for key, family in models.MODELS.items()]


def on_meta(name, num_classes):
    with torch.device("meta"):
        return models.build(name, num_classes)


def seeded(name, num_classes=10, in_channels=3, seed=0):
    torch.manual_seed(seed)
    return models.build(name, num_classes, in_channels)


def images(model, n=2, channels=3):
    """`n` images of about 32 x 32, of a size that the model takes."""
    size = max(model.least, 32)
    size += -size % model.multiple
    return torch.randn(n, channels, size, size)


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
    counts = {100: TABLE[name][0], 10: TABLE[name][1]}
    per_class = (counts[100] - counts[10]) // 90  # a row of the last layer's weights, and a bias
    counts[200] = counts[100] + 100 * per_class
    for num_classes, expected in counts.items():
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


# Places of the convolutions of each block, which the norms follow; the ReLUs between them have no entries.
@pytest.mark.parametrize(
    ("name", "places"), [("vgg8", [(0,)] * 5), ("vgg13", [(0, 3)] * 5), ("vgg16", [(0, 3)] * 2 + [(0, 3, 6)] * 3)]
)
def test_vgg_keys(name, places):
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {"classifier.weight", "classifier.bias"}
    for block, convolutions in enumerate(places):
        for place in convolutions:
            keys |= {f"block{block}.{place}.{entry}" for entry in ("weight", "bias")}
            keys |= {f"block{block}.{place + 1}.{entry}" for entry in norm}
    assert set(on_meta(name, 10).state_dict()) == keys


@pytest.mark.parametrize(
    ("name", "stem", "widths"),
    [
        ("resnet20", 16, (16, 32, 64)),
        ("resnet32x4", 32, (64, 128, 256)),
        ("wrn_40_1", 16, (16, 32, 64)),
        ("wrn_16_2", 16, (32, 64, 128)),
        ("wrn_40_4", 16, (64, 128, 256)),
        ("resnet8x2", 16, (32, 64, 128)),
        ("resnet14x8", 64, (128, 256, 512)),
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


@pytest.mark.parametrize(("name", "k"), [("vgg8", 1), ("vgg13", 1), ("vgg8_w0.25", 0.25), ("vgg11_w2", 2)])
@pytest.mark.parametrize(
    ("size", "channels", "heights"),
    [(32, 3, (16, 8, 4, 4)), (64, 3, (32, 16, 8, 4)), (96, 3, (48, 24, 12, 6)), (28, 1, (14, 7, 3, 3))],
)
def test_vgg_shapes(name, k, size, channels, heights):
    with torch.device("meta"):
        out = models.build(name, 7, channels)(torch.empty(2, channels, size, size))
    assert (out.logits.shape, out.pooled.shape) == ((2, 7), (2, 512 * k))
    assert out.stem.shape == (2, 64 * k, size, size)
    assert [tuple(stage.shape) for stage in out.stages] == [
        (2, width * k, h, h) for width, h in zip((128, 256, 512, 512), heights, strict=True)
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
    if not name.startswith("vgg"):  # RepDistiller's pooling, which ours replaces
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
    h, stages, sums = stem, [], []
    for key, stride in (("layer1.0", 1), ("layer2.0", 2), ("layer3.0", 2)):
        a = F.relu(norm(F.conv2d(h, w[f"{key}.conv1.weight"], stride=stride, padding=1), w, f"{key}.bn1"))
        a = norm(F.conv2d(a, w[f"{key}.conv2.weight"], padding=1), w, f"{key}.bn2")
        if stride == 2:
            h = norm(F.conv2d(h, w[f"{key}.downsample.0.weight"], stride=2), w, f"{key}.downsample.1")
        sums.append(a + h)
        h = F.relu(sums[-1])
        stages.append(h)
    logits = h.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]
    out = model(x)
    torch.testing.assert_close(out.preact, tuple(sums))
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


@pytest.mark.parametrize(("size", "pools"), [(32, (1, 2, 3)), (64, (1, 2, 3, 4))])
def test_vgg11_equals_its_formula_on_the_state_dict(size, pools):
    model = with_statistics(seeded("vgg11"))
    w, x = model.state_dict(), torch.randn(1, 3, size, size)
    h, maps, normed = x, [], []
    for block, n in enumerate((1, 1, 2, 2, 2)):
        if block in pools:
            h = F.max_pool2d(h, 2)
        for conv in range(0, 3 * n, 3):
            key, after = f"block{block}.{conv}", f"block{block}.{conv + 1}"
            a = norm(F.conv2d(h, w[f"{key}.weight"], w[f"{key}.bias"], padding=1), w, after)
            h = F.relu(a)
        maps.append(h)
        normed.append(a)
    logits = h.mean((2, 3)) @ w["classifier.weight"].T + w["classifier.bias"]
    out = model(x)
    torch.testing.assert_close((out.stem, *out.stages), tuple(maps))
    torch.testing.assert_close(out.preact, tuple(normed[1:]))
    torch.testing.assert_close(out.logits, logits)


@pytest.mark.parametrize("name", ["resnet8", "resnet14x4", "wrn_16_2", "vgg8", "vgg13"])
class TestBeforeTheLastReLU:
    """`preact`, of trained-looking networks in eval mode."""

    def test_shapes_and_signs(self, name):
        out = with_statistics(seeded(name))(torch.randn(2, 3, 32, 32))
        assert [map_.shape for map_ in out.preact] == [stage.shape for stage in out.stages]
        assert all((map_ < 0).any() and (map_ > 0).any() for map_ in out.preact)

    def test_the_relu_gives_the_stage_or_its_norm_gives_the_map(self, name):
        model = with_statistics(seeded(name))
        out = model(torch.randn(2, 3, 32, 32))
        if name.startswith("wrn"):
            state = model.state_dict()
            keys = ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")
            expected = tuple(norm(stage, state, key) for stage, key in zip(out.stages, keys, strict=True))
            torch.testing.assert_close(out.preact, expected)
        else:
            assert all(torch.equal(F.relu(map_), stage) for map_, stage in zip(out.preact, out.stages, strict=True))

    def test_norms_have_the_widths_of_the_maps(self, name):
        model = seeded(name)
        out = model(torch.randn(2, 3, 32, 32))
        assert [norm.num_features for norm in model.preact_norms] == [map_.shape[1] for map_ in out.preact]

    def test_no_norm_sees_the_data_twice_in_a_step(self, name):
        model = seeded(name).train()
        model(torch.randn(2, 3, 32, 32))
        counts = {key: n.item() for key, n in model.state_dict().items() if key.endswith("num_batches_tracked")}
        assert set(counts.values()) == {1}
        assert len(counts) == sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("resnet8", ("layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2")),
        ("resnet14x4", ("layer1.1.bn2", "layer2.1.bn2", "layer3.1.bn2")),
        ("wrn_16_2", ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")),
        ("vgg8", ("block1.1", "block2.1", "block3.1", "block4.1")),
        ("vgg13", ("block1.4", "block2.4", "block3.4", "block4.4")),
    ],
)
def test_norms_before_the_last_relu(name, norms):
    model = on_meta(name, 10)
    modules = dict(model.named_modules())
    assert list(model.preact_norms) == [modules[key] for key in norms]


@pytest.mark.parametrize(
    ("name", "after", "stages"),
    [
        ("resnet8", ("fc",), 3),
        ("resnet14x4", ("fc",), 3),
        ("wrn_16_1", ("fc", "bn1"), 3),
        ("wrn_16_2", ("fc", "bn1"), 3),
        ("vgg8", ("classifier",), 4),
        ("vgg13", ("classifier",), 4),
    ],
)
def test_the_trunk_holds_all_before_the_end_of_the_last_stage_once(name, after, stages):
    model = on_meta(name, 10)
    assert len(model.trunk) == 1 + stages
    held = [parameter for part in model.trunk for module in part for parameter in module.parameters()]
    assert len(held) == len(set(held))
    expected = {p for key, p in model.named_parameters() if not key.startswith(tuple(f"{end}." for end in after))}
    assert set(held) == expected


def test_wrn_identity_shortcut_is_of_the_raw_input():
    block = with_statistics(seeded("wrn_16_2")).block2.layer[1]
    for conv in (block.conv1, block.conv2):
        torch.nn.init.zeros_(conv.weight)
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2", "vgg8"])
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


def test_initial_vgg():
    model = seeded("vgg8", 100)
    # Five standard errors of a standard deviation, of 512 x 100 weights.
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=5 / math.sqrt(2 * 51200))
    assert model.head.bias.abs().max() == 0
    assert all(m.bias.abs().max() == 0 for m in model.modules() if isinstance(m, torch.nn.Conv2d))


@pytest.mark.parametrize("name", MEMBERS)
class TestContract:
    """What a method or the loop may take for granted of every network."""

    def test_shapes(self, name):
        model = seeded(name, 7)
        out = model(images(model))
        assert (out.logits.shape, out.pooled.shape) == ((2, 7), (2, model.head.in_features))
        assert all(map_.ndim == 4 and len(map_) == 2 for map_ in (out.stem, *out.stages))
        assert [map_.shape for map_ in out.preact] == [map_.shape for map_ in out.stages]

    def test_the_head_makes_the_logits_of_the_pooled_features(self, name):
        model = with_statistics(seeded(name))
        out = model(images(model))
        torch.testing.assert_close(out.logits, out.pooled @ model.head.weight.T + model.head.bias)

    def test_gradients_reach_every_parameter(self, name):
        model = seeded(name)
        F.cross_entropy(model(images(model, 4)).logits, torch.arange(4)).backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().sum() > 0, key

    def test_no_norm_sees_the_data_twice_in_a_step(self, name):
        model = seeded(name).train()
        model(images(model))
        seen = {key: n.item() for key, n in model.state_dict().items() if key.endswith("num_batches_tracked")}
        assert seen == dict.fromkeys(seen, 1)
        assert len(seen) == sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())

    def test_norms_before_the_last_relu_are_the_networks_and_as_wide_as_its_maps(self, name):
        model = seeded(name)
        shapes = model(images(model))
        try:
            norms = model.preact_norms
        except ConfigError:
            return  # the network says that it has none
        assert [norm.num_features for norm in norms] == [map_.shape[1] for map_ in shapes.preact]
        assert set(norms) <= set(model.modules())

    def test_the_trunk_holds_parameters_once_and_not_the_heads(self, name):
        model = on_meta(name, 10)
        held = [parameter for part in model.trunk for module in part for parameter in module.parameters()]
        assert len(held) == len(set(held))
        assert not set(held) & set(model.head.parameters())

    def test_each_part_of_the_trunk_makes_its_map(self, name):
        # A part that is changed changes its own map and later ones, no earlier one.
        model, changed = with_statistics(seeded(name)), with_statistics(seeded(name))
        x = images(model, 1)
        before = model(x)
        assert len(model.trunk) == (1 + len(before.stages) if before.stages else 0)
        for i, part in enumerate(model.trunk):
            assert part
            changed.load_state_dict(model.state_dict())
            with torch.no_grad():
                for module in changed.trunk[i]:
                    for parameter in module.parameters():
                        parameter.mul_(1.5)
            after = changed(x)
            pairs = zip((before.stem, *before.stages), (after.stem, *after.stages), strict=True)
            assert [torch.equal(a, b) for a, b in pairs] == [j < i for j in range(len(model.trunk))]

    def test_the_seed_decides_the_weights(self, name):
        one, same, other = (dict(seeded(name, seed=seed).named_parameters()) for seed in (1, 1, 2))
        assert all(torch.equal(one[key], same[key]) for key in one)
        assert any(not torch.equal(one[key], other[key]) for key in one)

    def test_the_sizes_that_it_declares_work(self, name):
        model = seeded(name).eval()
        for size in (model.least, model.least + model.multiple, model.least + 3 * model.multiple):
            out = model(torch.randn(1, 3, size, size))
            assert all(map_.numel() for map_ in out.stages)
            assert out.logits.isfinite().all()

    def test_other_sizes_are_refused(self, name):
        model = on_meta(name, 10)
        fits = images(model).shape[-1]
        sizes = [(model.least - 1, fits), (fits, model.least - 1)]
        if model.multiple > 1:
            sizes.append((fits, fits + 1))
        for height, width in sizes:
            message = (
                rf"^{type(model).__name__} needs images whose rows and columns are multiples of {model.multiple} and "
                rf"at least {model.least}, but got {height} x {width}\.{re.escape(model.hint)}$"
            )
            with pytest.raises(ConfigError, match=message):
                model(torch.empty(2, 3, height, width, device="meta"))

    def test_images_may_have_one_channel(self, name):
        model = seeded(name, in_channels=1)
        assert model(images(model, channels=1)).logits.shape == (2, 10)


@pytest.mark.parametrize("key", TINY)
class TestSizesOfSmallImages:
    def test_those_of_the_data_sets_work(self, key):
        model = seeded(TINY[key]).eval()
        for size in (28, 32, 64, 96):
            assert model(torch.randn(1, 3, size, size)).logits.isfinite().all()

    def test_odd_ones_are_refused(self, key):
        model = on_meta(TINY[key], 10)
        for size in (27, 33, 65):
            with pytest.raises(ConfigError, match=rf"multiples of 4 and at least 8, but got {size} x {size}\.$"):
                model(torch.empty(2, 3, size, size, device="meta"))


OTHERS = [
    *("resnet26", "resnet1202", "resnet8x2", "resnet14x4", "resnet50x2", "resnet8x10", "wrn_10_1", "wrn_28_10"),
    *("vgg8_w0.5", "vgg19_w2", "vgg8_w0.015625", "vgg8_w1.015625", "vgg8_w10"),
    *("resnet50_cifar_w0.5", "resnet101_cifar_w2", "resnet152_cifar_w0.25", "resnet18_cifar_w0.5", "resnet34_cifar_w2"),
    *("densenet121_cifar_k12", "densenet201_cifar_k48", "resnext11_1x4d", "resnext29_16x64d", "resnext272_2x32d"),
]


@pytest.mark.parametrize("name", [*OTHERS, *EXAMPLES])
def test_known_names(name):
    models.check(name, "student")


def test_a_name_is_of_one_family():
    for name in (*OTHERS, *EXAMPLES):
        assert sum(bool(family.pattern.fullmatch(name)) for family in models.MODELS.values()) == 1, name


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_bare_names_of_imagenets_networks_are_not_of_the_cifar_family(name):
    assert not models.MODELS["resnet"].pattern.fullmatch(name)
    assert models.MODELS["resnet"].pattern.fullmatch(f"{name}x2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet21", r"^depth must be 6n\+2 with n >= 1, but got resnet21 at grid\.student\[0\]\.$"),
        ("resnet2", r"^depth must be 6n\+2 with n >= 1, but got resnet2 at"),
        ("resnet10x4", r"^depth must be 6n\+2 with n >= 1, but got resnet10x4 at"),
        ("resnet20x1", r"^width must be at least 2, but got resnet20x1 at"),
        ("wrn_15_2", r"^depth must be 6n\+4 with n >= 1, but got wrn_15_2 at grid\.student\[0\]\.$"),
        ("wrn_4_2", r"^depth must be 6n\+4 with n >= 1, but got wrn_4_2 at"),
        ("wrn_40_0", r"^width must be at least 1, but got wrn_40_0 at"),
        ("vgg9", r"^depth must be one of 8, 11, 13, 16, 19, but got vgg9 at grid\.student\[0\]\.$"),
        ("vgg8_w0.3", r"^64 times the width must be whole and at least 1, but got vgg8_w0\.3 at"),
        ("vgg8_w0", r"^64 times the width must be whole and at least 1, but got vgg8_w0 at"),
        ("resnet50_cifar_w0.7", r"^64 times the width must be whole and at least 1, but got resnet50_cifar_w0\.7 at"),
        ("resnet18_cifar_w0.001", r"^64 times the width must be whole and at least 1, but got resnet18_cifar_w0\.001"),
        ("densenet121_cifar_k0", r"^growth must be at least 1, but got densenet121_cifar_k0 at"),
        ("resnext2_8x64d", r"^depth must be 9n\+2 with n >= 1, but got resnext2_8x64d at"),
        ("resnext30_8x64d", r"^depth must be 9n\+2 with n >= 1, but got resnext30_8x64d at"),
        ("resnext29_0x64d", r"^cardinality and width must be at least 1, but got resnext29_0x64d at"),
    ],
)
def test_bad_numbers(name, message):
    with pytest.raises(ConfigError, match=message):
        models.check(name, "grid.student[0]")


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("resnet020", "resnet20"),
        ("resnet8x04", "resnet8x4"),
        ("wrn_40_02", "wrn_40_2"),
        ("vgg08", "vgg8"),
        ("vgg8_w1", "vgg8"),
        ("vgg8_w1.0", "vgg8"),
        ("vgg8_w0.50", "vgg8_w0.5"),
        ("vgg8_w.5", "vgg8_w0.5"),
        ("vgg8_w2.", "vgg8_w2"),
        ("resnet50_cifar_w02", "resnet50_cifar_w2"),
        ("resnet101_cifar_w1", "resnet101_cifar"),
        ("resnet18_cifar_w0.50", "resnet18_cifar_w0.5"),
        ("densenet121_cifar_k32", "densenet121_cifar"),
        ("densenet121_cifar_k012", "densenet121_cifar_k12"),
        ("resnext29_08x64d", "resnext29_8x64d"),
    ],
)
def test_a_network_has_one_spelling(name, right):
    with pytest.raises(ConfigError, match=rf"^this network is written {right}, but got {name} at student\.$"):
        models.check(name, "student")
    models.check(right, "student")


@pytest.mark.parametrize(
    "name",
    [
        *("resnet", "resnet20 ", "resnet20x", "wrn_40", "wrn-40-2", "vgg", "vgg8_w", "vgg8_w0.5.1", "vgg8_w5e-1", ""),
        *("resnet20_cifar", "densenet121", "densenet100_cifar", "resnext29"),
    ],
)
def test_unknown_names_list_the_known(name):
    message = rf"^unknown model '{name}' at student\..* Known: .*resnet110, .*wrn_40_4\. In general: .*resnet<6n\+2>, "
    with pytest.raises(ConfigError, match=message):
        models.check(name, "student")


def test_near_names_are_suggested():
    with pytest.raises(ConfigError, match=r"unknown model 'wrn-40-2' at model\. Did you mean 'wrn_40_2'\?"):
        models.build("wrn-40-2", 10)

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
    "vgg8": (3_965_028, 3_918_858, 37),
    "vgg13": (9_462_180, 9_416_010, 72),
}
EXAMPLES = [example for family in models.MODELS.values() for example in family.examples]
SMALL = ["resnet8", "resnet8x4", "wrn_16_1", "wrn_16_2", "vgg8"]


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


@pytest.mark.parametrize("name", ["vgg8", "vgg13"])
@pytest.mark.parametrize(
    ("size", "channels", "heights"), [(32, 3, (16, 8, 4, 4)), (64, 3, (32, 16, 8, 4)), (28, 1, (14, 7, 3, 3))]
)
def test_vgg_shapes(name, size, channels, heights):
    with torch.device("meta"):
        out = models.build(name, 7, channels)(torch.empty(2, channels, size, size))
    assert (out.logits.shape, out.pooled.shape) == ((2, 7), (2, 512))
    assert out.stem.shape == (2, 64, size, size)
    assert [tuple(stage.shape) for stage in out.stages] == [
        (2, width, h, h) for width, h in zip((128, 256, 512, 512), heights, strict=True)
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


@pytest.mark.parametrize("name", SMALL)
def test_each_part_of_the_trunk_makes_its_map(name):
    # A part that is changed changes its own map and later ones, no earlier one.
    x = torch.randn(1, 3, 32, 32)
    model = with_statistics(seeded(name))
    before = model(x)
    for i, part in enumerate(model.trunk):
        changed = with_statistics(seeded(name))
        changed.load_state_dict(model.state_dict())
        with torch.no_grad():
            for module in changed.trunk[i]:
                for parameter in module.parameters():
                    parameter.mul_(1.5)
        after = changed(x)
        assert part
        same = [
            torch.equal(a, b) for a, b in zip((before.stem, *before.stages), (after.stem, *after.stages), strict=True)
        ]
        assert same == [j < i for j in range(len(model.trunk))]


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


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_the_weights(name):
    one, same, other = (seeded(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    first = next(iter(one))
    assert not torch.equal(one[first], other[first])


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
        ("vgg9", r"^depth must be one of 8, 11, 13, 16, 19, but got vgg9 at grid\.student\[0\]\.$"),
    ],
)
def test_bad_depths(name, message):
    with pytest.raises(ConfigError, match=message):
        models.check(name, "grid.student[0]")


@pytest.mark.parametrize(
    "name", ["resnet", "resnet020", "resnet20x2", "resnet20 ", "wrn_40", "wrn_40_0", "wrn-40-2", "vgg", "vgg08", ""]
)
def test_unknown_names_list_the_known(name):
    message = rf"^unknown model '{name}' at student\..* Known: resnet110, .*wrn_40_4\. In general: resnet<6n\+2>, "
    with pytest.raises(ConfigError, match=message):
        models.check(name, "student")


def test_near_names_are_suggested():
    with pytest.raises(ConfigError, match=r"unknown model 'wrn-40-2' at model\. Did you mean 'wrn_40_2'\?"):
        models.build("wrn-40-2", 10)

import math

import pytest
import torch
import torch.nn.functional as F

from kdtrain import models
from kdtrain.config import ConfigError

NAMES = ["mobilenet_v2", "shufflenet_v1", "shufflenet_v2"]
# Parameters for 100 classes, for 10 classes, entries of the state dict: counted on RepDistiller's modules. 200 classes
# have 100 rows of the head more, each with a bias.
TABLE = {
    "mobilenet_v2": (812_836, 697_546, 320, 1280),
    "shufflenet_v1": (949_258, 862_768, 296, 960),
    "shufflenet_v2": (1_355_528, 1_263_278, 338, 1024),
}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# (expansion, blocks, stride) of MobileNetV2's rows, for images of 32 x 32.
ROWS = ((1, 1, 1), (6, 2, 1), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))


def on_meta(name, num_classes=10, in_channels=3):
    with torch.device("meta"):
        return models.build(name, num_classes, in_channels)


def seeded(name, num_classes=10, seed=0):
    torch.manual_seed(seed)
    return models.build(name, num_classes)


def with_statistics(model):
    """The model in eval mode, with running statistics and BatchNorm weights that a wrong order would not survive."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_entries(name):
    hundred, ten, entries, width = TABLE[name]
    for num_classes, expected in ((100, hundred), (10, ten), (200, hundred + 100 * (width + 1))):
        model = on_meta(name, num_classes)
        assert count(model) == expected
        assert len(model.state_dict()) == entries


@pytest.mark.parametrize(("name", "other"), [("", "x1_0"), ("_w0.5", "x0_5"), ("_w1.5", "x1_5")])
def test_shufflenet_v2_has_the_parameters_of_torchvisions(name, other):
    # Of torchvision's stem, a 3 x 3 convolution, ours has one ninth. Of 2x, torchvision has a wider first stage.
    from torchvision.models import shufflenetv2

    with torch.device("meta"):
        oracle = getattr(shufflenetv2, f"shufflenet_v2_{other}")(num_classes=10)
    assert count(on_meta(f"shufflenet_v2{name}")) == count(oracle) - 24 * 3 * 8


@pytest.mark.parametrize(("width", "last"), [("1", 1), ("0.75", 0.75), ("0.25", 0.25)])
def test_mobilenet_v2_has_the_parameters_of_torchvisions_and_its_first_expansion(width, last):
    # The 16-channel first block of torchvision has no 1 x 1 convolution from c to c channels, with BatchNorm.
    from torchvision.models.mobilenetv2 import MobileNetV2

    with torch.device("meta"):
        oracle = MobileNetV2(num_classes=10, width_mult=last, round_nearest=1)
    c = int(32 * last)
    assert count(on_meta(f"mobilenet_v2_w{width}")) == count(oracle) + c * c + 2 * c


def norm_keys(*names):
    return {f"{name}.{entry}" for name in names for entry in NORM}


def conv_keys(*names):
    return {f"{name}.weight" for name in names}


def test_mobilenet_v2_keys():
    keys = {"classifier.0.weight", "classifier.0.bias"}
    keys |= conv_keys("conv1.0", "conv2.0") | norm_keys("conv1.1", "conv2.1")
    for row, (_, n, _) in enumerate(ROWS):
        for i in range(n):
            key = f"blocks.{row}.{i}.conv"
            keys |= conv_keys(*(f"{key}.{j}" for j in (0, 3, 6))) | norm_keys(*(f"{key}.{j}" for j in (1, 4, 7)))
    assert set(on_meta("mobilenet_v2").state_dict()) == keys


@pytest.mark.parametrize(("name", "first"), [("shufflenet_v1", 3), ("shufflenet_v2", 5)])
def test_shufflenet_keys(name, first):
    keys = {"linear.weight", "linear.bias"} | conv_keys("conv1") | norm_keys("bn1")
    if name == "shufflenet_v2":
        keys |= conv_keys("conv2") | norm_keys("bn2")
    for stage, n in ((1, 4), (2, 8), (3, 4)):
        for block in range(n):
            for i in range(1, (3 if block else first) + 1):
                keys |= conv_keys(f"layer{stage}.{block}.conv{i}") | norm_keys(f"layer{stage}.{block}.bn{i}")
    assert set(on_meta(name).state_dict()) == keys


# Channels of the stem, of the stages and of the pooled features.
WIDTHS = {
    "mobilenet_v2": (16, 12, 16, 48, 160, 1280),
    "mobilenet_v2_w0.25": (8, 6, 8, 24, 80, 1280),
    "mobilenet_v2_w1": (32, 24, 32, 96, 320, 1280),
    "mobilenet_v2_w1.4": (44, 33, 44, 134, 448, 1280),
    "shufflenet_v1": (24, 240, 480, 960, 960),
    "shufflenet_v1_w0.2": (24, 48, 96, 192, 192),
    "shufflenet_v1_w1.5": (24, 360, 720, 1440, 1440),
    "shufflenet_v2": (24, 116, 232, 464, 1024),
    "shufflenet_v2_w0.5": (24, 48, 96, 192, 1024),
    "shufflenet_v2_w1.5": (24, 176, 352, 704, 1024),
    "shufflenet_v2_w2": (24, 244, 488, 976, 2048),
}
# Rows of the stem and of the stages, by the rows of the images.
HEIGHTS = {
    "mobilenet": {28: (14, 14, 7, 4, 2), 32: (16, 16, 8, 4, 2), 64: (32, 32, 16, 8, 4), 96: (48, 48, 24, 12, 6)},
    "shufflenet": {28: (28, 14, 7, 4), 32: (32, 16, 8, 4), 64: (64, 32, 16, 8), 96: (96, 48, 24, 12)},
}


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [
        *((name, 32, 3) for name in WIDTHS),
        *((name, size, c) for name in NAMES for size, c in ((28, 1), (64, 3), (96, 3))),
    ],
)
def test_shapes(name, size, channels):
    *widths, pooled = WIDTHS[name]
    model = on_meta(name, 7, channels)
    out = model(torch.empty(2, channels, size, size, device="meta"))
    heights = HEIGHTS[name.split("_")[0]][size]
    shapes = [(2, c, h, h) for c, h in zip(widths, heights, strict=True)]
    assert [tuple(f.shape) for f in (out.stem, *out.stages)] == shapes
    assert [tuple(f.shape) for f in out.preact] == shapes[1:]
    assert (out.pooled.shape, out.logits.shape) == ((2, pooled), (2, 7))
    assert model.head.in_features == pooled


def norm(x, w, key):
    return F.batch_norm(x, w[f"{key}.running_mean"], w[f"{key}.running_var"], w[f"{key}.weight"], w[f"{key}.bias"])


def unit(x, w, conv, bn, stride=1, groups=1):
    """Convolution, padded to keep the size, and BatchNorm, by their keys."""
    weight = w[f"{conv}.weight"]
    return norm(F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups), w, bn)


def dealt(x, groups):
    """Channels 0, C/g, 2C/g, ..., 1, C/g + 1, ...: channel j of each group in turn."""
    n = x.shape[1] // groups
    return x[:, [group * n + j for j in range(n) for group in range(groups)]]


def mobilenet_v2(w, x):
    """(stem, stages, preact, logits) from RepDistiller's keys; the stages end with rows 1, 2, 4 and 6."""
    h = stem = F.relu(unit(x, w, "conv1.0", "conv1.1", stride=2))
    maps = []
    for row, (expansion, n, stride) in enumerate(ROWS):
        for i in range(n):
            key = f"blocks.{row}.{i}.conv"
            wide = h.shape[1] * expansion
            a = F.relu(unit(h, w, f"{key}.0", f"{key}.1"))
            a = F.relu(unit(a, w, f"{key}.3", f"{key}.4", stride if i == 0 else 1, wide))
            a = unit(a, w, f"{key}.6", f"{key}.7")
            h = a + h if i else a  # in the half network no row keeps the number of channels
        maps.append(h)
    maps = tuple(maps[row] for row in (1, 2, 4, 6))
    logits = F.relu(unit(h, w, "conv2.0", "conv2.1")).mean((2, 3)) @ w["classifier.0.weight"].T
    return stem, maps, maps, logits + w["classifier.0.bias"]


def shufflenet_v1(w, x):
    """As `mobilenet_v2`; the first block of each stage appends its pooled input, the others add theirs."""
    h = stem = F.relu(unit(x, w, "conv1", "bn1"))
    stages, sums = [], []
    for stage, n in ((1, 4), (2, 8), (3, 4)):
        for block in range(n):
            key = f"layer{stage}.{block}"
            groups = 1 if (stage, block) == (1, 0) else 3
            a = F.relu(unit(h, w, f"{key}.conv1", f"{key}.bn1", groups=groups))
            a = dealt(a, groups)
            a = F.relu(unit(a, w, f"{key}.conv2", f"{key}.bn2", 1 if block else 2, a.shape[1]))
            a = unit(a, w, f"{key}.conv3", f"{key}.bn3", groups=3)
            before = a + h if block else torch.cat([a, F.avg_pool2d(h, 3, stride=2, padding=1)], 1)
            h = F.relu(before)
        stages.append(h)
        sums.append(before)
    return stem, tuple(stages), tuple(sums), h.mean((2, 3)) @ w["linear.weight"].T + w["linear.bias"]


def shufflenet_v2(w, x):
    """As `mobilenet_v2`; the stages are shuffled, the maps before the ReLU are not."""
    h = stem = F.relu(unit(x, w, "conv1", "bn1"))
    stages, parts = [], []
    for stage, n in ((1, 4), (2, 8), (3, 4)):
        key = f"layer{stage}.0"
        left = unit(h, w, f"{key}.conv1", f"{key}.bn1", 2, h.shape[1])
        left = F.relu(unit(left, w, f"{key}.conv2", f"{key}.bn2"))
        right = F.relu(unit(h, w, f"{key}.conv3", f"{key}.bn3"))
        right = unit(right, w, f"{key}.conv4", f"{key}.bn4", 2, right.shape[1])
        right = F.relu(unit(right, w, f"{key}.conv5", f"{key}.bn5"))
        h = dealt(torch.cat([left, right], 1), 2)
        for block in range(1, n):
            key, half = f"layer{stage}.{block}", h.shape[1] // 2
            kept = h[:, :half]
            a = F.relu(unit(h[:, half:], w, f"{key}.conv1", f"{key}.bn1"))
            a = unit(a, w, f"{key}.conv2", f"{key}.bn2", groups=half)
            a = unit(a, w, f"{key}.conv3", f"{key}.bn3")
            h = dealt(torch.cat([kept, F.relu(a)], 1), 2)
        stages.append(h)
        parts.append(torch.cat([kept, a], 1))
    logits = F.relu(unit(h, w, "conv2", "bn2")).mean((2, 3)) @ w["linear.weight"].T + w["linear.bias"]
    return stem, tuple(stages), tuple(parts), logits


FORMULAS = {"mobilenet_v2": mobilenet_v2, "shufflenet_v1": shufflenet_v1, "shufflenet_v2": shufflenet_v2}


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize("name", NAMES)
def test_equals_its_formula_on_the_state_dict(name, size):
    model = with_statistics(seeded(name)).double()
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        out, (stem, stages, preact, logits) = model(x), FORMULAS[name](model.state_dict(), x)
    torch.testing.assert_close(out.stem, stem)
    torch.testing.assert_close(out.stages, stages)
    torch.testing.assert_close(out.preact, preact)
    torch.testing.assert_close(out.logits, logits)


@pytest.mark.parametrize(("name", "window"), [("mobilenet_v2", 2), ("shufflenet_v1", 4), ("shufflenet_v2", 4)])
def test_pooling_is_repdistillers_at_32(name, window):
    model = with_statistics(seeded(name))
    out = model(torch.randn(3, 3, 32, 32))
    last = out.stages[-1]
    if name == "mobilenet_v2":
        last = model.conv2(last)
    elif name == "shufflenet_v2":
        last = F.relu(model.bn2(model.conv2(last)))
    torch.testing.assert_close(out.pooled, F.avg_pool2d(last, window).flatten(1))
    torch.testing.assert_close(out.logits, out.pooled @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize("name", NAMES)
def test_signs_of_the_features(name):
    out = with_statistics(seeded(name))(torch.randn(4, 3, 32, 32))
    signed = name == "mobilenet_v2"  # linear bottlenecks
    assert all(bool((stage < 0).any()) == signed for stage in out.stages)
    assert all((map_ < 0).any() and (map_ > 0).any() for map_ in out.preact)
    assert out.stem.min() >= 0
    assert out.pooled.min() >= 0


@pytest.mark.parametrize("name", [*NAMES, "mobilenet_v2_w1", "shufflenet_v1_w0.2", "shufflenet_v2_w0.5"])
def test_the_last_relu_makes_the_stages(name):
    # A linear bottleneck has none; ShuffleNetV2 shuffles after it.
    out = with_statistics(seeded(name))(torch.randn(2, 3, 32, 32))
    for map_, stage in zip(out.preact, out.stages, strict=True):
        if name.startswith("shufflenet_v1"):
            map_ = F.relu(map_)
        elif name.startswith("shufflenet_v2"):
            map_ = dealt(F.relu(map_), 2)
        assert torch.equal(map_, stage)


def test_shufflenet_v2_keeps_the_first_half():
    model = with_statistics(seeded("shufflenet_v2"))
    x = torch.rand(2, 116, 4, 4)
    block = model.layer1[1]
    assert torch.equal(block.preact(x)[:, :58], x[:, :58])
    assert torch.equal(block(x)[:, ::2], x[:, :58])


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("mobilenet_v2", ("blocks.1.1.conv.7", "blocks.2.2.conv.7", "blocks.4.2.conv.7", "blocks.6.0.conv.7")),
        ("shufflenet_v1", ("layer1.3.bn3", "layer2.7.bn3", "layer3.3.bn3")),
    ],
)
def test_norms_before_the_last_relu(name, norms):
    model = on_meta(name)
    modules = dict(model.named_modules())
    assert list(model.preact_norms) == [modules[key] for key in norms]
    out = model(torch.empty(1, 3, 32, 32, device="meta"))
    assert [norm.num_features for norm in model.preact_norms] == [map_.shape[1] for map_ in out.preact]


def test_shufflenet_v2_has_no_norm_of_all_channels():
    message = r"^the last BatchNorm of every stage must cover all of its channels, but that of ShuffleNetV2 covers half"
    with pytest.raises(ConfigError, match=message):
        _ = on_meta("shufflenet_v2").preact_norms


@pytest.mark.parametrize("name", NAMES)
def test_no_norm_sees_the_data_twice_in_a_step(name):
    model = seeded(name).train()
    model(torch.randn(2, 3, 32, 32))
    counts = [n.item() for key, n in model.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counts == [1] * sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "after", "stages"),
    [
        ("mobilenet_v2", ("conv2", "classifier"), 4),
        ("shufflenet_v1", ("linear",), 3),
        ("shufflenet_v2", ("conv2", "bn2", "linear"), 3),
    ],
)
def test_the_trunk_holds_all_before_the_end_of_the_last_stage_once(name, after, stages):
    model = on_meta(name)
    assert len(model.trunk) == 1 + stages
    held = [parameter for part in model.trunk for module in part for parameter in module.parameters()]
    assert len(held) == len(set(held))
    expected = {p for key, p in model.named_parameters() if not key.startswith(tuple(f"{end}." for end in after))}
    assert set(held) == expected


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_each_part_of_the_trunk_makes_its_map(name):
    # A part that is changed changes its own map and later ones, no earlier one.
    x = torch.randn(1, 3, 32, 32)
    model = with_statistics(seeded(name))
    before = model(x)
    for i, part in enumerate(model.trunk):
        changed = seeded(name).eval()
        changed.load_state_dict(model.state_dict())
        for module in changed.trunk[i]:
            for parameter in module.parameters():
                parameter.mul_(1.5)
        after = changed(x)
        assert part
        maps = zip((before.stem, *before.stages), (after.stem, *after.stages), strict=True)
        assert [torch.equal(a, b) for a, b in maps] == [j < i for j in range(len(model.trunk))]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    model = seeded(name)
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)).logits, torch.arange(4)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_initial_convolutions(name):
    # MobileNetV2: normal with variance 2 / (k k outputs). ShuffleNets: torch's default, uniform in +-1/sqrt(inputs).
    for key, conv in seeded(name).named_modules():
        if not isinstance(conv, torch.nn.Conv2d):
            continue
        area, n = conv.kernel_size[0] ** 2, conv.weight.numel()
        # Standard errors, relative, of a standard deviation: 1/sqrt(2n) if normal, less if uniform.
        if name == "mobilenet_v2":
            std = math.sqrt(2 / (area * conv.out_channels))
        else:
            bound = 1 / math.sqrt(area * conv.in_channels / conv.groups)
            assert conv.weight.abs().max() <= bound
            std = bound / math.sqrt(3)
        assert conv.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n)), key
        assert abs(conv.weight.mean().item()) < 5 * std / math.sqrt(n), key


@pytest.mark.parametrize("name", NAMES)
def test_initial_norms_and_head(name):
    model = seeded(name, 100)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())
    head = model.head
    if name == "mobilenet_v2":
        # Five standard errors of a standard deviation, of 1280 x 100 weights.
        assert head.weight.std().item() == pytest.approx(0.01, rel=5 / math.sqrt(2 * 128_000))
        assert head.bias.abs().max() == 0
    else:
        bound = 1 / math.sqrt(head.in_features)
        assert 0.99 * bound < head.weight.abs().max() <= bound
        assert 0.9 * bound < head.bias.abs().max() <= bound


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_weights(name):
    one, same, other = (seeded(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    first = next(iter(one))
    assert not torch.equal(one[first], other[first])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mobilenet_v2", "MobileNetV2"), ("shufflenet_v1", "ShuffleNetV1"), ("shufflenet_v2", "ShuffleNetV2")],
)
def test_odd_sizes_are_refused(name, kind):
    model = on_meta(name)
    for height, width in ((31, 31), (32, 30), (33, 32), (4, 4)):
        rule = (
            f"^{kind} needs images whose rows and columns are multiples of 4 and at least 8, but got {height} x {width}"
        )
        with pytest.raises(ConfigError, match=rule):
            model(torch.empty(1, 3, height, width, device="meta"))


@pytest.mark.parametrize(
    "name",
    [
        *("mobilenet_v2", "mobilenet_v2_w0.1", "mobilenet_v2_w0.35", "mobilenet_v2_w4"),
        *("shufflenet_v1", "shufflenet_v1_w0.2", "shufflenet_v1_w4", "shufflenet_v2", "shufflenet_v2_w1.5"),
    ],
)
def test_known_names(name):
    models.check(name, "student")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("mobilenet_v2_w0.09", "0.1 <= width <= 4 must hold"),
        ("mobilenet_v2_w4.01", "0.1 <= width <= 4 must hold"),
        ("mobilenet_v2_w0.751", "width must have at most two decimals"),
        ("shufflenet_v1_w0.1", "0.2 <= width <= 4 must hold"),
        ("shufflenet_v1_w5", "0.2 <= width <= 4 must hold"),
        ("shufflenet_v1_w0.25", "240, 480 and 960 times the width must be multiples of 24"),
        ("shufflenet_v1_w1.000000000001", "240, 480 and 960 times the width must be multiples of 24"),
        ("shufflenet_v2_w0.75", "width must be one of 0.5, 1, 1.5, 2"),
        ("shufflenet_v2_w1.500000000001", "width must be one of 0.5, 1, 1.5, 2"),
    ],
)
def test_bad_widths(name, rule):
    with pytest.raises(ConfigError) as caught:
        models.check(name, "grid.student[0]")
    assert str(caught.value) == f"{rule}, but got {name} at grid.student[0]."


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("mobilenet_v2_w0.5", "mobilenet_v2"),
        ("mobilenet_v2_w.5", "mobilenet_v2"),
        ("mobilenet_v2_w1.0", "mobilenet_v2_w1"),
        ("mobilenet_v2_w00.750", "mobilenet_v2_w0.75"),
        ("shufflenet_v1_w1", "shufflenet_v1"),
        ("shufflenet_v1_w0.50", "shufflenet_v1_w0.5"),
        ("shufflenet_v1_w01.1", "shufflenet_v1_w1.1"),
        ("shufflenet_v2_w1", "shufflenet_v2"),
        ("shufflenet_v2_w2.", "shufflenet_v2_w2"),
    ],
)
def test_a_network_has_one_spelling(name, right):
    with pytest.raises(ConfigError) as caught:
        models.check(name, "grid.student[0]")
    assert str(caught.value) == f"this network is written {right}, but got {name} at grid.student[0]."
    models.check(right, "grid.student[0]")


@pytest.mark.parametrize(
    "name",
    [
        *("mobilenet", "mobilenet_v2_0.5", "mobilenet_v2_w", "mobilenet_v2_w-1", "mobilenet_v2_w1e0"),
        *("shufflenet", "shufflenet_v1_w1.1.1", "shufflenet_v2_w0.5 ", "shufflenet_v3"),
    ],
)
def test_unknown_names_list_the_known(name):
    with pytest.raises(ConfigError, match=r"^unknown model '.*' at student\..* Known: .*mobilenet_v2, .*shufflenet_v2"):
        models.check(name, "student")

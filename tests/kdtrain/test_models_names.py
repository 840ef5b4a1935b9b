"""Networks by family, depth and width: each has its one right name."""

import pytest

from kdtrain import models
from kdtrain.config import ConfigError

EXAMPLES = {
    "resnet_imagenet": {"resnet18": (18, None), "resnet34": (34, None), "resnet50": (50, None)},
    "resnet": {
        **{f"resnet{depth}": (depth, 1.0) for depth in (8, 14, 20, 32, 44, 56, 110)},
        "resnet8x4": (8, 4.0),
        "resnet32x4": (32, 4.0),
    },
    "vgg": {f"vgg{depth}": (depth, 1.0) for depth in (8, 11, 13, 16, 19)},
    "wrn": {
        "wrn_16_1": (16, 1.0),
        "wrn_16_2": (16, 2.0),
        "wrn_16_4": (16, 4.0),
        "wrn_40_1": (40, 1.0),
        "wrn_40_2": (40, 2.0),
        "wrn_40_4": (40, 4.0),
    },
    "bottleneck_cifar": {f"resnet{depth}_cifar": (depth, 1.0) for depth in (50, 101, 152)},
    "preact_resnet_cifar": {f"resnet{depth}_cifar": (depth, 1.0) for depth in (18, 34)},
    "densenet_cifar": {f"densenet{depth}_cifar": (depth, 1.0) for depth in (121, 169, 201)},
    "resnext_cifar": {"resnext29_8x64d": (29, None)},
    "mobilenet_v1": {
        "mobilenet_v1": (None, 1.0),
        "mobilenet_v1_w0.25": (None, 0.25),
        "mobilenet_v1_w0.5": (None, 0.5),
        "mobilenet_v1_w0.75": (None, 0.75),
    },
    "mobilenet_v2": {
        "mobilenet_v2": (None, 0.5),
        "mobilenet_v2_w0.25": (None, 0.25),
        "mobilenet_v2_w0.75": (None, 0.75),
        "mobilenet_v2_w1": (None, 1.0),
        "mobilenet_v2_w1.4": (None, 1.4),
    },
    "shufflenet_v1": {
        "shufflenet_v1": (None, 1.0),
        "shufflenet_v1_w0.5": (None, 0.5),
        "shufflenet_v1_w1.5": (None, 1.5),
        "shufflenet_v1_w2": (None, 2.0),
    },
    "shufflenet_v2": {
        "shufflenet_v2": (None, 1.0),
        "shufflenet_v2_w0.5": (None, 0.5),
        "shufflenet_v2_w1.5": (None, 1.5),
        "shufflenet_v2_w2": (None, 2.0),
    },
}


@pytest.mark.parametrize("family", models.MODELS)
def test_every_example_has_its_name(family):
    if family == "torchvision":
        assert models.MODELS[family].name is None
        return
    assert EXAMPLES[family].keys() == set(models.MODELS[family].examples)
    for name, (depth, width) in EXAMPLES[family].items():
        assert models.named(family, depth, width, "here") == name


@pytest.mark.parametrize(
    ("family", "depth", "width", "name"),
    [
        ("resnet", 20, None, "resnet20"),
        ("resnet", 20, 1, "resnet20"),
        ("resnet", 26, 2.0, "resnet26x2"),
        ("resnet", 50, 2.0, "resnet50x2"),
        ("wrn", 28, 10.0, "wrn_28_10"),
        ("vgg", 8, None, "vgg8"),
        ("vgg", 8, 0.5, "vgg8_w0.5"),
        ("vgg", 19, 2.0, "vgg19_w2"),
        ("vgg", 8, 10.0, "vgg8_w10"),
        ("vgg", 8, 1.015625, "vgg8_w1.015625"),
        ("bottleneck_cifar", 50, None, "resnet50_cifar"),
        ("bottleneck_cifar", 50, 0.5, "resnet50_cifar_w0.5"),
        ("preact_resnet_cifar", 18, None, "resnet18_cifar"),
        ("preact_resnet_cifar", 34, 2.0, "resnet34_cifar_w2"),
        ("densenet_cifar", 121, None, "densenet121_cifar"),
        ("densenet_cifar", 121, 0.5, "densenet121_cifar_k16"),
        ("densenet_cifar", 201, 1.5, "densenet201_cifar_k48"),
        ("resnext_cifar", 11, None, "resnext11_8x64d"),
        ("mobilenet_v1", None, None, "mobilenet_v1"),
        ("mobilenet_v2", None, None, "mobilenet_v2"),
        ("shufflenet_v1", None, None, "shufflenet_v1"),
        ("shufflenet_v1", None, 0.1 + 0.2, "shufflenet_v1_w0.3"),  # 0.30000000000000004
        ("shufflenet_v2", None, None, "shufflenet_v2"),
    ],
)
def test_names(family, depth, width, name):
    assert models.named(family, depth, width, "here") == name
    models.check(name, "here")


KNOWN = (
    "bottleneck_cifar, densenet_cifar, mobilenet_v1, mobilenet_v2, preact_resnet_cifar, resnet, resnet_imagenet, "
    "resnext_cifar, shufflenet_v1, shufflenet_v2, vgg, wrn"
)


@pytest.mark.parametrize(
    ("family", "depth", "width", "message"),
    [
        ("resnt", 20, 1.0, rf"^unknown family 'resnt' at grid\.s\. Did you mean 'resnet'\? Known: {KNOWN}\.$"),
        (
            "torchvision",
            None,
            1.0,
            r"^a family must have names .* as resnet_imagenet, .* but got torchvision at grid\.s",
        ),
        ("resnet", None, 2.0, r"^depth is required for the family resnet, but got width 2\.0 at grid\.s\.$"),
        ("resnet", None, None, r"^depth is required for the family resnet, but got neither at grid\.s\.$"),
        ("wrn", 16, None, r"^width is required for the family wrn, but got depth 16 at grid\.s\.$"),
        ("vgg", None, 1.0, r"^depth is required for the family vgg, but got width 1\.0 at"),
        ("bottleneck_cifar", None, None, r"^depth is required for the family bottleneck_cifar, "),
        ("preact_resnet_cifar", None, None, r"^depth is required for the family preact_resnet_cifar, "),
        ("densenet_cifar", None, None, r"^depth is required for the family densenet_cifar, "),
        ("resnext_cifar", None, None, r"^depth is required for the family resnext_cifar, "),
        ("resnet_imagenet", None, None, r"^depth is required for the family resnet_imagenet, "),
        (
            "resnext_cifar",
            29,
            1.0,
            r"^width must be left out for the family resnext_cifar, but got depth 29 and width 1",
        ),
        ("resnet_imagenet", 18, 1.0, r"^width must be left out for the family resnet_imagenet, but got depth 18 and "),
        ("mobilenet_v1", 13, None, r"^depth must be left out for the family mobilenet_v1, but got depth 13 at grid\.s"),
        ("mobilenet_v2", 13, 1.0, r"^depth must be left out for the family mobilenet_v2, but got depth 13 and width"),
        ("shufflenet_v1", 13, None, r"^depth must be left out for the family shufflenet_v1, "),
        ("shufflenet_v2", 13, None, r"^depth must be left out for the family shufflenet_v2, "),
        (
            "resnet",
            20,
            1.5,
            r"^width must be whole for the family resnet, but got depth 20 and width 1\.5 at grid\.s\.$",
        ),
        ("wrn", 16, 0.5, r"^width must be whole for the family wrn, but got depth 16 and width 0\.5 at"),
        (
            "densenet_cifar",
            121,
            0.3,
            r"^32 times the width must be whole for the family densenet_cifar, but got depth 121",
        ),
        ("resnet", 9, 1.0, r"^depth must be 6n\+2 with n >= 1, but got resnet9 at grid\.s\.$"),
        ("resnet", 20, 0, r"^width must be at least 2, but got resnet20x0 at"),
        ("wrn", 15, 2.0, r"^depth must be 6n\+4 with n >= 1, but got wrn_15_2 at"),
        ("vgg", 9, 1.0, r"^depth must be one of 8, 11, 13, 16, 19, but got vgg9 at"),
        ("vgg", 8, 1 / 3, r"^64 times the width must be whole and at least 1, but got vgg8_w0\.333333333333 at"),
        ("vgg", 8, 0.50000001, r"^64 times the width must be whole and at least 1, but got vgg8_w0\.50000001 at"),
        ("vgg", 8, 0.0, r"^64 times the width must be whole and at least 1, but got vgg8_w0 at"),
        ("vgg", 8, float("inf"), r"^unknown model 'vgg8_winf' at grid\.s\."),
        ("mobilenet_v2", None, 0.333, r"^width must have at most two decimals, but got mobilenet_v2_w0\.333 at"),
        ("shufflenet_v2", None, 0.75, r"^width must be one of 0\.5, 1, 1\.5, 2, but got shufflenet_v2_w0\.75 at"),
        ("bottleneck_cifar", 51, None, r"^unknown model 'resnet51_cifar' at grid\.s\. Did you mean "),
        # 6 * 8 + 2, but this name and the next ones are of other families.
        (
            "resnet",
            50,
            1.0,
            r"^resnet50 is a network of another family than resnet, but got depth 50 and width 1\.0 at",
        ),
        (
            "resnet_imagenet",
            20,
            None,
            r"^resnet20 is a network of another family than resnet_imagenet, but got depth 20",
        ),
        ("preact_resnet_cifar", 50, 0.5, r"^resnet50_cifar_w0\.5 is a network of another family than preact_resnet_ci"),
        ("bottleneck_cifar", 18, None, r"^resnet18_cifar is a network of another family than bottleneck_cifar, "),
    ],
)
def test_what_has_no_name(family, depth, width, message):
    with pytest.raises(ConfigError, match=message):
        models.named(family, depth, width, "grid.s")

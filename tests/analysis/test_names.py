import pytest

from analysis.names import (
    dataset_name,
    fraction_name,
    images_name,
    method_name,
    method_order,
    model_name,
    natural_order,
    ordinal,
)


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("wrn_40_2", "WRN-40-2"),
        ("resnet56", "ResNet-56"),
        ("resnet32x4", "ResNet-32×4"),
        ("resnet50_cifar", "ResNet-50 (CIFAR)"),
        ("vgg8", "VGG-8"),
        ("mobilenet_v2", "MobileNetV2"),
        ("shufflenet_v1", "ShuffleNetV1"),
        ("resnet8x8", "ResNet-8×8"),
        ("resnext29_8x64d", "ResNeXt-29 (8×64d)"),
        ("mobilenet_v2_w0.75", "MobileNetV2 ×0.75"),
        ("resnet50_cifar_w2", "ResNet-50 ×2 (CIFAR)"),
        ("densenet121_cifar_k12", "DenseNet-121 k=12 (CIFAR)"),
        ("torchvision:efficientnet_b0", "efficientnet_b0 (torchvision)"),
        ("my_net", "my_net"),
    ],
)
def test_models(identifier, name):
    assert model_name(identifier) == name


def test_methods():
    assert method_name("kd") == "KD"
    assert method_name("fitnet+kd") == "FitNet + KD"
    assert method_name("mine+kd") == "mine + KD"
    assert method_name("dkd+lskd") == "DKD + LSKD"
    assert method_name("ps_kd+ipwd") == "PS-KD + IPWD"
    assert sorted(["zeta", "ipwd", "cid", "sp+kd", "kd", "vanilla"], key=method_order) == [
        "vanilla",
        "kd",
        "sp+kd",
        "cid",
        "ipwd",
        "zeta",
    ]


def test_data():
    assert dataset_name("cifar100") == "CIFAR-100"
    assert dataset_name("own") == "own"
    assert dataset_name("cifar100 -> stl10") == "CIFAR-100 → STL-10"
    assert fraction_name(0.2) == "20 %"
    assert fraction_name(0.125) == "12.5 %"
    assert images_name("cifar100", 0.2) == "20 % of CIFAR-100"
    assert images_name("cifar100 -> stl10", 1.0) == "100 % of STL-10, linear probes of networks trained on CIFAR-100"


@pytest.mark.parametrize(
    ("place", "name"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (22, "22nd")]
)
def test_ordinal(place, name):
    assert ordinal(place) == name


def test_natural_order():
    assert sorted(["resnet14", "wrn_16_1", "resnet8"], key=natural_order) == ["resnet8", "resnet14", "wrn_16_1"]
    assert sorted(["0.1", "10", "2", "0.05", "1e-05"], key=natural_order) == ["1e-05", "0.05", "0.1", "2", "10"]

"""Display names of methods, models and data sets, and the order in which methods are listed.

Unknown names are shown as they are.
"""

import re
from functools import cache

METHODS = {
    "teacher": "Teacher",
    "vanilla": "Vanilla",
    "ls": "LS",
    "kd": "KD",
    "fitnet": "FitNet",
    "at": "AT",
    "sp": "SP",
    "cc": "CC",
    "vid": "VID",
    "rkd": "RKD",
    "pkt": "PKT",
    "ab": "AB",
    "ft": "FT",
    "fsp": "FSP",
    "nst": "NST",
    "kdsvd": "KDSVD",
    "crd": "CRD",
    "ofd": "OFD",
    "srrl": "SRRL",
    "cskd": "CSKD",
    "sskd": "SSKD",
    "wsld": "WSLD",
    "dgkd": "DGKD",
    "cs_kd": "CS-KD",
    "tf_kd": "TF-KD",
    "ps_kd": "PS-KD",
    "dkd": "DKD",
    "reviewkd": "ReviewKD",
    "dist": "DIST",
    "lskd": "LSKD",
    "nkd": "NKD",
    "cid": "CID",
    "ipwd": "IPWD",
}
DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny-ImageNet",
    "imagenet": "ImageNet",
    "stl10": "STL-10",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "fashion_mini": "Fashion-MNIST mini",
    "fashion_mnist_mini": "Fashion-MNIST mini",
}
# Patterns of model identifiers, and what is printed for them.
_MODELS = (
    (r"wrn_(\d+)_(\d+)", r"WRN-\1-\2"),
    (r"resnet(\d+)", r"ResNet-\1"),
    (r"resnet(\d+)x(\d+)", r"ResNet-\1×\2"),
    (r"resnext(\d+)_(\d+)x(\d+)d", r"ResNeXt-\1 (\2×\3d)"),
    (r"densenet(\d+)", r"DenseNet-\1"),
    (r"vgg(\d+)", r"VGG-\1"),
    (r"mobilenet_v(\d+)", r"MobileNetV\1"),
    (r"shufflenet_v(\d+)", r"ShuffleNetV\1"),
)
_CIFAR = "_cifar"  # the CIFAR form of a network that ImageNet has too
_TORCHVISION = "torchvision:"
_WIDTH = re.compile(r"_([wk])([\d.]+)$")  # a width or growth other than the standard one
ONTO = " -> "  # between the two data sets of a probe
_NUMBER = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"


def method_name(method: str) -> str:
    """`fitnet+kd` -> `FitNet + KD`."""
    return " + ".join(METHODS.get(part, part) for part in method.split("+"))


def method_order(method: str) -> tuple[int, str]:
    """Sort key: the order of METHODS, then unknown methods by name."""
    first = method.split("+")[0]
    known = list(METHODS)
    return (known.index(first) if first in known else len(known), method)


def model_name(model: str) -> str:
    """`wrn_40_2` -> `WRN-40-2`, `mobilenet_v2_w0.75` -> `MobileNetV2 ×0.75`."""
    if model.startswith(_TORCHVISION):
        return f"{model.removeprefix(_TORCHVISION)} (torchvision)"
    scaled = _WIDTH.search(model)
    plain = model[: scaled.start()] if scaled else model
    stem = plain.removesuffix(_CIFAR)
    for pattern, form in _MODELS:
        match = re.fullmatch(pattern, stem)
        if match:
            width = f" {'×' if scaled[1] == 'w' else 'k='}{scaled[2]}" if scaled else ""
            return match.expand(form) + width + (" (CIFAR)" if stem != plain else "")
    return model


@cache
def natural_order(name: str) -> tuple[tuple[str, float], ...]:
    """Sort key that puts resnet8 before resnet14, and 0.05 before 0.1."""
    return tuple((text, float(number or -1)) for text, number in re.findall(rf"(\D*)({_NUMBER}|)", name))


def dataset_name(dataset: str) -> str:
    """`cifar100` -> `CIFAR-100`, `cifar100 -> stl10` -> `CIFAR-100 → STL-10`."""
    return " → ".join(DATASETS.get(name, name) for name in dataset.split(ONTO))


def images_name(dataset: str, fraction: float) -> str:
    """`20 % of CIFAR-100`; of probes `20 % of STL-10, linear probes of networks trained on CIFAR-100`."""
    *source, target = dataset.split(ONTO)
    probes = f", linear probes of networks trained on {dataset_name(source[0])}" if source else ""
    return f"{fraction_name(fraction)} of {dataset_name(target)}{probes}"


def ordinal(place: int) -> str:
    """2 -> `2nd`."""
    ending = "th" if 10 < place % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending}"


def fraction_name(fraction: float) -> str:
    """0.2 -> `20 %`."""
    return f"{100 * fraction:g} %"

import pytest

from kdtrain import catalogue_models, models
from kdtrain.config import ConfigError
from kdtrain.models.cost import Latency


def test_the_listing_has_a_row_an_example(monkeypatch):
    few = {key: models.MODELS[key] for key in ("resnet_imagenet", "wrn")}
    monkeypatch.setattr(catalogue_models, "MODELS", few)
    header, rows = catalogue_models.listing(1000, 32)
    assert header == ["family", "name", "parameters", "multiply-adds"]
    assert [row[1] for row in rows] == [example for family in few.values() for example in family.examples]
    assert ["resnet18, resnet34, resnet50 for ImageNet", "resnet18", "11,689,512", "-"] in rows  # 32 x 32 is too small
    # 180,916 for 100 classes: 64 weights and a bias more for each of the others.
    (row,) = (row for row in rows if row[1] == "wrn_16_1")
    assert row[2] == f"{180_916 + 900 * 65:,}"
    assert all(row[3].replace(",", "").isdecimal() for row in rows if row[1].startswith("wrn"))


def test_every_family_is_listed(monkeypatch):
    monkeypatch.setattr(catalogue_models, "_costs", lambda *_: ("1", "2"))
    _, rows = catalogue_models.listing(10, 32)
    assert [row[0] for row in rows if row[0]] == [family.form for family in models.MODELS.values()]


def test_one_network_is_described_in_full(monkeypatch):
    monkeypatch.setattr(catalogue_models, "latency", lambda *_: Latency(12.345, 12.0, 13.0, 99, 1, 2))
    # torchvision says 25,557,032 parameters and 4.089 10^9 multiply-adds.
    count, *others = (line for line in catalogue_models.described("resnet50", 1000, 224) if "multiply-adds" in line)
    assert count.startswith("multiply-adds: 4,089,")
    assert not others
    lines = catalogue_models.described("resnet50", 1000, 224)
    lines.remove(count)
    assert lines == [
        "resnet50: 1000 classes, images of 224 x 224",
        "parameters: 25,557,032",
        "features: stem 64 x 56 x 56, stages 256 x 56 x 56, 512 x 28 x 28, 1024 x 14 x 14, 2048 x 7 x 7, pooled 2048",
        "time of an image: 12.35 ms [12.00, 13.00] (median and quartiles of 99 forward passes, fp32, this CPU, "
        "2 threads)",
    ]


def test_a_network_without_maps_says_so(monkeypatch):
    monkeypatch.setattr(catalogue_models, "latency", lambda *_: Latency(1.0, 1.0, 1.0, 2, 1, 1))
    lines = catalogue_models.described("torchvision:shufflenet_v2_x0_5", 10, 64)
    assert "features: no maps, pooled 1024" in lines
    assert lines[-1].endswith("this CPU, 1 thread)")


def test_errors_are_those_of_the_network():
    with pytest.raises(ConfigError, match=r"unknown model 'resnet' at model\."):
        catalogue_models.described("resnet", 10, 32)

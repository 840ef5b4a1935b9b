import copy
import pickle
import urllib.error

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from kdtrain import models
from kdtrain.config import ConfigError
from kdtrain.models.torchvision import Torchvision, names, pretrained

SMALL = "torchvision:shufflenet_v2_x0_5"
DOWNLOAD = "torchvision.models._api.load_state_dict_from_url"


def seeded(name, num_classes=10, in_channels=3):
    torch.manual_seed(0)
    return models.build(name, num_classes, in_channels)


def theirs(name, **options):
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, **options)


def run_on_meta(name, size, in_channels=3):
    with torch.device("meta"):
        return models.build(name, 10, in_channels)(torch.empty(2, in_channels, size, size))


# One of each way to end: a mean, a flatten, a dropout before the last layer, two linear layers.
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("shufflenet_v2_x0_5", {}),
        ("mobilenet_v3_small", {}),
        ("regnet_y_400mf", {}),
        ("efficientnet_b0", {}),
        ("googlenet", {"aux_logits": False, "init_weights": True, "transform_input": True}),
    ],
)
def test_weights_and_features_are_torchvisions(name, options):
    ours, other = seeded(f"torchvision:{name}").eval(), theirs(name, num_classes=10, **options).eval()
    state = other.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in ours.state_dict().items())
    x = torch.randn(2, 3, 64, 64)
    before_head, head = get_graph_node_names(other)[1][-2:]
    with torch.no_grad():
        out, nodes = ours(x), create_feature_extractor(other, [before_head, head])(x)
    torch.testing.assert_close((out.pooled, out.logits), (nodes[before_head], nodes[head]))
    torch.testing.assert_close(out.logits, F.linear(out.pooled, ours.head.weight, ours.head.bias))
    assert (out.stem.shape[:2], out.stages, out.preact) == ((2, 0), (), ())
    assert (ours.trunk, ours.preact_norms) == ((), ())


def test_googlenet_sees_images_of_minus_one_to_one():
    seen, pixels = [], torch.rand(1, 3, 64, 64)
    model = seeded("torchvision:googlenet").eval()
    model.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    model((pixels - mean) / std)
    torch.testing.assert_close(seen[0], 2 * pixels - 1)


def test_weights_of_the_network_itself_can_be_exchanged():
    # A transformer's class token belongs to no part of it.
    def tiny():
        net = torchvision.models.VisionTransformer(16, 8, 1, 2, 8, 8, num_classes=3)
        return Torchvision("tiny", net, net.heads.head)

    with torch.device("meta"):
        model = tiny()
    torch.manual_seed(0)
    source, x = tiny(), torch.randn(2, 3, 16, 16)
    torch.nn.init.normal_(source.class_token)
    torch.nn.init.normal_(source.head.weight)
    model.load_state_dict(source.state_dict(), assign=True)
    torch.testing.assert_close(model.eval()(x).logits, source.eval()(x).logits)


def test_training_is_torchvisions():
    x, y = torch.randn(4, 3, 64, 64), torch.arange(4)
    gradients = []
    for model in (seeded(SMALL), theirs("shufflenet_v2_x0_5", num_classes=10)):
        out = model(x)
        F.cross_entropy(getattr(out, "logits", out), y).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        assert {tensor.item() for key, tensor in model.state_dict().items() if "tracked" in key} == {1}
    torch.testing.assert_close(*gradients)


def test_gradients_of_the_pooled_features_reach_all_but_the_head():
    model = seeded(SMALL)
    model(torch.randn(2, 3, 64, 64)).pooled.square().sum().backward()
    without = {key for key, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_weights_of_its_own(copied):
    model, x = seeded(SMALL).eval(), torch.randn(1, 3, 64, 64)
    other = copied(model)
    before = model(x).logits
    assert torch.equal(other(x).logits, before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert other(x).logits.abs().max() == 0
    assert torch.equal(model(x).logits, before)


def test_another_type_reaches_the_weights_that_compute():
    model = seeded(SMALL).double()
    assert model(torch.randn(2, 3, 64, 64, dtype=torch.float64)).pooled.dtype == torch.float64


def test_other_numbers_of_channels():
    for name in (SMALL, "torchvision:googlenet", "torchvision:swin_t"):
        assert run_on_meta(name, 64, in_channels=1).logits.shape == (2, 10)
    model = seeded(SMALL, in_channels=5)
    assert model.state_dict()["conv1.0.weight"].shape == (24, 5, 3, 3)
    assert model(torch.randn(2, 5, 64, 64)).logits.shape == (2, 10)


@pytest.mark.parametrize("name", ["regnet_y_400mf", "vit_b_32", "swin_v2_t", "convnext_tiny"])
def test_networks_are_whole_on_the_meta_device(name):
    with torch.device("meta"):
        model = models.build(f"torchvision:{name}", 10)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert model(torch.empty(1, 3, 224, 224, device="meta")).pooled.shape[0] == 1


@pytest.mark.parametrize(
    ("name", "size"), [("vit_b_32", 64), ("vit_b_32", 256), ("maxvit_t", 64), ("inception_v3", 64), ("alexnet", 32)]
)
def test_image_sizes_that_do_not_fit_are_refused(name, size):
    message = rf"^torchvision:{name} cannot work with images of 3 x {size} x {size} \(.+\)\.$"
    with pytest.raises(ConfigError, match=message):
        run_on_meta(f"torchvision:{name}", size)


def test_image_sizes_are_refused_with_data_too():
    with pytest.raises(ConfigError, match=r"^torchvision:alexnet cannot work with images of 3 x 16 x 16 \("):
        seeded("torchvision:alexnet")(torch.zeros(1, 3, 16, 16))


def test_other_failures_are_not_blamed_on_the_images():
    model = seeded(SMALL)

    def fail(_, inputs):
        if not inputs[0].is_meta:
            raise RuntimeError("no memory left")

    model.head.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match=r"^no memory left$"):
        model(torch.zeros(2, 3, 64, 64))


def test_a_last_layer_that_is_not_linear_is_refused():
    with pytest.raises(ConfigError, match=r"^torchvision:squeezenet1_1 cannot be used: .* last layer is a Conv2d\.$"):
        models.build("torchvision:squeezenet1_1", 10)


def test_unknown_names_list_the_known_and_suggest_one():
    message = (
        r"must be a classifier of torchvision \(did you mean 'resnet101'\?\), one of alexnet, .*torchvision:resnet100 "
    )
    with pytest.raises(ConfigError, match=message + r"at teacher\.$"):
        models.check("torchvision:resnet100", "teacher")
    models.check("torchvision:resnet101", "teacher")


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("resnet34", "IMAGENET1K_V1", "torchvision-resnet34-imagenet1k_v1"),
        ("torchvision:resnet34", "IMAGENET1K_V1", "torchvision-resnet34-imagenet1k_v1"),
        ("torchvision:resnet50", "IMAGENET1K_V2", "torchvision-resnet50-imagenet1k_v2"),
    ],
)
def test_weights_are_named_without_a_download(monkeypatch, name, weights, expected):
    monkeypatch.setattr(DOWNLOAD, lambda *_, **__: pytest.fail("downloads"))
    assert pretrained(name, weights).id == expected
    assert pretrained(name).id.endswith("-imagenet1k_v1")


def test_the_published_accuracy_of_the_default_weights():
    # IMAGENET1K_V1 are the teachers of the papers: 73.31 and 76.13 % top-1.
    for name, accuracy in (("resnet34", 73.314), ("resnet50", 76.13)):
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        assert weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] == accuracy


@pytest.mark.parametrize("name", ["resnet18", "torchvision:resnet18"])
def test_fetched_weights_fit_strictly_and_are_torchvisions(monkeypatch, tmp_path, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source, asked = theirs("resnet18").eval(), []

    def download(url, **options):
        asked.append((url, options["check_hash"], options["weights_only"]))
        # Files of PyTorch before 0.4.1 do not count batches.
        return {key: value for key, value in source.state_dict().items() if "tracked" not in key}

    monkeypatch.setattr(DOWNLOAD, download)
    state = pretrained(name).fetch()
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", True, True)]
    model = models.build(name, 1000).eval()
    model.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x).logits, source(x))


def test_auxiliary_heads_of_files_are_dropped(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with torch.device("cpu"):
        source = theirs("googlenet", init_weights=True).state_dict()
    assert any(key.startswith("aux1.") for key in source)
    monkeypatch.setattr(DOWNLOAD, lambda *_, **__: source)
    state = pretrained("torchvision:googlenet").fetch()
    assert set(state) == {key for key in source if not key.startswith(("aux1.", "aux2."))}
    assert all(torch.equal(state[key], source[key]) for key in state)


def test_old_names_of_densenets_are_renamed(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source = theirs("densenet121").state_dict()
    # denselayer1.norm1.weight is denselayer1.norm.1.weight in the file, as torchvision's loader says.
    old = {}
    for key, value in source.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.") if "denselayer" in key else key
        old[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    monkeypatch.setattr(DOWNLOAD, lambda *_, **__: old)
    state = pretrained("torchvision:densenet121").fetch()
    assert all(torch.equal(state[key], source[key]) for key in source)


def test_weights_for_another_image_size_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with torch.device("meta"):
        source = torchvision.models.vit_b_16(weights=None, image_size=384).state_dict()
    monkeypatch.setattr(DOWNLOAD, lambda *_, **__: source)
    with pytest.raises(ConfigError, match=r"IMAGENET1K_SWAG_E2E_V1 do not fit torchvision:vit_b_16: .*pos_embedding"):
        pretrained("torchvision:vit_b_16", "IMAGENET1K_SWAG_E2E_V1").fetch()


def test_without_a_connection_the_message_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def download(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(DOWNLOAD, download)
    with pytest.raises(ConfigError, match=r"no route to host.*https://download\.pytorch\.org/.* at ") as error:
        pretrained("resnet34").fetch()
    assert str(tmp_path / "hub" / "checkpoints" / "resnet34-b627a593.pth") in str(error.value)


def test_a_file_that_is_not_the_one_named_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "resnet34-b627a593.pth"
    path.parent.mkdir(parents=True)
    torch.save(theirs("resnet18", num_classes=2).state_dict(), path)
    with pytest.raises(ConfigError, match=r"resnet34-b627a593\.pth is not the file of https://"):
        pretrained("resnet34").fetch()


def test_the_name_of_every_file_ends_with_its_hash():
    for name in names():
        for weights in torchvision.models.get_model_weights(name):
            assert weights.url.endswith(".pth")
            assert len(bytes.fromhex(weights.url[: -len(".pth")].rpartition("-")[2])) >= 4


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v1", "torchvision:resnet19"])
def test_networks_without_weights_list_those_with_weights(name):
    message = rf"^weights: torchvision has no weights for '{name}'\. It has for: resnet18, resnet34, resnet50, torch"
    with pytest.raises(ConfigError, match=message):
        pretrained(name)


@pytest.mark.parametrize(("name", "weights"), [("resnet34", "DEFAULT"), ("torchvision:vgg16", "IMAGENET1K_FEATURES")])
def test_unknown_weights_list_the_known(name, weights):
    with pytest.raises(
        ConfigError, match=rf"^unknown weights of {name} '{weights}' at weights\..* Known: IMAGENET1K_V1\.$"
    ):
        pretrained(name, weights)

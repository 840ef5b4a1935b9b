"""torchvision's classifiers as `torchvision:NAME`, with its keys, and its pretrained weights.

They show logits and pooled features but no maps. What is shown is what torchvision's own `forward` computes: the pooled
features are seen as they enter the last linear layer.
"""

import difflib
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdtrain.config import ConfigError, unknown
from kdtrain.models.family import Family
from kdtrain.models.outputs import Model, Outputs
from kdtrain.models.resnet_imagenet import CONVOLUTIONS, ImageNetResNet

AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}  # keys of heads that are left out


class Torchvision(Model):
    """A network of torchvision. `stages` and `preact` are empty, `stem` is [B, 0, H, W]."""

    multiple: ClassVar[int] = 1
    least: ClassVar[int] = 1

    def __init__(self, name: str, net: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.name = name
        # One set of weights, under torchvision's keys: both modules hold the same dictionaries.
        self._parameters, self._buffers, self._modules = net._parameters, net._buffers, net._modules
        self._net = (net, head)  # a tuple, which is not searched for modules

    def outputs(self, x: Tensor) -> Outputs:
        """`x`: [B, C, H, W], normalised. ConfigError if the network cannot work with images of this size."""
        try:
            logits, pooled = self._run(x)
        except (RuntimeError, AssertionError) as error:
            if not x.is_meta:  # is it the size of the images? Without data nothing else can fail
                tensors = [*self.named_parameters(), *self.named_buffers()]
                unfilled = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors}
                torch.func.functional_call(self, unfilled, x.to("meta"))
                raise
            reason = str(error).partition("\n")[0]
            shape = " x ".join(map(str, x.shape[1:]))
            raise ConfigError(f"{self.name} cannot work with images of {shape} ({reason}).") from None
        return Outputs(logits, pooled, x[:, :0], (), ())

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits: Tensor = self._net[0](x)
        finally:
            hook.remove()
        (pooled,) = seen
        return logits, pooled

    @property
    def head(self) -> nn.Linear:
        """The last linear layer: pooled features to logits."""
        head = self._net[1]
        assert isinstance(head, nn.Linear)
        return head

    @property
    def trunk(self) -> tuple[tuple[nn.Module, ...], ...]:
        """Nothing."""
        return ()

    @property
    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """Nothing."""
        return ()


class _WeightsOnMeta(TorchFunctionMode):
    """Puts what modules allocate for their weights on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


@contextmanager
def _on_meta() -> Iterator[None]:
    """The meta device for weights alone: RegNets compute their widths with tensors, which must have values."""
    with torch.device("cpu"), _WeightsOnMeta():
        yield


def names() -> list[str]:
    """The classifiers of the torchvision that is installed, also those that are refused for their last layer."""
    from torchvision import models  # takes more than a second, which only these networks need

    found: list[str] = models.list_models(module=models)
    return found


def build(name: str, num_classes: int, in_channels: int = 3) -> Torchvision:
    """The classifier `name` of torchvision; ConfigError if its last layer is not linear.

    GoogLeNet and Inception are built without auxiliary heads; for images of three channels they rescale those
    normalised with ImageNet's mean and standard deviation to -1 .. 1, as their pretrained weights want. For another
    number of channels the first convolution starts as torch draws it.
    """
    if torch.get_default_device().type == "meta":
        with _on_meta():
            net = _torchvision(name, num_classes, in_channels)
        net.to("meta")
    else:
        net = _torchvision(name, num_classes, in_channels)
    last = [module for module in net.modules() if next(module.parameters(recurse=False), None) is not None][-1]
    if not isinstance(last, nn.Linear):
        raise ConfigError(
            f"torchvision:{name} cannot be used: the logits must come from a linear layer on pooled features, but its "
            f"last layer is a {type(last).__name__}."
        )
    return Torchvision(f"torchvision:{name}", net, last)


def _torchvision(name: str, num_classes: int, in_channels: int) -> nn.Module:
    from torchvision import models

    extra = {}
    if name in AUXILIARY:
        extra = {"aux_logits": False, "transform_input": in_channels == 3, "init_weights": True}
    net: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **extra)
    if in_channels != 3:
        _widen_first(net, in_channels)
    return net


def _widen_first(net: nn.Module, in_channels: int) -> None:
    """Let the first convolution see `in_channels`, with fresh weights."""
    conv = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    assert (conv.in_channels, conv.groups) == (3, 1), conv
    conv.in_channels = in_channels
    conv.weight = nn.Parameter(conv.weight.new_empty(conv.out_channels, in_channels, *conv.kernel_size))
    conv.reset_parameters()


class Pretrained(NamedTuple):
    """Weights that torchvision has for one of our networks."""

    id: str
    num_classes: int
    fetch: Callable[[], dict[str, Tensor]]


def pretrained(name: str, weights: str = "IMAGENET1K_V1", key: str = "weights") -> Pretrained:
    """The weights that torchvision has for one of our networks; `key` gives them, in messages.

    `name`: `resnet18`, `resnet34`, `resnet50` or `torchvision:NAME`. The id, e.g. `torchvision-resnet34-imagenet1k_v1`,
    is known without a network connection. `fetch` returns a state dict for `models.build(name, 1000)`: from
    torch.hub's folder or else downloaded into it, the hash of the file checked. ConfigError if there are no such
    weights, or if they cannot be had.
    """
    from torchvision import models

    known = [f"resnet{depth}" for depth in CONVOLUTIONS] + [f"torchvision:{known}" for known in names()]
    if name not in known:
        raise ConfigError(f"{key}: torchvision has no weights for {name!r}. It has for: {', '.join(known)}.")
    plain = name.removeprefix("torchvision:")
    # Those without classes are of a network without a classifier.
    choices = {choice.name: choice for choice in models.get_model_weights(plain) if choice.meta["categories"]}
    if weights not in choices:
        raise ConfigError(unknown(f"weights of {name}", weights, choices, key))
    chosen = choices[weights]
    id_ = f"torchvision-{plain}-{weights.lower()}"
    return Pretrained(id_, len(chosen.meta["categories"]), lambda: _fetch(name, chosen))


def _fetch(name: str, weights: Any) -> dict[str, Tensor]:
    """The weights of a member of one of torchvision's enums, under the keys of our network."""
    plain, classes = name.removeprefix("torchvision:"), len(weights.meta["categories"])
    state = _adapted(plain, _downloaded(weights))
    with torch.device("meta"):
        net = build(plain, classes) if plain != name else ImageNetResNet(int(plain[len("resnet") :]), classes, 3)
    try:
        net.load_state_dict(state, assign=True)  # adds and renames the entries that old files lack
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ConfigError(f"torchvision's weights {weights.name} do not fit {name}: {reason[:200]}") from None
    return dict(net.state_dict())


def _adapted(plain: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the entries of auxiliary heads, and DenseNets' `norm.1` as `norm1`, as torchvision does."""
    dropped = AUXILIARY.get(plain, ())
    renamed = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
    return {renamed.sub(r"\1", key): tensor for key, tensor in state.items() if not key.startswith(dropped)}


def _downloaded(weights: Any) -> dict[str, Tensor]:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    # torch checks the hash, which is part of the name, of what it downloads, but not of a file already there.
    if path.exists() and not _sha256(path).startswith(path.stem.rpartition("-")[2]):
        raise ConfigError(f"{path} is not the file of {weights.url}: its SHA-256 does not start as its name says.")
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"torchvision's weights cannot be downloaded ({reason}): put the file of {weights.url} at {path}."
        ) from None
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _broken(match: re.Match[str]) -> str | None:
    known = names()
    if match["name"] in known:
        return None
    near = difflib.get_close_matches(match["name"], known, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"NAME of torchvision:NAME must be a classifier of torchvision{hint}, one of {', '.join(known)}"


FAMILY = Family(
    form="torchvision:NAME",
    pattern=re.compile(r"torchvision:(?P<name>.*)"),
    broken=_broken,
    build=lambda match, num_classes, in_channels: build(match["name"], num_classes, in_channels),
    examples=("torchvision:resnet101", "torchvision:efficientnet_b0"),
)

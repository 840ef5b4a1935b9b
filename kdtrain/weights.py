"""Files of weights of any origin: read without unpickling, and renamed to the keys of our own networks.

Known to be read: what kd-train writes, and the files of RepDistiller, CID, SSKD, mdistiller and PS-KD, which differ in
how they wrap the tensors (`{"model": ...}`, `{"state_dict": ...}`, `{"net": ...}`), in prefixes (`module.`,
`backbone.`, `student.`) and in the name of the last linear layer.
"""

import hashlib
import json
import pickle
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kdtrain import models
from kdtrain.config import ConfigError
from kdtrain.models.outputs import Model
from kdtrain.models.unfilled import unfilled

KEY = "kdsweep"  # of the metadata, one JSON text: safetensors writes several keys in no fixed order
TORCHVISION = "torchvision"
TEACHER = "teacher.weights"  # the key that most often gives a file
HEADS = ("fc", "linear", "classifier", "classifier.0", "classifier.1", "head")  # names of the last linear layer
TRACKED = "num_batches_tracked"  # of each BatchNorm; PyTorch has it since 0.4.1
DEPTH = 8  # of nested dictionaries that are looked into
CONVERT = (  # for files one trusts; in double quotes of a shell
    "import sys, torch; "
    "keep = lambda x: keep(x.state_dict()) if isinstance(x, torch.nn.Module) else "
    "{k: keep(v) for k, v in x.items()} if isinstance(x, dict) else x if isinstance(x, torch.Tensor) else None; "
    "torch.save(keep(torch.load(sys.argv[1], 'cpu', weights_only=False)), sys.argv[2])"
)


class Found(NamedTuple):
    """Weights that a source names."""

    id: str  # of the trial that trained them, else the SHA-256 of the file or the name that torchvision has for them
    state: Callable[[], dict[str, Tensor]]  # the model's state, see `fit`


def is_torchvision(source: str) -> bool:
    """Whether a source means torchvision's pretrained weights, and no file."""
    return source.partition(":")[0] == TORCHVISION


def find(source: str, model: Model, name: str, key: str = TEACHER) -> Found:
    """The weights of `model`, called `name`, that a source names: a path, `torchvision` or `torchvision:WEIGHTS`.

    torchvision's are downloaded only when their state is asked for. ConfigError if there are none.
    """
    if not is_torchvision(source):
        return Found(identity(source, key), lambda: fit(model, read(source, key), source, key, name))
    from kdtrain.models.torchvision import pretrained  # imports torchvision, which takes more than a second

    found = pretrained(name, source.partition(":")[2] or "IMAGENET1K_V1", key)
    if found.num_classes != model.head.out_features:
        raise ConfigError(
            f"{key} must be of {name} with {model.head.out_features} classes, but torchvision's have "
            f"{found.num_classes}."
        )
    return Found(found.id, lambda: fit(model, found.fetch(), source, key, name))


def identity(path: str, key: str = TEACHER) -> str:
    """The id of the trial that trained the weights in a file; for files of other origin its SHA-256 in hex.

    ConfigError names the key that gives the file.
    """
    return metadata(path, key).get("trial_id") or _file_sha256(path)


def metadata(path: str, key: str = TEACHER) -> dict[str, Any]:
    """What a file of ours says of its weights: trial_id, sha256, trial. Empty for files of other origin."""
    if not _is_safetensors(path, key):
        return {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found: dict[str, Any] = json.loads((file.metadata() or {}).get(KEY, "{}"))
    except (OSError, safetensors.SafetensorError) as error:
        raise _refusal(path, key, f"it is damaged: {error}") from None
    return found


def read(path: str, key: str = TEACHER) -> dict[str, Tensor]:
    """All tensors of a safetensors file or of one that torch.save wrote, on the CPU, by name.

    Tensors in nested dictionaries have dotted names, such as `model.conv1.weight`. ConfigError, which names the key
    that gives the file, if it is missing or damaged, holds no tensors or would have to be unpickled.
    """
    if _is_safetensors(path, key):
        stated = metadata(path, key).get("sha256")
        tensors = safetensors.torch.load_file(path)
        if stated not in (None, sha256(tensors)):
            raise ConfigError(f"{path} is damaged: its tensors do not have the SHA-256 that it states.")
    else:
        tensors = dict(_flat(_load(path, key)))
    if not tensors:
        raise _refusal(path, key, "it holds no tensors by name")
    return tensors


def fit(
    model: Model, state: Mapping[str, Tensor], path: str, key: str = TEACHER, name: str = "the network"
) -> dict[str, Tensor]:
    """What `read` gave, as the state of `model`: complete, under the model's names, of its shapes and types.

    The network is looked for under every prefix in the file; the outermost counts. Its last linear layer may have
    another name, `num_batches_tracked` may be missing, and what is beside the network (the heads of a method, an
    optimizer) is left out. `path`, `key` and `name` are the file, the key that gives it and the model in messages.
    ConfigError, with the first names and shapes that differ, if the file holds another network.
    """
    own = model.state_dict()
    views = _views(model, own, state)
    right = [prefix for prefix, view in views.items() if not any(_differences(view, own))]
    if not right:
        (lacking, extra), classes = _differences(next(iter(views.values())), own), model.head.out_features
        told = "; ".join([*lacking[:2], *extra[:2]])
        more = f" ({len(lacking) + len(extra)} differences in all)" if len(lacking) > 2 or len(extra) > 2 else ""
        fits = _recognised(state)
        hint = f" It fits {fits}." if fits else ""
        raise ConfigError(
            f"{key} must be of {name} with {classes} classes, but got {path!r}, where {told}{more}.{hint}"
        )
    outermost = min(prefix.count(".") for prefix in right)
    chosen, *others = (prefix for prefix in right if prefix.count(".") == outermost)
    if others:
        raise _refusal(path, key, f"it holds several networks that fit: {', '.join(sorted([chosen, *others]))}")
    return {place: views[chosen][place].to(tensor.dtype) for place, tensor in own.items()}


def sha256(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the names, shapes and bytes of tensors on the CPU."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _refusal(path: str, key: str, reason: str) -> ConfigError:
    return ConfigError(f"{key} must be a file of weights, but got {path!r} ({reason}).")


def _is_safetensors(path: str, key: str) -> bool:
    """By the first bytes: the length of the header, then the header, which is JSON."""
    try:
        with open(path, "rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise _refusal(path, key, error.strerror or str(error)) from None


def _load(path: str, key: str) -> Any:
    """What torch.save wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd pickles; whatever is wrong with a file is said below
        try:
            with open(path, "rb") as file:  # of a path, torch looks at the name
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises half a dozen types here, depending on which byte is wrong
            classes = _classes(path, error)
    if not classes:
        raise _refusal(path, key, "it is damaged, or neither safetensors nor written by torch.save")
    target = str(Path(path).with_suffix(".tensors.pth"))
    raise ConfigError(
        f"{key} must be a file of tensors, but {path!r} also holds {', '.join(classes)}, and unpickling that may run "
        f'any code. If you trust the file, convert it: python -c "{CONVERT}" {shlex.join([path, target])}'
    )


def _classes(path: str, error: Exception) -> list[str]:
    """The classes for which a file would have to be unpickled; of a file in the format before PyTorch 1.6 the first."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the older format, or damaged
        return re.findall(r"GLOBAL (\S+) was not an allowed global", str(error))


def _flat(loaded: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dictionaries with dotted names."""
    for name, value in loaded.items() if isinstance(loaded, dict) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach()
        elif prefix.count(".") < DEPTH:
            yield from _flat(value, f"{prefix}{name}.")


def _views(model: Model, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What the file has under each prefix that may be that of the network, the likeliest first."""
    found = Counter(prefix for given in state for prefix in _prefixes(given) if given.removeprefix(prefix) in own)
    likely = [prefix for prefix, n in found.most_common() if 2 * n >= found.most_common(1)[0][1]] or [""]
    head = next(name for name, module in model.named_modules() if module is model.head)
    return {prefix: _renamed(state, prefix, own, head) for prefix in likely}


def _prefixes(name: str) -> Iterator[str]:
    """Of `a.b.c`: nothing, `a.` and `a.b.`."""
    yield ""
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()]


def _renamed(state: Mapping[str, Tensor], prefix: str, own: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """The tensors under a prefix, the last linear layer under the model's name, all counters there."""
    view = {given.removeprefix(prefix): tensor for given, tensor in state.items() if given.startswith(prefix)}
    if f"{head}.weight" not in view:
        others = (name for name in HEADS if f"{name}.weight" in view and f"{name}.weight" not in own)
        other = next(others, head)
        for part in ("weight", "bias"):
            if f"{other}.{part}" in view:
                view[f"{head}.{part}"] = view.pop(f"{other}.{part}")
    return {name: torch.tensor(0) for name in own if name.endswith(TRACKED)} | view


def _differences(view: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """What a network lacks or has in another shape or kind, and what belongs to another network, as texts.

    What the model has no part of that name for (but for a number: `layer4`, `layer`) is no network's.
    """
    lacking = []
    for name, tensor in own.items():
        if name not in view:
            lacking.append(f"{name} is missing")
        elif view[name].shape != tensor.shape:
            lacking.append(f"{name} is {list(view[name].shape)} and not {list(tensor.shape)}")
        elif view[name].is_floating_point() != tensor.is_floating_point():
            lacking.append(f"{name} is {view[name].dtype} and not {tensor.dtype}")
    parts = {_part(name) for name in own}
    return lacking, [f"{name} has no place" for name in view if name not in own and _part(name) in parts]


def _part(name: str) -> str:
    return name.partition(".")[0].rstrip("0123456789")


def _recognised(state: Mapping[str, Tensor]) -> str | None:
    """The architecture and the classes of a file, if it is one that papers use."""
    planes = [tensor.shape[1] for tensor in state.values() if tensor.ndim == 4]
    heads = tuple(f"{name}.weight" for name in HEADS)
    rows = [len(tensor) for name, tensor in state.items() if tensor.ndim == 2 and name.endswith(heads)]
    if not planes or not rows:
        return None
    for name in (example for family in models.MODELS.values() for example in family.examples):
        try:
            model = unfilled(name, rows[-1], planes[0])
        except ConfigError:  # a network that cannot have so many channels or classes
            continue
        own = model.state_dict()
        if any(not any(_differences(view, own)) for view in _views(model, own, state).values()):
            return f"{name} with {rows[-1]} classes"
    return None


def _file_sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""A distilled student as files for other programs: weights with a card, a torch.export program, ONNX.

What is exported is the whole predictor, from pixels to the logits by which the trial was evaluated.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kdtrain import checkpoint, data, methods, weights
from kdtrain.build import networks
from kdtrain.config import ConfigError, TrialConfig, unknown
from kdtrain.methods.composed import Composed
from kdtrain.models.cost import cost

FORMATS = {"safetensors": "model.safetensors", "pt2": "model.pt2", "onnx": "model.onnx"}
CARD = "card.json"
KEY = "STUDENT"  # what gives the file of weights, in messages
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of the largest logit or 1: how far a program's logits may be from the module's


class ExportError(RuntimeError):
    """An exported program computes something else than the student."""


class Predictor(nn.Module):
    """Pixels to the logits by which a trial's student is evaluated; in eval mode, without gradients, on the CPU.

    Normalisation, student, and of the method the tensors that it predicts with: for CID the context classifier and
    the centres. The weights are fresh; `load` fills them.
    """

    def __init__(self, trial: TrialConfig) -> None:
        super().__init__()
        self.trial, self.info = trial, data.info_of(trial.data)
        with torch.random.fork_rng(devices=[]):
            # The method is built with teachers of random weights: it predicts without them.
            setting, method = networks(trial, torch.device("cpu"), lambda model, ref: None)
        self.student = setting.student
        self.method = method.host if isinstance(method, Composed) else method
        _keep(self.method, set(self.method.predictor()))
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(self.info.mean).view(-1, 1, 1))
        self.std: Tensor
        self.register_buffer("std", torch.tensor(self.info.std).view(-1, 1, 1))
        self.shape = (self.info.in_channels, self.info.image_size, self.info.image_size)
        self.requires_grad_(False).eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """`pixels`: float32 [B, C, H, W] in 0..1; returns logits [B, K]."""
        return self.method.predict(self.student((pixels - self.mean) / self.std))


@dataclass(frozen=True, kw_only=True)
class Card:
    """What card.json says of the files beside it."""

    student: str
    dataset: str
    num_classes: int
    input_shape: tuple[int, int, int]  # channels, rows, columns
    input_range: tuple[float, float]  # of the pixels; mean and std are applied inside
    mean: tuple[float, ...]
    std: tuple[float, ...]
    method: str
    params: dict[str, Any]  # of the method
    teacher: str | None
    seed: int
    fraction: float  # of the training images
    trial_id: str
    parameters: int  # of the student, and of the method's own classifier if it predicts with one
    multiply_adds: int  # multiply-adds of the student for one image
    test_top1: float | None  # percent; None if the trial's result.json is not beside the weights
    tolerance: float  # see TOLERANCE
    versions: dict[str, str]
    sha256: dict[str, str]  # of each file


def load(path: Path) -> Predictor:
    """The predictor in the file of a student's weights, as kd-train writes it; ConfigError if it holds none."""
    trial = _trial(path)
    tensors = weights.read(str(path), KEY)
    predictor = Predictor(trial)
    predictor.student.load_state_dict(weights.fit(predictor.student, tensors, str(path), KEY, trial.student))
    prefix = checkpoint.METHOD
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    try:
        predictor.method.load_state_dict(own)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ConfigError(f"{path} does not fit the method {trial.method.name!r}: {reason}") from None
    return predictor


def export(path: Path, out: Path, formats: tuple[str, ...] = tuple(FORMATS)) -> Card:
    """Write the predictor in a file of weights into the folder `out`, in each of `formats`, with its card.

    The programs take any number of images (`pixels`, float32 [B, C, H, W] in 0..1) and return `logits` [B, K]. Each
    was compared with the module on black, white and random images, one and several. Nothing is written if a check
    fails (ExportError), nor if a rule is broken (ConfigError).
    """
    _check(out, formats)
    predictor = load(path)
    files = _files(predictor, formats)
    card = _card(path, predictor, files)
    for name in set(FORMATS.values()) - files.keys():  # of an earlier export, which the new card does not speak of
        (out / name).unlink(missing_ok=True)
    for name, content in files.items():
        checkpoint.write_file(content, out / name)
    checkpoint.write_file(json.dumps(asdict(card), indent=2).encode(), out / CARD)
    return card


def _keep(module: nn.Module, names: set[str], prefix: str = "") -> None:
    """Of the parameters and buffers keep those named, and of the submodules those that hold one."""
    for name, child in list(module.named_children()):
        if any(kept.startswith(f"{prefix}{name}.") for kept in names):
            _keep(child, names, f"{prefix}{name}.")
        else:
            setattr(module, name, None)
    for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if prefix + name not in names:
            setattr(module, name, None)


def _trial(path: Path) -> TrialConfig:
    trial = checkpoint.read_trial(str(path), KEY)
    if trial is None:
        raise ConfigError(
            f"{path} does not say which trial trained it, so its method cannot be rebuilt: it must be a file that "
            "kd-train run, or a sweep with run.keep_weights, has left."
        )
    if trial.probe is not None:
        raise ConfigError(f"{path} is of a linear probe: export the student {trial.probe.source} itself.")
    return trial


def _check(out: Path, formats: tuple[str, ...]) -> None:
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(unknown("format", name, FORMATS, "formats"))
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if "onnx" in formats and missing:
        raise ConfigError(f"the format onnx needs {' and '.join(missing)}: pip install 'kdsweep[export]'.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"the exported files need a folder, but got the file {out}.")
    if (out / FORMATS["safetensors"]).exists() and not (out / CARD).exists():
        raise ConfigError(f"{out} holds weights that are not exported ones: choose another folder.")


def _files(predictor: Predictor, formats: tuple[str, ...]) -> dict[str, bytes]:
    """The content of each file by its name, checked; ExportError if one is wrong."""
    files = {}
    if "safetensors" in formats:
        files[FORMATS["safetensors"]] = safetensors.torch.save(predictor.state_dict())
    if {"pt2", "onnx"} & set(formats):
        example = torch.rand(2, *predictor.shape)  # of one image the batch would be taken for a constant
        program = torch.export.export(predictor, (example,), dynamic_shapes={"pixels": {0: Dim("batch")}})
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it has the paths of this machine
        if "pt2" in formats:
            files[FORMATS["pt2"]] = _pt2(program, predictor)
        if "onnx" in formats:
            files[FORMATS["onnx"]] = _onnx(program, predictor)
    return files


def _pt2(program: ExportedProgram, predictor: Predictor) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    content = buffer.getvalue()
    _compare("pt2", torch.export.load(io.BytesIO(content)).module(), predictor)
    return content


def _onnx(program: ExportedProgram, predictor: Predictor) -> bytes:
    import onnxruntime

    model = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=["pixels"], output_names=["logits"],
        dynamic_shapes={"pixels": {0: "batch"}},  # else the axis has a made-up name
    )  # fmt: skip
    assert model is not None, "the exporter returns a program if it gets no file"
    proto = model.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # the lines of our code, with the paths of this machine
    content: bytes = proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])

    _compare("onnx", run, predictor)
    return content


def _compare(name: str, run: Callable[[Tensor], Tensor], predictor: Predictor) -> None:
    """ExportError unless `run` gives the predictor's logits and classes."""
    for pixels in _images(predictor.shape):
        wanted, found = predictor(pixels), run(pixels)
        gap = ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()
        if not gap <= TOLERANCE or not torch.equal(found.argmax(1), wanted.argmax(1)):
            raise ExportError(
                f"the {name} program must give the student's classes, and its logits to within {TOLERANCE} of the "
                f"largest, but for a batch of {len(pixels)} they differ by {gap:.2g}."
            )


def _images(shape: tuple[int, int, int]) -> Iterator[Tensor]:
    """Batches to compare programs on: random, black, then white, random and black-or-white pixels."""
    generator = torch.Generator().manual_seed(0)
    yield torch.rand(1, *shape, generator=generator)
    yield torch.zeros(1, *shape)
    noise = torch.rand(2, *shape, generator=generator)
    yield torch.stack([torch.ones(shape), noise[0], noise[1].round()])


def _card(path: Path, predictor: Predictor, files: dict[str, bytes]) -> Card:
    trial, info = predictor.trial, predictor.info
    trial_id = weights.identity(str(path), KEY)
    packages = ["kdsweep", "torch", "safetensors", *(ONNX_PACKAGES if FORMATS["onnx"] in files else ())]
    return Card(
        student=trial.student, dataset=data.title(trial.data.dataset), num_classes=info.num_classes,
        input_shape=predictor.shape, input_range=(0.0, 1.0), mean=info.mean, std=info.std,
        method=trial.method.name, params=methods.params(trial.method),
        teacher=trial.teacher.model if trial.teacher else None, seed=trial.seed, fraction=trial.data.fraction,
        trial_id=trial_id, parameters=sum(p.numel() for p in predictor.parameters()),
        multiply_adds=cost(trial.student, info.num_classes, info.image_size, info.in_channels).multiply_adds,
        test_top1=_test_top1(path.with_name("result.json"), trial_id), tolerance=TOLERANCE,
        versions={name: version(name) for name in packages},
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    )  # fmt: skip


def _test_top1(path: Path, trial_id: str) -> float | None:
    """The accuracy in a result.json of kd-train; None if there is none of this trial."""
    try:
        result = json.loads(path.read_text())
        return float(result["test_top1"]) if result["trial_id"] == trial_id else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

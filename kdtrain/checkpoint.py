"""Weights and training state as bytes and files. Nothing is unpickled: safetensors, and torch with weights_only."""

import io
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from kdtrain import weights
from kdtrain.config import ConfigError, TrialConfig, canonical, parse
from kdtrain.models.outputs import Model

METHOD = "method."  # prefix of the method's own tensors in a file of weights


def pack_state(state: Mapping[str, Any]) -> bytes:
    """Training state (tensors and plain data) as bytes."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def unpack_state(data: bytes, device: torch.device) -> dict[str, Any] | None:
    """The state that `pack_state` packed; None if the bytes are damaged, as by a crash of the machine."""
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except Exception:  # torch raises half a dozen types here, depending on which byte is wrong
        return None
    return state


def pack_weights(
    student: Mapping[str, Tensor], method: Mapping[str, Tensor], trial_id: str, trial: TrialConfig | None = None
) -> bytes:
    """A trained student, with its method's tensors, its trial and the id of it, as a safetensors file."""
    tensors = {**student, **{METHOD + name: tensor for name, tensor in method.items()}}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about: dict[str, Any] = {"trial_id": trial_id, "sha256": weights.sha256(plain)}
    if trial is not None:
        about["trial"] = trial.model_dump(mode="json", exclude_none=True)
    return safetensors.torch.save(plain, metadata={weights.KEY: canonical(about)})


def read_trial(path: str, key: str = "weights") -> TrialConfig | None:
    """The trial that trained the weights in a file; None if the file does not say it."""
    about = weights.metadata(path, key)
    return parse(TrialConfig, about["trial"], path) if "trial" in about else None


def load_teacher(model: Model, source: str, expected_id: str, name: str = "the teacher") -> None:
    """Fill a teacher from a source of weights, see `weights.find`; ConfigError if it is another's or does not fit.

    `name` is the model's.
    """
    found = weights.find(source, model, name)
    if found.id != expected_id:
        raise ConfigError(f"the teacher {expected_id} was asked for, but {source} holds {found.id}.")
    model.load_state_dict(found.state())


def write_file(data: bytes, path: Path) -> None:
    """Write a local file so that readers see all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())  # else a crash of the machine may leave the new name with no content
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""Weights and training state as bytes and files. Nothing is unpickled: safetensors, and torch with weights_only."""

import hashlib
import io
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kdtrain.config import ConfigError
from kdtrain.models.outputs import Model

METHOD = "method."  # prefix of the method's own tensors in a file of weights


def pack_state(state: Mapping[str, Any]) -> bytes:
    """Training state (tensors and plain data) as bytes."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def unpack_state(data: bytes, device: torch.device) -> dict[str, Any]:
    """The state that `pack_state` packed."""
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    return state


def pack_weights(student: Mapping[str, Tensor], method: Mapping[str, Tensor], trial_id: str) -> bytes:
    """A trained student, with its method's tensors and the id of its trial, as a safetensors file."""
    tensors = {**student, **{METHOD + name: tensor for name, tensor in method.items()}}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(plain, metadata={"trial_id": trial_id})


def identity(path: str) -> str:
    """The id of the trial that trained the weights in a file; for files of other origin its SHA-256."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            trial_id = (file.metadata() or {}).get("trial_id")
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"teacher.weights must be a safetensors file, but got {path!r} ({error}).") from None
    return trial_id or hashlib.sha256(Path(path).read_bytes()).hexdigest()


def load_teacher(model: Model, path: str, expected_id: str) -> None:
    """Fill a teacher from a file; ConfigError if the file is another teacher's or does not fit."""
    if (found := identity(path)) != expected_id:
        raise ConfigError(f"the teacher {expected_id} was asked for, but {path} holds {found}.")
    tensors = safetensors.torch.load_file(path, device=str(next(model.parameters()).device))
    try:
        model.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith(METHOD)})
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]]
        raise ConfigError(f"{path} does not fit the teacher: {reasons[0][:200]} ...") from None


def write_file(data: bytes, path: Path) -> None:
    """Write a local file so that readers see all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

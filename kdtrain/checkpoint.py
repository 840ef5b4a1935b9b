"""Weights and training state as bytes and files. Nothing is unpickled: safetensors, and torch with weights_only."""

import hashlib
import io
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kdtrain.config import ConfigError, canonical
from kdtrain.models.outputs import Model

METHOD = "method."  # prefix of the method's own tensors in a file of weights
KEY = "kdsweep"  # of the metadata, one JSON text: safetensors writes several keys in no fixed order


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


def pack_weights(student: Mapping[str, Tensor], method: Mapping[str, Tensor], trial_id: str) -> bytes:
    """A trained student, with its method's tensors and the id of its trial, as a safetensors file."""
    tensors = {**student, **{METHOD + name: tensor for name, tensor in method.items()}}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(plain, metadata={KEY: canonical({"trial_id": trial_id, "sha256": _sha256(plain)})})


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the names, shapes and bytes of tensors on the CPU."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def identity(path: str, key: str = "teacher.weights") -> str:
    """The id of the trial that trained the weights in a file; for files of other origin its SHA-256.

    ConfigError names the key that gives the file.
    """
    return _metadata(path, key).get("trial_id") or hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _metadata(path: str, key: str = "teacher.weights") -> dict[str, str]:
    """What `pack_weights` says of a file's weights; empty for files of other origin."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found: dict[str, str] = json.loads((file.metadata() or {}).get(KEY, "{}"))
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{key} must be a safetensors file, but got {path!r} ({error}).") from None
    return found


def load_teacher(model: Model, path: str, expected_id: str) -> None:
    """Fill a teacher from a file; ConfigError if the file is another teacher's or does not fit."""
    if (found := identity(path)) != expected_id:
        raise ConfigError(f"the teacher {expected_id} was asked for, but {path} holds {found}.")
    tensors = safetensors.torch.load_file(path)
    if _metadata(path).get("sha256", sha256 := _sha256(tensors)) != sha256:
        raise ConfigError(f"{path} is damaged: its tensors do not have the SHA-256 that it states.")
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
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())  # else a crash of the machine may leave the new name with no content
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

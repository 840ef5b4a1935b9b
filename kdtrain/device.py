"""Where a trial computes."""

import torch

from kdtrain.config import ConfigError, Where


def device_name(device: torch.device) -> str:
    """What rows call a device: `cpu`, or the name of the GPU."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def device_of(where: Where) -> torch.device:
    """The device that `where` names; ConfigError if this machine has none of that name."""
    if where.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(where.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device must be one of this machine, but got {where.device!r} ({reason}).") from None
    return device

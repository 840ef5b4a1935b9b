"""Where a trial computes, and how its process is set up for that."""

import ctypes
from contextlib import suppress
from functools import cache

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


def set_up(where: Where) -> torch.device:
    """As `device_of`, once this process has the threads and the memory that `where` gives it."""
    device = device_of(where)
    torch.set_num_threads(where.cpus)
    keep_freed_memory()
    if device.type == "cuda" and where.gpu_share is not None:  # else one of several trials could take it all
        torch.cuda.set_per_process_memory_fraction(where.gpu_share, device)
    return device


@cache
def keep_freed_memory() -> None:
    """Let this process keep the memory that a step frees for the next step.

    glibc gives large blocks back to the system at once, which hands them out again page by page, zeroed. Does nothing
    where the C library is another.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)

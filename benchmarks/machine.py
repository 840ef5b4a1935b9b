"""On what and when something was measured."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from sweeps.rows import git_commit


def facts() -> str:
    """The machine and the versions, in two lines."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("kdsweep", "torch", "ray"))
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else "no GPU, "
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    commit = git_commit()
    changes = " with local changes" if commit.endswith("+") else ""
    return (
        f"{_cpu()}, {os.cpu_count()} cores, {gpu}Python {platform.python_version()}, {packages}, "
        f"{torch.get_num_threads()} threads\n"
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit[:12] or 'unknown'}{changes}, "
        f"load average before: {load}"
    )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

"""What a run was started on and with: kept in its directory, shown by `qttdm report`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import torch

VERSIONS = ("qttdm", "torch", "numpy", "gymnasium", "mujoco")


def machine() -> dict[str, str]:
    """Describe this machine and the versions of what counts here, by name."""
    about = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", about.read_text() if about.exists() else "")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return {
        "system": platform.platform(),
        "CPU": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores",
        "GPU": gpu,
        "Python": platform.python_version(),
        **{name: found[name] for name in VERSIONS if name in found},
    }

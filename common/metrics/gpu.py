"""Report how a process uses its GPU."""

from __future__ import annotations

import torch

from qttdm.common.metrics.instruments import gauge
from qttdm.common.metrics.telemetry import Telemetry

MEMORY = gauge(
    "qttdm_gpu_memory_bytes",
    ("learner", "planner"),
    "bytes",
    "on the device; allocated: by this process",
    "use",
    ("allocated", "total"),
)
BUSY = gauge(
    "qttdm_gpu_utilisation_ratio",
    ("learner", "planner"),
    "fraction",
    "share of time in which the device computed, for whatever process",
)


def report_gpu(telemetry: Telemetry, device: torch.device) -> None:
    """Report memory and use of the device, if it is a GPU; never waits for it."""
    if device.type != "cuda":
        return
    telemetry.set(MEMORY, torch.cuda.memory_allocated(device), use="allocated")
    telemetry.set(MEMORY, torch.cuda.mem_get_info(device)[1], use="total")
    telemetry.set(BUSY, torch.cuda.utilization(device) / 100)

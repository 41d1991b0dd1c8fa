"""What is told of a process's GPU to Prometheus."""

from __future__ import annotations

import torch

from qttdm.common.metrics.telemetry import Telemetry


def watch_gpu(telemetry: Telemetry, device: torch.device) -> None:
    """Look at it, if the device is one; never waits for it. Memory is this process's, the rest the whole GPU's."""
    if device.type != "cuda":
        return
    telemetry.set("qttdm_gpu_memory_bytes", torch.cuda.memory_allocated(device), use="allocated")
    telemetry.set("qttdm_gpu_memory_bytes", torch.cuda.memory_reserved(device), use="reserved")
    telemetry.set("qttdm_gpu_memory_bytes", torch.cuda.mem_get_info(device)[1], use="total")
    telemetry.set("qttdm_gpu_utilisation_ratio", torch.cuda.utilization(device) / 100)

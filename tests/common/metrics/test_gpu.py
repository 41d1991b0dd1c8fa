"""Without a GPU nothing is told of one; with one: tests/gpu."""

import torch

from qttdm.common.metrics.gpu import report_gpu
from qttdm.common.metrics.telemetry import Telemetry


def test_a_cpu_is_no_gpu():
    telemetry = Telemetry.silent("learner")
    report_gpu(telemetry, torch.device("cpu"))
    assert not [key for key in telemetry.snapshot() if "gpu" in key[0]]

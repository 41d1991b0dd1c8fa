"""Time actions: alone, in turns with another, and beside this machine's own rate of matrix products."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Give torch that many CPU threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def product_rate(device: torch.device, dtype: torch.dtype, threads: int, repeats: int = 10) -> float:
    """Measure floating-point operations per second of a large matrix product, best of several."""
    size = 8192 if device.type != "cpu" else 1536 if dtype == torch.float32 else 512
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    with cpu_threads(threads):
        return 2 * size**3 / min(timings(lambda: a @ b, device, repeats))


def timings(action: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Measure seconds of each of `repeats` calls, after one that is not counted."""
    action()
    seconds = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


def rate(action: Callable[[], object], times: int) -> float:
    """Measure calls per second."""
    started = time.perf_counter()
    for _ in range(times):
        action()
    return times / (time.perf_counter() - started)


@dataclass(frozen=True)
class Compared:
    """Medians over rounds of two measurements, and of their ratio."""

    ours: float
    other: float
    ratio: float


def in_turns(ours: Callable[[], float], other: Callable[[], float], rounds: int) -> Compared:
    """Measure both in each round, so that whatever else the machine does meets both; the first round is not counted."""
    measured = np.array([[ours(), other()] for _ in range(rounds + 1)][1:])  # [rounds, 2]
    medians = np.median(measured, axis=0)
    return Compared(medians[0], medians[1], float(np.median(measured[:, 0] / measured[:, 1])))

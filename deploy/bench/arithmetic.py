"""How fast this machine multiplies matrices: what a learner's own speed is measured against."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """torch on that many CPU threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def product_rate(device: torch.device, dtype: torch.dtype, threads: int, repeats: int = 10) -> float:
    """Floating-point operations per second of a large matrix product, best of several.

    Leaves torch's global generators alone: a run may be measured before it draws from them.
    """
    size = 8192 if device.type != "cpu" else 1536 if dtype == torch.float32 else 512
    own = torch.Generator(device)
    a, b = (torch.randn(size, size, device=device, dtype=dtype, generator=own) for _ in range(2))
    with cpu_threads(threads):
        return 2 * size**3 / min(timings(lambda: a @ b, device, repeats))


def timings(action: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after one that is not counted."""
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

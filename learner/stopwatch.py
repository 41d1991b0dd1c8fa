"""Time work on the device that does it, without ever waiting for that device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Report the seconds of each lap; GPU laps once their CUDA events have completed."""

    def __init__(
        self, device: torch.device, report: Callable[[float], object], stream: torch.cuda.Stream | None = None
    ) -> None:
        """stream: where the work is queued, if not on the device's current one."""
        self.device, self.report, self.stream = device, report, stream
        self._queued: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Time what is done, or queued on a GPU, inside."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            yield
            self.report(time.perf_counter() - started)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(self.stream)
        yield
        end.record(self.stream)
        self._queued.append((begin, end))
        while self._queued and self._queued[0][1].query():
            begin, end = self._queued.popleft()
            self.report(1e-3 * begin.elapsed_time(end))

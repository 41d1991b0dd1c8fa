"""Ctrl-C and SIGTERM ask a run to stop, and to save first."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ONE_REQUEST = 10.0
"""seconds in which all signals are one request, while what it asks for is done: GNU timeout, for one, sends two"""


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Yield a function that knows of the first Ctrl-C (or SIGTERM). One that comes ONE_REQUEST after it interrupts.

    In another thread than the main one, which gets no signals, nothing is ever asked.
    """
    asked: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if not asked:
            asked.append(time.monotonic())
            print(f"stopping: saving a checkpoint (once more after {ONE_REQUEST:g} s to give up)", file=sys.stderr)
        elif time.monotonic() - asked[0] > ONE_REQUEST:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

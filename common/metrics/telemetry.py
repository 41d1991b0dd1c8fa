"""Collect the metrics of one process under their declared names, and take snapshots of all of them.

    telemetry = Telemetry(Identity("run", "0", "dmc/walker-walk", "actor", "3"))
    telemetry.inc("qttdm_acted_total", 2)
    telemetry.observe("qttdm_decision_seconds", 0.04, stage="plan")
    telemetry.snapshot()                                                 # absolute values, plain data

A call costs about a microsecond and never waits: sending is Reporter's. A name, component or label that is not declared
(instruments.py) raises at once. Counters and histograms are reported from the start, as zeros, so that a first event
shows as a step; a gauge is reported once it was set.
"""

from __future__ import annotations

import operator
import threading
import time
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import msgpack

from qttdm.common.metrics.instruments import INSTRUMENTS, Component, Instrument, Kind

Value = float | tuple[float, ...]
"""of a histogram: the sum, then how many fell into each bucket (not cumulated), the one without bound last"""
Series = tuple[str, str]
"""metric, and value of its own label ("" if it has none)"""
Snapshot = dict[Series, Value]


@dataclass(frozen=True)
class Identity:
    """The common labels of a process: the same for every process that takes its place."""

    run: str
    seed: str
    task: str
    component: Component
    index: str = "0"


@dataclass(frozen=True)
class Report:
    """All that a process has measured since its start. Absolute: one that is lost or comes twice does no harm."""

    identity: Identity
    process_id: str
    """different for each process that has had this identity"""
    restarted: bool
    """the process took the place of one that died"""
    number: int
    """counted from 1 in each process"""
    snapshot: Snapshot

    def packed(self) -> bytes:
        """Encode it for another process, whose program may be another version."""
        fields = astuple(self.identity), self.process_id, self.restarted, self.number, self.snapshot
        packed: bytes = msgpack.packb(fields)
        return packed

    @staticmethod
    def unpacked(data: bytes) -> Report:
        """Undo `packed`. ValueError if it is something else."""
        try:
            identity, *fields = msgpack.unpackb(data, use_list=False, strict_map_key=False)
            return Report(Identity(*identity), *fields)
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a report: {error}") from None


class Telemetry:
    """The metrics of one process. Any thread may use it."""

    def __init__(self, identity: Identity, restarted: bool = False) -> None:
        """restarted: this process took the place of one that died."""
        self.identity, self.restarted = identity, restarted
        self.process_id = uuid.uuid4().hex[:16]
        self.reporter: Any = None
        """the Reporter that sends it, if any"""
        self._values: dict[Series, Any] = {}
        self._checked: dict[tuple[Any, ...], Series] = {}  # calls seen before
        self._before_report: list[Callable[[], object]] = []
        self._reported = 0
        self._lock = threading.Lock()

    @staticmethod
    def silent(component: Component, index: int = 0) -> Telemetry:
        """Make telemetry that nobody reports."""
        return Telemetry(Identity("", "", "", component, str(index)))

    def flush(self) -> None:
        """Send a last report, if there is a reporter, and wait for it, but not long: before a process ends."""
        if self.reporter is not None:
            self.reporter.flush()

    def inc(self, name: str, amount: float = 1.0, /, **label: str) -> None:
        """Raise a counter by that much."""
        series = self._series("counter", name, label)
        with self._lock:
            self._values[series] += amount

    def count_to(self, name: str, total: float, /, **label: str) -> None:
        """Raise a counter to a total kept elsewhere; less than before changes nothing."""
        series = self._series("counter", name, label)
        with self._lock:
            self._values[series] = max(self._values[series], total)

    def set(self, name: str, value: float, /, **label: str) -> None:
        """Set a gauge."""
        series = self._series("gauge", name, label)
        with self._lock:
            self._values[series] = float(value)

    def observe(self, name: str, value: float, /, **label: str) -> None:
        """Add a value to a histogram; a bucket's upper bound belongs to it."""
        series = self._series("histogram", name, label)
        bucket = bisect_left(INSTRUMENTS[name].buckets, value)
        with self._lock:
            histogram = self._values[series]
            histogram[0] += value
            histogram[1 + bucket] += 1

    @contextmanager
    def timed(self, name: str, /, **label: str) -> Iterator[None]:
        """Add the seconds of what is done inside to a histogram, unless it raises."""
        started = time.perf_counter()
        yield
        self.observe(name, time.perf_counter() - started, **label)

    def before_report(self, update: Callable[[], object]) -> None:
        """Call `update` before each report, in the thread that reports: for values that are looked up, not pushed."""
        self._before_report.append(update)

    def report(self, failed: Callable[[Exception], object]) -> Report:
        """Make the next report. failed: called with an update's error; the other values are reported all the same."""
        for update in self._before_report:
            try:
                update()
            except Exception as error:  # whatever it is: to measure must not end the component
                failed(error)
        self._reported += 1
        return Report(self.identity, self.process_id, self.restarted, self._reported, self.snapshot())

    def snapshot(self) -> Snapshot:
        """Copy all values as of now."""
        with self._lock:
            for instrument in list(INSTRUMENTS.values()):
                if instrument.kind != "gauge" and self._may_report(instrument):
                    for label in instrument.values if instrument.label else ("",):
                        self._values.setdefault((instrument.name, label), instrument.zero())
            return {series: tuple(v) if isinstance(v, list) else v for series, v in self._values.items()}

    def _may_report(self, instrument: Instrument) -> bool:
        return self.identity.component in instrument.components and not instrument.observed

    def _series(self, kind: Kind, name: str, label: dict[str, str]) -> Series:
        """Find the series of a call; counters and histograms begin at zero. ValueError as `_check`."""
        key = (kind, name, *label.items())
        series = self._checked.get(key)
        if series is None:
            instrument, series = self._check(kind, name, label)
            if kind != "gauge":
                with self._lock:
                    self._values.setdefault(series, instrument.zero())
            self._checked[key] = series
        return series

    def _check(self, kind: Kind, name: str, label: dict[str, str]) -> tuple[Instrument, Series]:
        """Check a call. ValueError unless this component has that metric, of that kind, with that label."""
        instrument = INSTRUMENTS.get(name)
        if instrument is None:
            raise ValueError(f"{name}: not declared; see common/metrics/instruments.py")
        if instrument.kind != kind or not self._may_report(instrument):
            got = f"a {instrument.kind} of {', '.join(instrument.components)}"
            raise ValueError(f"{name}: is {got}; not a {kind} that {self.identity.component} may report")
        if list(label) != ([instrument.label] if instrument.label else []):
            raise ValueError(f"{name}: got labels {list(label)}, want {[instrument.label] if instrument.label else []}")
        value = next(iter(label.values()), "")
        if not instrument.takes(value):
            raise ValueError(f"{name}: got {instrument.label}={value!r}, want one of {', '.join(instrument.values)}")
        if instrument.most and sum(series[0] == name for series in self._checked.values()) >= instrument.most:
            raise ValueError(f"{name}: {instrument.label}={value!r} would be one more than {instrument.most} series")
        return instrument, (name, value)


MakeTelemetry = Callable[[Component, int], Telemetry]
"""Makes a component's telemetry from its kind and index, in its own process."""


class TimeSpent:
    """Count where a thread's seconds go, one activity at a time: the values of a counter's label."""

    def __init__(
        self,
        telemetry: Telemetry,
        name: str,
        rest: str | None = None,
        histograms: Mapping[str, tuple[str, dict[str, str]]] = {},
    ) -> None:
        """rest: the activity between others. histograms: by activity, the name and label that each time goes to."""
        instrument = INSTRUMENTS[name]
        assert instrument.label is not None, name
        self.telemetry, self.name, self.histograms = telemetry, name, histograms
        self.seconds = dict.fromkeys(instrument.values, 0.0)
        self._label = instrument.label
        self._activity, self._since = rest, time.perf_counter()

    @contextmanager
    def on(self, activity: str) -> Iterator[None]:
        """Count the time inside as that activity, and afterwards as the one before."""
        before = self._activity
        self._switch(activity)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, activity: str | None) -> None:
        now = time.perf_counter()
        done, seconds = self._activity, now - self._since
        self._activity, self._since = activity, now
        if done is None:
            return
        self.seconds[done] += seconds
        self.telemetry.inc(self.name, seconds, **{self._label: done})
        if done in self.histograms:
            name, label = self.histograms[done]
            self.telemetry.observe(name, seconds, **label)


def combine(first: Value, second: Value, durable: bool) -> Value:
    """Combine what two processes have counted one after the other: the sum, or of durable metrics the larger."""
    how: Callable[[float, float], float] = max if durable else operator.add
    if isinstance(first, tuple):
        assert isinstance(second, tuple), second
        return tuple(map(how, first, second))
    assert not isinstance(second, tuple), second
    return how(first, second)

"""Serve the metrics of every process at one address, across restarts of processes. Plain: without Ray.

    processes --Report, absolute--> Exporter.report --> the newest of each process, added up by identity
    driver ---------the run's end-> Exporter.end
    Prometheus --GET /metrics-----> collect: first to disk, then out

A process that is replaced begins at zero; what its predecessors had counted is kept and added, so that counters and
histograms go on. A repeated or overtaken report changes nothing.

Choice: the exporter, not the components, keeps the counts of earlier processes on disk. Why: a killed process has had
no time to write, one file is simpler than one for each process, and whatever a scrape has shown was written before, so
that not even a kill of the exporter itself makes a counter fall. What would change it: several exporters.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import msgpack
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

import qttdm.deploy.monitoring.declared  # noqa: F401 - reports name metrics of every part
from qttdm.common.config import ConfigError
from qttdm.common.metrics.instruments import INSTRUMENTS, PROCESSES, Instrument, counter, gauge
from qttdm.common.metrics.telemetry import Identity, Report, Snapshot, Value, combine

RESTARTS = counter(
    "qttdm_process_restarts_total", PROCESSES, "restarts", "new processes in place of ones that died", observed=True
)
UP = gauge(
    "qttdm_process_up",
    PROCESSES,
    "1",
    "1: it reports; 0: it has been silent for too long; absent: its run ended in good order",
    observed=True,
)
SILENCE = gauge(
    "qttdm_process_heartbeat_age_seconds",
    PROCESSES,
    "s",
    "since its last report; absent after the run's end",
    observed=True,
)

VERSION = 3
"""Format of the state on disk."""
STALE = 30.0  # seconds of silence after which a process is taken for dead
SAVE_EVERY = 2.0  # seconds, if nobody looks
KEEP_ENDED = 3600.0  # seconds for which metrics of processes that ended in good order are served
KEEP_SILENT = 86400.0  # seconds, of others
CONNECTIONS = 16  # answered at once; one more is hung up on
ANSWER_SECONDS = 10.0  # for a request and for taking its answer; Prometheus waits as long for one
MOST_IDS = 100  # of an identity's older processes, whose late reports are left out


@dataclass
class _Process:
    """All processes that have had one identity, one after the other."""

    seen: float
    """when one was last heard of, Unix time of this machine"""
    process_id: str = ""
    number: int = 0
    """of its newest report"""
    newest: Snapshot = field(default_factory=dict)
    """what that said"""
    folded: Snapshot = field(default_factory=dict)
    """what the processes before it counted together"""
    older_ids: tuple[str, ...] = ()
    """of those: their reports are too late"""
    restarts: int = 0
    ended: bool = False
    """in good order, with its run"""

    def take(self, report: Report) -> bool:
        """Take over a report; False if it says nothing new."""
        same = report.process_id == self.process_id
        if report.process_id in self.older_ids or (same and report.number <= self.number):
            return False
        if not same:
            self.folded, self.older_ids = self._counts(), (*self.older_ids, self.process_id)[-MOST_IDS:]
            self.process_id, self.ended = report.process_id, False
            self.restarts += report.restarted
        self.number, self.newest = report.number, understood(report.snapshot)
        return True

    def values(self, now: float) -> Snapshot:
        """Add up counts and lasting gauges of all processes; take other gauges only of one that still reports."""
        values = self._counts()
        if not self.ended and now - self.seen <= STALE:
            values |= {series: v for series, v in self.newest.items() if INSTRUMENTS[series[0]].kind == "gauge"}
        return values

    def _counts(self) -> Snapshot:
        """Add up counts; of a lasting gauge the newest value counts."""
        values = dict(self.folded)
        for series, value in self.newest.items():
            instrument = INSTRUMENTS[series[0]]
            if instrument.lasting or (instrument.kind != "gauge" and series not in values):
                values[series] = value
            elif instrument.kind != "gauge":
                values[series] = combine(values[series], value, instrument.durable)
        return values


class Exporter(Collector):
    """Collect the reports of all processes of all runs. Any thread may use it."""

    def __init__(self, state: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        """state: as for `keep_in`; None: nothing is kept on disk. clock: Unix time."""
        self._state: Path | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._processes: dict[Identity, _Process] = {}
        self._complained: set[str] = set()
        self._saved = clock()
        if state is not None:
            self.keep_in(state)

    def keep_in(self, state: Path) -> None:
        """Continue from the counts in that file, if it is there, and save them to it; its folder must exist."""
        with self._lock:
            self._state = state
            if not state.exists():
                return
            try:
                self._load(state.read_bytes())
            except (OSError, ValueError, TypeError, KeyError) as error:
                print(f"{state}: cannot go on from it, counts begin anew ({error})", file=sys.stderr, flush=True)

    def report(self, data: bytes) -> None:
        """Take a packed Report. One that is late or not understood is left out."""
        try:
            report = Report.unpacked(data)
        except ValueError:
            return
        with self._lock:
            process = self._processes.setdefault(report.identity, _Process(seen=0.0))
            if process.take(report):
                process.seen = self._clock()
            if self._clock() - self._saved > SAVE_EVERY:
                self._save()

    def end(self, run: str, seed: str) -> None:
        """Note that the processes of this seed have ended in good order: their silence is no fault."""
        with self._lock:
            for identity, process in self._processes.items():
                if (identity.run, identity.seed) == (run, seed):
                    process.ended, process.seen = True, self._clock()
            self._save()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics to serve, after saving them: what was ever shown is never forgotten."""
        by_name: defaultdict[str, list[tuple[dict[str, str], Value]]] = defaultdict(list)
        with self._lock:
            self._forget()
            self._save()
            for identity, process in self._processes.items():
                for (name, label), value in (process.values(self._clock()) | self._observed(process)).items():
                    own = {INSTRUMENTS[name].label or "": label} if label else {}
                    by_name[name].append((vars(identity) | own, value))
        for instrument in INSTRUMENTS.values():
            if instrument.name in by_name:
                yield family(instrument, by_name[instrument.name])

    def _forget(self) -> None:
        """Drop processes that ended an hour ago, or have been silent for a day."""
        now = self._clock()
        for identity, process in list(self._processes.items()):
            if now - process.seen > (KEEP_ENDED if process.ended else KEEP_SILENT):
                del self._processes[identity]

    def _observed(self, process: _Process) -> Snapshot:
        """Make the exporter's own metrics of a process: restarts, up, silence."""
        age = self._clock() - process.seen
        values: Snapshot = {(RESTARTS, ""): process.restarts}
        if not process.ended:
            values[UP, ""] = float(age <= STALE)
            values[SILENCE, ""] = age
        return values

    def _save(self) -> None:
        """Write everything to disk; the first error is printed, none is raised."""
        if self._state is None:
            return
        processes = [(astuple(identity), [*vars(process).values()]) for identity, process in self._processes.items()]
        self._saved = self._clock()
        temporary = self._state.with_name(self._state.name + ".tmp")
        try:
            temporary.write_bytes(msgpack.packb({"version": VERSION, "processes": processes}))
            temporary.replace(self._state)  # whole, whenever this process dies
        except OSError as error:
            self._complain(str(self._state), error.strerror or type(error).__name__)

    def _complain(self, where: str, what: str) -> None:
        """Print the first error of each place: to measure must not end what is measured."""
        if where not in self._complained:
            print(f"metrics: {where}: {what}", file=sys.stderr, flush=True)
        self._complained.add(where)

    def _load(self, data: bytes) -> None:
        content = msgpack.unpackb(data, use_list=False, strict_map_key=False)
        if content["version"] != VERSION:
            raise ValueError(f"got version {content['version']}, want {VERSION}")
        for identity, (seen, process_id, number, newest, folded, *others) in content["processes"]:
            process = _Process(seen, process_id, number, understood(newest), understood(folded), *others)
            self._processes[Identity(*identity)] = process


def understood(snapshot: Snapshot) -> Snapshot:
    """Keep the series that this program declares: a process may run another version."""
    return {series: value for series, value in snapshot.items() if _is_understood(series, value)}


def _is_understood(series: tuple[str, str], value: Any) -> bool:
    instrument = INSTRUMENTS.get(series[0])
    if instrument is None or instrument.observed or not instrument.takes(series[1]):
        return False
    if instrument.kind == "histogram":
        return isinstance(value, tuple) and len(value) == len(instrument.buckets) + 2
    return isinstance(value, int | float)


def family(instrument: Instrument, rows: list[tuple[dict[str, str], Value]]) -> Metric:
    """Build one metric with its series for prometheus_client."""
    name = instrument.name
    metric = Metric(name.removesuffix("_total"), instrument.meaning, instrument.kind)
    for labels, value in rows:
        if not isinstance(value, tuple):
            metric.add_sample(name, labels, value)
            continue
        total, *counts = value
        for bound, count in zip([*map(floatToGoString, instrument.buckets), "+Inf"], accumulate(counts), strict=True):
            metric.add_sample(f"{name}_bucket", labels | {"le": bound}, count)
        metric.add_sample(f"{name}_count", labels, sum(counts))
        if instrument.buckets[0] >= 0:  # else the sum could fall, which Prometheus takes for a restart
            metric.add_sample(f"{name}_sum", labels, total)
    return metric


class _Server(ThreadingWSGIServer):
    """A few connections at once, each with its thread for a few seconds: who sends half a request holds little."""

    request_queue_size = CONNECTIONS

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self._since: dict[Any, float] = {}
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or hang up at once if there are too many."""
        if len(self._since) < CONNECTIONS:
            self._since[request] = time.monotonic()
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Hang up, in the connection's thread at its end."""
        self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Break off those that have had their time; called twice a second. Their threads then end."""
        for request, since in list(self._since.items()):
            if time.monotonic() - since > ANSWER_SECONDS:
                with suppress(OSError):  # it has just ended
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: that a peer breaks off is no error here."""


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def serve(exporter: Exporter, host: str, port: int) -> tuple[WSGIServer, threading.Thread]:
    """Answer http://host:port/metrics from threads of their own. ConfigError, one line, if that is not possible."""
    registry = CollectorRegistry()
    registry.register(exporter)
    try:
        server = _Server(host, port)
    except OSError as error:  # `strerror` would not say which address
        raise ConfigError(f"metrics cannot be served at {host}:{port} ({error.strerror or error})") from None
    app = make_wsgi_app(registry)
    # Always plain text: prometheus_client raises for some versions of another format that a peer may ask for.
    server.set_app(lambda environ, start: app({**environ, "HTTP_ACCEPT": "text/plain"}, start))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    return server, thread

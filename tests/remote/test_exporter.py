"""The exporter on a real cluster: who starts it, what it shows of a real run, and what it survives."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from qttdm.common.metrics.instruments import Component
from qttdm.common.metrics.telemetry import Identity, Telemetry
from qttdm.deploy.cluster.exporter_actor import ensure_exporter, remove_exporter
from qttdm.deploy.cluster.reporting import find_exporter, send
from tests.remote.live import until
from tests.remote.scraping import exporter_pid, free_port, scrape

pytestmark = pytest.mark.ray


def process(component: Component = "actor") -> Telemetry:
    return Telemetry(Identity("run", "0", "task", component))


def reported(t: Telemetry) -> bool:
    def fail(error: Exception) -> None:
        raise error

    return send(t.report(fail), 10)


def test_one_is_found_by_name_and_comes_back_from_a_kill_with_what_it_had(cluster):
    port, other = free_port(), free_port()
    line = f"metrics: http://127.0.0.1:{port}/metrics, on the cluster's head node"
    try:
        assert ensure_exporter("127.0.0.1", port) == line
        pid = exporter_pid()
        assert ensure_exporter("127.0.0.1", port) == line
        assert ensure_exporter("127.0.0.1", other) == f"{line}; not at 127.0.0.1:{other}: a cluster has one exporter"
        assert exporter_pid() == pid
        t, key = process(), ("qttdm_acted_total", "0", "actor", "0")
        t.inc("qttdm_acted_total", 5)
        assert reported(t)
        assert scrape(port)[key] == 5
        os.kill(pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{pid}").exists(), "it is dead")
        until(lambda: scrape(port), "it serves again")
        assert scrape(port)[key] == 5
        t.inc("qttdm_acted_total", 1)
        # Again and again, as reporters do: what is sent while Ray still calls it restarting is lost.
        until(lambda: reported(t) and scrape(port).get(key) == 6, "a report gets through, and it counts on")
        assert exporter_pid() != pid
    finally:
        remove_exporter()


def test_a_port_in_use_is_one_line_and_is_taken_when_it_is_free(cluster):
    taken = socket.create_server(("127.0.0.1", 0))
    number = taken.getsockname()[1]
    try:
        line = ensure_exporter("127.0.0.1", number)
        assert line == (
            f"no metrics for now: metrics cannot be served at 127.0.0.1:{number} (Address already in use); it goes on "
            f"trying, or choose another with --set cluster.metrics_port=N"
        )
        other = free_port()
        assert ensure_exporter("127.0.0.1", other).startswith(f"metrics: http://127.0.0.1:{other}/metrics")
        remove_exporter()
        assert "no metrics for now" in ensure_exporter("127.0.0.1", number)
        taken.close()
        until(lambda: scrape(number), "it serves as soon as it can")
    finally:
        taken.close()
        remove_exporter()


def test_while_there_is_no_exporter_reports_are_dropped_at_once(cluster):
    remove_exporter()
    assert find_exporter() is None
    assert not reported(process())

"""The planner service's benchmark measures what it says; how fast that is, only a calm machine tells."""

import numpy as np
import pytest

from qttdm.deploy.bench import service as bench_service
from qttdm.deploy.bench.service import Case, Measured, drive, print_service, server

TINY = Case("tiny", "debug", 3, 1, (1, 3), seconds=0.5)


def test_many_clients_are_answered_by_a_server_in_a_process_of_its_own():
    with server(TINY, ["device=cpu"], threads=1) as port:
        alone, together = drive(port, TINY, clients=1), drive(port, TINY, clients=3)
    for measured, most in ((alone, 1), (together, 3)):
        assert (measured.latency > measured.planning).all()
        assert (measured.planning > 0).all()
        assert measured.seconds >= TINY.seconds
        assert 1 <= measured.batch <= most
    assert alone.batch == 1
    assert together.batch > 1


def test_the_rate_is_that_of_all_clients_together():
    assert Measured(np.ones(30), np.ones(30), batch=3.0, seconds=2.0).rate == 15


def test_a_row_for_each_number_of_clients(capsys, monkeypatch):
    monkeypatch.setattr(bench_service, "LAPTOP", TINY)
    monkeypatch.setattr(bench_service, "PAPER_CPU", Case("twice", "debug", 5, 2, (2,), seconds=0.5))
    print_service("cpu", None, ["qt-tdm.planner.iterations=1"])
    shown = capsys.readouterr().out.splitlines()
    rows = [(row[:24].strip(), row[24:].split()) for row in shown[3:]]
    assert [(name, cells[0]) for name, cells in rows] == [("tiny", "1"), ("tiny", "3"), ("twice", "2")]
    p50, p95, p99, overhead = (float(cell) for cell in rows[0][1][4:8])
    assert 0 < overhead <= p50 <= p95 <= p99
    assert all(cells[-2:] == ["-", "-"] for _, cells in rows[1:])


def test_a_server_that_does_not_start_is_an_error():
    with (
        pytest.raises(RuntimeError, match="server of tiny ended"),
        server(TINY, ["qt-tdm.planner.samples=0"], threads=1),
    ):
        pass

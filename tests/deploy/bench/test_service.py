"""The planner service's benchmark measures what it says; how fast that is, only a calm machine tells."""

from functools import partial

import pytest

from qttdm.deploy.bench import service as bench_service
from qttdm.deploy.bench.models import Shape
from qttdm.deploy.bench.service import drive, planner, print_service, run_service, running, time_answer

TINY = Shape("tiny", "debug", 3, 1, 8, None, None)


def test_many_clients_are_answered_by_a_server_in_a_process_of_its_own():
    with running(partial(run_service, partial(planner, TINY, ["device=cpu"], 1))) as port:
        alone, together = drive(port, 1, seconds=0.5), drive(port, 3, seconds=0.5)
    for (decisions, batch, latencies), most in ((alone, 1), (together, 3)):
        assert decisions <= len(latencies) / 0.5
        assert (latencies > 0).all()
        assert 1 <= batch <= most
    assert alone[1] == 1
    assert together[1] > 1


def test_the_services_own_time_and_a_bare_servers(monkeypatch):
    """Which is the longer only a quiet machine tells."""
    monkeypatch.setattr(bench_service, "ROUNDS", 1)
    own = time_answer()
    assert 0 < own.other < 1
    assert 0 < own.ours < 1


def test_a_row_for_each_number_of_clients(capsys, monkeypatch):
    monkeypatch.setattr(bench_service, "SHAPES", [TINY])
    for name, small in (("CLIENTS", (1, 3)), ("SECONDS", 0.2), ("DECISIONS", 2), ("CALLS", 20), ("ROUNDS", 1)):
        monkeypatch.setattr(bench_service, name, small)
    print_service("cpu", None, ["qt-tdm.planner.iterations=1"])
    _, title, _, *rows, last = capsys.readouterr().out.splitlines()
    assert title.startswith("planner service, tiny")
    assert [int(row.split()[0]) for row in rows] == [1, 3]
    batch, decisions, ratio, p50, p99 = (float(cell) for cell in rows[0].split()[1:])
    assert (batch, 0 < p50 <= p99, decisions > 0, ratio > 0) == (1, True, True, True)
    assert "ms are the service's" in last


def test_a_server_that_does_not_start_is_an_error():
    with (
        pytest.raises(RuntimeError, match="the server ended before it began"),
        running(partial(run_service, partial(planner, TINY, ["qt-tdm.planner.samples=0"], 1))),
    ):
        pass

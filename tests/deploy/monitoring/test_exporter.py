"""The exporter with clocks and reports made by hand, and over HTTP."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import qttdm.deploy.monitoring.exporter as module
from qttdm.common.config import ConfigError
from qttdm.common.metrics.instruments import COMMON, series_of
from qttdm.common.metrics.telemetry import Identity, Report, Telemetry
from qttdm.deploy.monitoring.exporter import CONNECTIONS, KEEP_ENDED, KEEP_SILENT, STALE, Exporter, serve

ACTOR = Identity("run", "0", "dmc/walker-walk", "actor", "1")
LEARNER = Identity("run", "0", "dmc/walker-walk", "learner")


class Clock:
    """Unix time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1.7e9

    def __call__(self) -> float:
        return self.now


def scrape(exporter: Exporter) -> dict[tuple[str, ...], float]:
    """All samples: by name, component, index, then own label and bucket; parsed from what is served."""
    registry = CollectorRegistry()
    registry.register(exporter)
    samples = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            common = [labels.pop(name, "") for name in COMMON]
            bound = [labels.pop("le")] if "le" in labels else []
            key = (sample.name, *common[3:], *labels.values(), *bound)
            assert key not in samples, key
            samples[key] = sample.value
    return samples


def process(identity: Identity = ACTOR, restarted: bool = False) -> Telemetry:
    return Telemetry(identity, restarted)


def report(t: Telemetry) -> bytes:
    def fail(error: Exception) -> None:
        raise error

    return t.report(fail).packed()


def acted(exporter: Exporter) -> float:
    return scrape(exporter)["qttdm_acted_total", "actor", "1"]


def test_what_is_reported_is_served():
    exporter, actor = Exporter(), process()
    actor.inc("qttdm_acted_total", 3)
    actor.set("qttdm_staleness_updates", 1.5)
    actor.inc("qttdm_actor_seconds_total", 2.0, activity="waiting")
    actor.observe("qttdm_decision_seconds", 0.03, stage="plan")
    actor.observe("qttdm_decision_seconds", 0.3, stage="plan")
    exporter.report(report(actor))
    samples = scrape(exporter)
    assert samples["qttdm_acted_total", "actor", "1"] == 3
    assert samples["qttdm_staleness_updates", "actor", "1"] == 1.5
    assert samples["qttdm_actor_seconds_total", "actor", "1", "waiting"] == 2.0
    assert samples["qttdm_decision_seconds_count", "actor", "1", "plan"] == 2
    assert samples["qttdm_decision_seconds_sum", "actor", "1", "plan"] == pytest.approx(0.33)
    assert samples["qttdm_decision_seconds_bucket", "actor", "1", "plan", "0.02"] == 0
    assert samples["qttdm_decision_seconds_bucket", "actor", "1", "plan", "0.1"] == 1
    assert samples["qttdm_decision_seconds_bucket", "actor", "1", "plan", "+Inf"] == 2
    assert samples["qttdm_process_up", "actor", "1"] == 1
    assert samples["qttdm_process_restarts_total", "actor", "1"] == 0


def test_lost_repeated_and_overtaken_reports_do_no_harm():
    exporter, actor = Exporter(), process()
    reports = []
    for _ in range(6):
        actor.inc("qttdm_acted_total")
        actor.set("qttdm_staleness_updates", len(reports))
        reports.append(report(actor))
    for i in (0, 0, 3, 1, 3, 2, 5, 4):  # 2 and 4 overtaken, others repeated
        exporter.report(reports[i])
    samples = scrape(exporter)
    assert samples["qttdm_acted_total", "actor", "1"] == 6
    assert samples["qttdm_staleness_updates", "actor", "1"] == 5


def test_a_restarted_process_goes_on_counting():
    exporter, old = Exporter(), process()
    old.inc("qttdm_acted_total", 10)
    old.observe("qttdm_decision_seconds", 0.03, stage="plan")
    exporter.report(report(old))
    new = process(restarted=True)
    exporter.report(report(new))
    assert acted(exporter) == 10
    new.inc("qttdm_acted_total", 5)
    new.observe("qttdm_decision_seconds", 0.3, stage="plan")
    exporter.report(report(new))
    samples = scrape(exporter)
    assert samples["qttdm_acted_total", "actor", "1"] == 15
    assert samples["qttdm_decision_seconds_count", "actor", "1", "plan"] == 2
    assert samples["qttdm_process_restarts_total", "actor", "1"] == 1


def test_a_process_of_a_resumed_run_is_not_a_restart():
    exporter = Exporter()
    for _ in range(2):
        exporter.report(report(process()))
    assert scrape(exporter)["qttdm_process_restarts_total", "actor", "1"] == 0


def test_a_late_report_of_an_old_process_changes_nothing():
    exporter, old, new = Exporter(), process(), process(restarted=True)
    old.inc("qttdm_acted_total", 10)
    exporter.report(report(old))
    late = report(old)
    new.inc("qttdm_acted_total", 1)
    new.set("qttdm_staleness_updates", 7.0)
    exporter.report(report(new))
    exporter.report(late)
    exporter.report(report(new))
    samples = scrape(exporter)
    assert samples["qttdm_acted_total", "actor", "1"] == 11
    assert samples["qttdm_staleness_updates", "actor", "1"] == 7.0
    assert samples["qttdm_process_restarts_total", "actor", "1"] == 1


def test_of_durable_counts_the_largest_is_the_true_one():
    """A learner that is killed begins again from its checkpoint."""
    exporter, old = Exporter(), process(LEARNER)
    old.count_to("qttdm_env_steps_total", 1000)
    old.observe("qttdm_episode_return", 12.0)
    old.observe("qttdm_episode_return", 14.0)
    exporter.report(report(old))
    new = process(LEARNER, restarted=True)
    new.count_to("qttdm_env_steps_total", 800)
    new.observe("qttdm_episode_return", 12.0)
    exporter.report(report(new))
    samples = scrape(exporter)
    assert samples["qttdm_env_steps_total", "learner", "0"] == 1000
    assert samples["qttdm_episode_return_count", "learner", "0"] == 2
    assert ("qttdm_episode_return_sum", "learner", "0") not in samples  # it could fall
    new.count_to("qttdm_env_steps_total", 1200)
    exporter.report(report(new))
    assert scrape(exporter)["qttdm_env_steps_total", "learner", "0"] == 1200


def test_the_silent_go_stale_and_their_age_shows():
    clock = Clock()
    exporter, actor, learner = Exporter(clock=clock), process(), process(LEARNER)
    actor.inc("qttdm_acted_total")
    actor.set("qttdm_staleness_updates", 1.0)
    learner.set("qttdm_evaluation_return", 50.0)  # lasting
    for t in (actor, learner):
        exporter.report(report(t))
    clock.now += STALE + 1
    samples = scrape(exporter)
    assert ("qttdm_staleness_updates", "actor", "1") not in samples
    assert samples["qttdm_acted_total", "actor", "1"] == 1
    assert samples["qttdm_evaluation_return", "learner", "0"] == 50.0
    assert samples["qttdm_process_up", "actor", "1"] == 0
    assert samples["qttdm_process_heartbeat_age_seconds", "actor", "1"] == STALE + 1
    exporter.report(report(actor))
    samples = scrape(exporter)
    assert samples["qttdm_process_up", "actor", "1"] == 1
    assert samples["qttdm_staleness_updates", "actor", "1"] == 1.0
    clock.now += KEEP_SILENT + 1
    assert not [key for key in scrape(exporter) if key[1] == "actor"]


def test_a_lasting_value_outlives_the_process_that_said_it():
    exporter = Exporter()
    first = process(LEARNER)
    first.set("qttdm_evaluation_return", 50.0)
    exporter.report(report(first))
    for _ in range(10):
        exporter.report(report(process(LEARNER, restarted=True)))
    assert scrape(exporter)["qttdm_evaluation_return", "learner", "0"] == 50.0


def test_a_run_that_has_ended_is_not_missed():
    clock = Clock()
    exporter, actor = Exporter(clock=clock), process()
    actor.inc("qttdm_acted_total", 4)
    exporter.report(report(actor))
    exporter.end("run", "0")
    clock.now += 1
    exporter.report(report(actor))  # was on its way
    clock.now += STALE
    samples = scrape(exporter)
    assert samples["qttdm_acted_total", "actor", "1"] == 4
    assert not [key for key in samples if key[0] in ("qttdm_process_up", "qttdm_process_heartbeat_age_seconds")]
    exporter.report(report(process()))  # it is resumed
    assert scrape(exporter)["qttdm_process_up", "actor", "1"] == 1
    exporter.end("run", "0")
    clock.now += KEEP_ENDED + 1
    assert not [key for key in scrape(exporter) if key[1] == "actor"]


def test_other_seeds_are_not_touched_by_an_end():
    exporter = Exporter()
    exporter.report(report(process(Identity("run", "1", "t", "actor", "1"))))
    exporter.end("run", "0")
    assert scrape(exporter)["qttdm_process_up", "actor", "1"] == 1


def test_a_thousand_episodes_and_fifty_restarts_add_no_series():
    exporter = Exporter()
    learner = process(LEARNER)

    def everyone() -> None:
        """Each kind of thing that happens, once."""
        for outcome in ("success", "failure", "undefined"):
            learner.inc("qttdm_episode_outcomes_total", outcome=outcome)
        learner.set("qttdm_episode_return_last", 1.0)
        learner.set("qttdm_learner", 1.0, name="loss_q")
        learner.observe("qttdm_episode_return", 1.0)
        actor.inc("qttdm_acted_total")
        actor.set("qttdm_staleness_updates", 1.0)
        actor.observe("qttdm_decision_seconds", 3.0, stage="plan")
        for t in (learner, actor):
            exporter.report(report(t))

    actor = process()
    everyone()
    before = scrape(exporter)
    assert len(before) <= series_of("actor") + series_of("learner")
    for episode in range(1000):
        if episode % 20 == 0:
            actor = process(restarted=True)
        everyone() if episode % 20 < 2 else learner.observe("qttdm_episode_return", float(episode))
    after = scrape(exporter)
    assert after.keys() == before.keys()
    assert after["qttdm_acted_total", "actor", "1"] == 101
    assert after["qttdm_process_restarts_total", "actor", "1"] == 50
    assert len(exporter._processes) == 2


def up(exporter: Exporter) -> list[str]:
    """Numbers of the processes that it serves."""
    return sorted(key[2] for key in scrape(exporter) if key[0] == "qttdm_process_up")


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\xc1" * 9])
def test_what_is_not_a_report_is_left_out(data):
    exporter = Exporter()
    exporter.report(data)
    assert scrape(exporter) == {}
    exporter.report(report(process()))
    assert up(exporter) == ["1"]


def test_metrics_of_another_version_are_left_out():
    exporter = Exporter()
    snapshot = {
        ("qttdm_acted_total", ""): 3.0,
        ("qttdm_from_the_future_total", ""): 1.0,
        ("qttdm_actor_seconds_total", "sleeping"): 1.0,
        ("qttdm_decision_seconds", "plan"): [1.0, 1.0],  # other buckets
        ("qttdm_process_restarts_total", ""): 9.0,  # not for a process to say
        ("qttdm_staleness_updates", ""): [1.0],
    }
    exporter.report(Report(ACTOR, "id", False, 1, snapshot).packed())
    samples = scrape(exporter)
    own = {key: value for key, value in samples.items() if key[1] == "actor" and "process" not in key[0]}
    assert own == {("qttdm_acted_total", "actor", "1"): 3.0}


# --- its own restart ---


def test_a_killed_exporter_comes_back_with_what_it_had_shown(tmp_path):
    clock, state = Clock(), tmp_path / "state"
    first, old, new = Exporter(state, clock), process(), process(restarted=True)
    old.inc("qttdm_acted_total", 10)
    old.observe("qttdm_decision_seconds", 0.03, stage="plan")
    first.report(report(old))
    new.inc("qttdm_acted_total", 1)
    first.report(report(new))
    shown = scrape(first)

    second = Exporter(state, clock)  # the first one was killed: nothing of it but the file
    before = scrape(second)
    counters = {key for key in shown if "_total" in key[0] or "_bucket" in key[0]}
    assert {key: before[key] for key in counters} == {key: shown[key] for key in counters}
    new.inc("qttdm_acted_total", 1)
    second.report(report(new))
    after = scrape(second)
    assert after["qttdm_acted_total", "actor", "1"] == 12
    assert after["qttdm_process_restarts_total", "actor", "1"] == 1


def test_without_a_scrape_it_writes_now_and_then(tmp_path):
    clock, state = Clock(), tmp_path / "state"
    first, old = Exporter(state, clock), process()
    old.inc("qttdm_acted_total", 10)
    first.report(report(old))
    clock.now += module.SAVE_EVERY + 1
    first.report(report(process(LEARNER)))
    assert acted(Exporter(state, clock)) == 10


def test_a_dead_process_stays_known_and_silent_after_a_restart(tmp_path):
    clock, state = Clock(), tmp_path / "state"
    first = Exporter(state, clock)
    first.report(report(process()))
    scrape(first)
    clock.now += 100
    samples = scrape(Exporter(state, clock))
    assert samples["qttdm_process_up", "actor", "1"] == 0
    assert samples["qttdm_process_heartbeat_age_seconds", "actor", "1"] == 100


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x81\xa7version\x63", b"\xc1"])
def test_a_damaged_state_is_no_reason_not_to_start(tmp_path, capsys, content):
    state = tmp_path / "state"
    state.write_bytes(content)
    exporter = Exporter(state)
    assert "counts begin anew" in capsys.readouterr().err
    exporter.report(report(process()))
    assert scrape(exporter)["qttdm_process_up", "actor", "1"] == 1


def test_a_disk_that_refuses_is_said_once(tmp_path, capsys):
    exporter = Exporter(tmp_path / "gone" / "state")
    exporter.report(report(process()))
    for _ in range(2):
        assert up(exporter) == ["1"]
    assert capsys.readouterr().err.count("No such file") == 1


# --- over HTTP ---


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


DRIP = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
WHOLE = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def test_peers_that_take_their_time_are_few_and_are_hung_up_on(monkeypatch, capfd):
    """Of nothing, half a request, a byte now and then, and a whole one whose answer is not read."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(module, "make_wsgi_app", lambda _: much)
    server, thread = serve(Exporter(), "127.0.0.1", 0)
    before = threading.active_count()

    def connect(sent):
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(server.server_address)
        peer.sendall(sent)
        return peer

    peers = [connect(sent) for sent in 5 * (b"", b"GET /metrics HTTP/1.1\r\n", DRIP, WHOLE)]
    most, deadline = 0, time.monotonic() + 60
    while (answering := threading.active_count() - before) > 0 or not most:
        most = max(most, answering)
        for peer in peers[2::4]:
            with suppress(OSError):
                peer.send(b"x")
        assert time.monotonic() < deadline, answering
        time.sleep(0.05)
    assert 4 <= most <= CONNECTIONS
    with socket.create_connection(server.server_address, 60) as scrape:  # there is room again
        scrape.sendall(WHOLE)
        assert scrape.recv(12) == b"HTTP/1.0 200"
    for peer in peers:
        peer.close()
    server.shutdown()
    server.server_close()
    thread.join(60)
    assert capfd.readouterr() == ("", "")


def much(environ, start_response):
    """More than fits into the buffers of a connection."""
    start_response("200 OK", [])
    return [bytes(1 << 24)]


def test_it_is_served_on_loopback():
    exporter, port = Exporter(), free_port()
    exporter.report(report(process()))
    server, thread = serve(exporter, "127.0.0.1", port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        odd = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
        odd.add_header("Accept", "application/openmetrics-text; version=1.a.0")
        with urllib.request.urlopen(odd, timeout=10) as answer:
            assert "qttdm_process_up" in answer.read().decode()
        assert 'qttdm_process_up{component="actor",index="1",run="run",seed="0",task="dmc/walker-walk"} 1.0' in text
        assert "# HELP qttdm_acted_total decisions made" in text
        assert "# TYPE qttdm_decision_seconds histogram" in text
        with pytest.raises(ConfigError, match=f"metrics cannot be served at 127.0.0.1:{port}.*in use"):
            serve(Exporter(), "127.0.0.1", port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

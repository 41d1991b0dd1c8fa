"""`qttdm top`, of a real exporter with two seeds that report."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from qttdm.common.config import ConfigError
from qttdm.common.metrics.telemetry import Identity, Telemetry
from qttdm.deploy.monitoring.exporter import STALE, Exporter, serve
from qttdm.deploy.screens.rows import print_views
from qttdm.deploy.screens.top import Scrape, metric_views, row, scrape, top, troubles

RUN = {"run": "walk", "task": "dmc/walker-walk"}


class Cluster:
    """An exporter at a port, and two seeds of a run that report to it."""

    def __init__(self):
        self.now = 1000.0
        self.exporter = Exporter(clock=lambda: self.now)
        self.server, self.thread = serve(self.exporter, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.server_port}/metrics"
        self.processes = {
            (seed, component): Telemetry(Identity("walk", seed, "dmc/walker-walk", component))
            for seed in "01"
            for component in ("driver", "learner", "actor", "replay")
        }
        for seed in "01":
            self.processes[seed, "driver"].set("qttdm_seed_state", 1, state="running")
            learner = self.processes[seed, "learner"]
            for name, value in {
                "qttdm_target_env_steps": 10_000,
                "qttdm_run_seconds": 600,
                "qttdm_evaluation_return": 123.4,
                "qttdm_episode_return_last": 99.5,
                "qttdm_progress_age_seconds": 1.0,
                "qttdm_disk_free_bytes": 50,
                "qttdm_disk_size_bytes": 100,
            }.items():
                learner.set(name, value)
            for name in ("qttdm_env_steps_total", "qttdm_decisions_total", "qttdm_updates_total"):
                learner.inc(name, 2_000)

    def report(self, *left_out):
        for key, process in self.processes.items():
            if key not in left_out:
                self.exporter.report(process.report(lambda error: None).packed())

    def scrape(self, seconds):
        """As if taken at that time."""
        return Scrape(seconds, scrape(self.url).samples)

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def cluster():
    c = Cluster()
    c.report()
    yield c
    c.close()


def cells(old, new, seed="0"):
    return row(old, new, {**RUN, "seed": seed}).cells()


def shown(old, new):
    console = Console(width=200)
    with console.capture() as capture:
        print_views(metric_views(old, new), console)
    return capture.get()


def test_a_seeds_row_says_how_far_how_good_how_fast_and_how_its_learner_fares(cluster):
    old = cluster.scrape(0.0)
    learner = cluster.processes["0", "learner"]
    learner.inc("qttdm_env_steps_total", 500)
    learner.inc("qttdm_decisions_total", 250)
    learner.inc("qttdm_updates_total", 100)
    learner.inc("qttdm_learner_seconds_total", 6, activity="updating")
    learner.inc("qttdm_learner_seconds_total", 2, activity="waiting_for_decisions")
    cluster.processes["0", "actor"].set("qttdm_staleness_updates", 50)
    cluster.processes["0", "replay"].set("qttdm_replay_decisions", 30)
    cluster.processes["0", "replay"].set("qttdm_replay_capacity_decisions", 100)
    cluster.report()
    new = cluster.scrape(10.0)
    assert cells(old, new) == {
        "seed": "0",
        "state": "running",
        "env steps": "2,500 25%",
        "left": "30.0m",  # 600 s for a quarter
        "return": "99.5",
        "eval": "123.4",
        "upd/s": "10.0",
        "dec/s": "25.0",
        "idle": "25%",
        "fill": "30%",
        "stale": "50",
        "died": "0",
    }
    assert cells(old, new, "1")["upd/s"] == "0.0"
    assert cells(old, new, "1")["idle"] == "-"


def test_before_there_are_two_scrapes_speeds_are_not_known(cluster):
    one = cluster.scrape(0.0)
    assert cells(one, one)["dec/s"] == "-"
    assert cells(one, one)["env steps"] == "2,000 20%"


def test_all_well_is_no_trouble(cluster):
    assert troubles(cluster.scrape(0.0), "walk") == []
    assert "!" not in shown(cluster.scrape(0.0), cluster.scrape(1.0))


def test_what_is_wrong_is_a_line_each(cluster):
    learner = cluster.processes["1", "learner"]
    learner.set("qttdm_progress_age_seconds", 300)
    learner.set("qttdm_disk_free_bytes", 5)
    cluster.processes["0", "driver"].inc("qttdm_failures_total", 2, kind="unresponsive")
    cluster.now += STALE + 5
    cluster.report(("0", "actor"))
    found = troubles(cluster.scrape(0.0), "walk")
    assert sorted(found) == [
        "seed 0: 2 of driver 0: unresponsive",
        "seed 0: actor 0 is silent for 35s",
        "seed 1: 5% of its disk is free",
        "seed 1: no update and no episode for 5.0m",
    ]
    assert "! seed 0: actor 0 is silent for 35s" in shown(cluster.scrape(0.0), cluster.scrape(1.0))


def test_two_runs_are_two_tables_and_none_is_a_line(cluster):
    other = Telemetry(Identity("reach", "0", "dmc/reacher-easy", "learner"))
    cluster.exporter.report(other.report(lambda error: None).packed())
    text = shown(cluster.scrape(0.0), cluster.scrape(1.0))
    assert text.index("reach: dmc/reacher-easy") < text.index("walk: dmc/walker-walk")
    empty = Scrape.of("", 0.0)
    assert "no run has reported yet" in shown(empty, empty)


def test_nobody_there_is_one_line_that_says_where_to_look(cluster):
    url = cluster.url
    cluster.close()
    with pytest.raises(ConfigError, match=r"no metrics \(Connection refused\)") as failed:
        top(url, once=True)
    assert "\n" not in str(failed.value)
    cluster.server, cluster.thread = serve(cluster.exporter, "127.0.0.1", 0)  # for the fixture to close


def command(cluster):
    return [sys.executable, "-m", "qttdm.deploy.cli.main", "top", "--url", cluster.url]


def test_without_a_terminal_it_prints_once(cluster):
    done = subprocess.run(command(cluster), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "walk: dmc/walker-walk" in done.stdout
    assert "2,000 20%" in done.stdout


def test_in_a_terminal_it_follows_until_ctrl_c(cluster):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(cluster),
        stdin=theirs,
        stdout=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "200"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )
    text, deadline, counted = "", time.monotonic() + 60, False

    def read() -> str:
        """What has been written meanwhile: a terminal that nobody reads from holds up who writes to it."""
        assert time.monotonic() < deadline, text
        return os.read(ours, 65536).decode(errors="replace") if select.select([ours], [], [], 0.2)[0] else ""

    while "6,000 60%" not in text:
        text += read()
        if "2,000 20%" in text and not counted:
            counted = True
            cluster.processes["0", "learner"].inc("qttdm_env_steps_total", 4_000)
            cluster.report()
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        text += read()
    assert process.returncode == 0, text
    os.close(theirs)
    os.close(ours)

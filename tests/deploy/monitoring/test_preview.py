"""Previews: every panel of every dashboard drawn from what a real Prometheus has of a real exporter."""

import json
import shutil
import time
import urllib.request

import imageio.v3
import pytest

from qttdm.common.metrics.telemetry import Boot, Identity, Telemetry
from qttdm.deploy.monitoring.exporter import Exporter, serve
from qttdm.deploy.monitoring.grafana import preview
from qttdm.deploy.monitoring.grafana.queries import DASHBOARDS
from qttdm.deploy.monitoring.monitor import Place, answers, prometheus, running, write_config
from tests.deploy.monitoring.test_monitor import free_port


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.123, "percentunit", "12%"),
        (0.0123, "percentunit", "1.2%"),
        (0.0, "percentunit", "0%"),
        (90.0, "s", "1.5 min"),
        (7200.0, "s", "2.0 h"),
        (0.0123, "s", "12.3 ms"),
        (12.0, "s", "12 s"),
        (3 * 2**30, "bytes", "3 GiB"),
        (12_345.0, "short", "12.3 K"),
        (-1200.0, "short", "-1.2 K"),
        (float("nan"), "short", "-"),
    ],
)
def test_numbers_are_readable_in_their_unit(value, unit, text):
    assert preview.readable(value, unit) == text


def test_no_prometheus_is_one_line(capsys):
    url = f"http://127.0.0.1:{free_port()}"
    assert preview.main(["walk", "--prometheus", url]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"qttdm: preview: no Prometheus at {url}")
    assert err.count("\n") == 1


@pytest.mark.skipif(not shutil.which("prometheus"), reason="no prometheus: apt install prometheus")
def test_all_dashboards_are_drawn_with_the_runs_data(tmp_path):
    exporter = Exporter()
    server, thread = serve(exporter, "127.0.0.1", 0)
    learner = Telemetry(Identity("walk", "0", "dmc/walker-walk", "learner"), Boot.now())
    target = f"127.0.0.1:{server.server_port}"
    place = Place(tmp_path / "data", target, tmp_path / "ray", free_port(), free_port())
    write_config(place)

    def scraped(number):
        url = f"{place.prometheus_url}/api/v1/query?query=count_over_time(qttdm_loss[5m])%3E={number}"
        with urllib.request.urlopen(url) as answer:
            return json.load(answer)["data"]["result"]

    with running([prometheus(place, shutil.which("prometheus"))]):
        deadline = time.monotonic() + 60
        number = 0
        while not (answers(f"{place.prometheus_url}/-/ready") and scraped(3)):
            number += 1
            for term in ("state", "reward", "td"):
                learner.set("qttdm_loss", 1 / number, term=term)
            learner.observe("qttdm_episode_return", 50.0 + number)
            learner.inc("qttdm_env_steps_total", 10)
            learner.set("qttdm_target_env_steps", 10_000)
            exporter.report(learner.report(lambda error: None).packed())
            assert time.monotonic() < deadline
            time.sleep(0.5)
        pictures = {}
        for run in ("walk", "nobody"):
            folder = tmp_path / run
            folder.mkdir()
            assert (
                preview.main([run, "--prometheus", place.prometheus_url, "--minutes", "1", "--out", str(folder)]) == 0
            )
            assert {p.name for p in folder.iterdir()} == {f"dashboard-{p.stem}.png" for p in DASHBOARDS.iterdir()}
            pictures[run] = imageio.v3.imread(folder / "dashboard-training.png")
    server.shutdown()
    thread.join()
    server.server_close()
    assert pictures["walk"].shape == pictures["nobody"].shape
    assert (pictures["walk"] != pictures["nobody"]).any()

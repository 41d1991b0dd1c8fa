"""A real Prometheus looks at a real run of two seeds while an actor and the exporter are killed: all it then knows.

Needs Debian's package `prometheus`; `.ci/run` installs it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray
import yaml
from ray._private.metrics_agent import PrometheusServiceDiscoveryWriter

from qttdm.common.metrics.instruments import INSTRUMENTS
from qttdm.deploy.cluster.exporter_actor import ensure_exporter, remove_exporter
from tests.deploy.monitoring.queries import Query, all_queries
from tests.remote.live import Books, Live, check_books, settings, until
from tests.remote.scraping import exporter_pid, free_port

pytestmark = pytest.mark.ray
CONFIG = Path(__file__).parents[2] / "deploy" / "monitoring" / "prometheus" / "prometheus.yml"
RUN = "watched"
SMALLEST = "cluster={actors: 1, shards: 1, metrics_port: 9108}"  # reports find the exporter by name, whatever its port
SEEDS = [
    settings(SMALLEST, "training.log_every=20", seed=0),
    settings(SMALLEST, "training.log_every=20", "cluster.planning=service", seed=1),
]
"""One actor of each, which plans for itself or asks the service: a small machine has enough with that."""
KILLED = '{seed="0",component="actor",index="0"}'

EMPTY = {
    "qttdm_gpu_memory_bytes": "this run uses no GPU",
    "qttdm_gpu_utilisation_ratio": "likewise",
}
"""Metrics that this run has no samples of, and queries that ask for them no answer."""

NEVER = {"qttdm_failures_total": "a process that is killed is a restart"}
"""Counters that may be zero at the end of this run."""


@dataclass
class Prometheus:
    """One in a process of its own, with what is shipped for a configuration but for its addresses."""

    folder: Path
    port: int = field(default_factory=free_port)

    def start(self, target: int) -> None:
        """Scrape that port, and Ray."""
        config = yaml.safe_load(CONFIG.read_text())
        # A scrape may take no longer than the interval, and a busy machine takes its time.
        config["global"] = {"scrape_interval": "3s", "evaluation_interval": "5s"}
        config["rule_files"] = [str(CONFIG.parent / name) for name in config["rule_files"]]
        ours, rays = config["scrape_configs"]
        ours["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]
        # The cluster of these tests has had other runs.
        ours["metric_relabel_configs"] = [{"source_labels": ["run"], "regex": RUN, "action": "keep"}]
        assert rays["file_sd_configs"][0]["files"][0].endswith("/prom_metrics_service_discovery.json")
        nodes = self.folder / "nodes.json"  # as Ray's dashboard would write it, which these tests' Ray does without
        nodes.write_text(
            PrometheusServiceDiscoveryWriter(
                ray.get_runtime_context().gcs_address, str(self.folder)
            ).get_file_discovery_content()
        )
        rays["file_sd_configs"][0]["files"] = [str(nodes)]
        path = self.folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        subprocess.run(["promtool", "check", "config", path], check=True, capture_output=True, timeout=60)
        address, storage = f"127.0.0.1:{self.port}", self.folder / "data"
        command = ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={storage}", "--log.level=warn"]
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        until(lambda: self.answers("vector(1)"), "Prometheus answers")

    def answers(self, query: str) -> bool:
        """Does it, to that?"""
        try:
            return bool(self.ask(query))
        except (OSError, AssertionError):
            assert self.process.poll() is None, (self.folder / "log").read_text()
            return False

    def ask(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of the answer."""
        url = f"http://127.0.0.1:{self.port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                data = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from None
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def number(self, query: str) -> float:
        """The answer, if it is one number; NaN if there is none yet."""
        answer = self.ask(query)
        assert len(answer) <= 1, answer
        return answer[0][1] if answer else math.nan

    def known(self, query: str) -> float:
        """The number, as soon as there is one: a scrape that came too late leaves nothing until the next."""
        found: list[float] = until(lambda: [n] if not math.isnan(n := self.number(query)) else [], query)
        return found[0]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def prometheus(tmp_path) -> Iterator[Prometheus]:
    assert shutil.which("prometheus"), "there is no Prometheus: apt-get install prometheus"
    (tmp_path / "prometheus").mkdir()
    there = Prometheus(tmp_path / "prometheus")
    yield there
    there.stop()


def test_what_prometheus_knows_of_a_run_is_what_happened(cluster, tmp_path, prometheus):
    remove_exporter()
    port = free_port()
    assert ensure_exporter("127.0.0.1", port).startswith("metrics: ")
    prometheus.start(port)
    try:
        with Live(cluster, tmp_path / RUN, SEEDS) as live:
            live.until(lambda: all(seed.status for seed in live.seeds), "both learners have started")
            live.until(lambda: counted(prometheus, "qttdm_updates_total > 0"), "both learn")
            live.until(lambda: all_under_way(prometheus), "both seeds evaluate and save")
            kill_an_actor(live, prometheus)
            kill_the_exporter(live, prometheus)
            live.until(lambda: all_under_way(prometheus), "all are served again")
            check_queries(prometheus)
            check_complete(prometheus)
        books = [check_books(seed) for seed in live.seeds]
        for seed, own in enumerate(books):
            until(lambda seed=seed, own=own: said_of(prometheus, seed) == written(own), differences(prometheus, books))
        check_counted_once(prometheus)
    finally:
        remove_exporter()


def counted(prometheus: Prometheus, query: str) -> bool:
    """Is there an answer for each seed?"""
    return len(prometheus.ask(f"count by (seed) ({query})")) == len(SEEDS)


def all_under_way(prometheus: Prometheus) -> bool:
    """Has each seed done all that is measured, and is all of it served now?"""
    wanted = [
        "qttdm_evaluation_return",
        "qttdm_model_state_error_ratio",
        "qttdm_checkpoint_seconds_count > 0",
        'qttdm_learner{name="loss_q"}',
        "qttdm_staleness_updates",
    ]
    return all(counted(prometheus, query) for query in wanted)


def kill_an_actor(live: Live, prometheus: Prometheus) -> None:
    """It is seen to be another process, and counts on."""
    name = f"qttdm_acted_total{KILLED}"
    pid = live.kill("actor-0")
    live.replaced("actor-0", pid)
    live.until(lambda: prometheus.number(f"qttdm_process_restarts_total{KILLED}") == 1, "the restart is told")
    before = prometheus.known(name)  # all that the killed one ever told is in it
    live.until(lambda: prometheus.number(name) > before, "it counts on")
    assert prometheus.known("sum(qttdm_process_restarts_total)") == 1


def kill_the_exporter(live: Live, prometheus: Prometheus) -> None:
    """It comes back at the same address, with what it had."""
    decisions = prometheus.known("sum(qttdm_acted_total)")
    pid = exporter_pid()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists(), "it is gone")
    live.until(lambda: serves_another(pid), "another one serves")
    live.until(lambda: prometheus.number("sum(qttdm_acted_total)") > decisions, "it counts on")
    restarted, age = time.time(), "qttdm_process_heartbeat_age_seconds"
    live.until(lambda: prometheus.number(f"min(timestamp({age}) - {age})") > restarted, "everyone has found it")


def serves_another(pid: int) -> bool:
    """Is the exporter another process now?"""
    try:
        return exporter_pid() != pid
    except ray.exceptions.RayError:
        return False


def check_queries(prometheus: Prometheus) -> None:
    """Every query that is shipped is understood, and all answer but those that cannot."""
    queries = all_queries(RUN, rate_interval="15m", time_range="30m")
    assert len(queries) > 70
    for query in queries:
        prometheus.ask(query.text)
        if not may_be_empty(query):
            until(lambda text=query.text: answered(prometheus, text), f"{query.where} answers: {query.text}")


def answered(prometheus: Prometheus, text: str) -> bool:
    """Is there a number in the answer?"""
    return any(not math.isnan(value) for _, value in prometheus.ask(text))


def may_be_empty(query: Query) -> bool:
    return query.is_alert or any(name in query.text for name in EMPTY)


def check_complete(prometheus: Prometheus) -> None:
    """Each metric that is declared is there, for each component that reports it; and no others are."""
    declared = {(i.name, component) for i in INSTRUMENTS.values() for component in i.components}

    def there() -> set[tuple[str, str]]:
        samples = prometheus.ask('count by (__name__, component) ({__name__=~"qttdm_.+"})')
        return {(family(labels["__name__"]), labels["component"]) for labels, _ in samples}

    until(lambda: {name for name, _ in declared - there()} == set(EMPTY), "all that is declared is there")
    assert there() - declared == set()
    for instrument in INSTRUMENTS.values():
        series = {"counter": instrument.name, "histogram": f"{instrument.name}_count"}.get(instrument.kind)
        if series is not None and instrument.name not in NEVER:
            assert prometheus.known(f"sum({series})") > 0, series


def family(name: str) -> str:
    """The metric that a sample is of."""
    for suffix in ("", "_bucket", "_sum", "_count"):
        if (base := name.removesuffix(suffix)) in INSTRUMENTS:
            return base
    return name


def said_of(prometheus: Prometheus, seed: int) -> dict[str, float]:
    """The counts of a seed."""
    names = [
        *(f"qttdm_{what}_total" for what in ("env_steps", "decisions", "episodes", "updates")),
        "qttdm_episode_return_count",
    ]
    return {name: prometheus.number(f'sum({name}{{run="{RUN}",seed="{seed}"}})') for name in names}


def written(books: Books) -> dict[str, float]:
    """The same, by metrics.jsonl and the newest checkpoint."""
    counters = books.meta["counters"]
    return {
        "qttdm_env_steps_total": counters["env_steps"],
        "qttdm_decisions_total": counters["decisions"],
        "qttdm_episodes_total": counters["episodes"],
        "qttdm_updates_total": books.meta["pace"]["updates"],
        "qttdm_episode_return_count": len(books.train),
    }


def differences(prometheus: Prometheus, books: list[Books]) -> str:
    """For whoever reads that they do not agree."""
    return str([(said_of(prometheus, seed), written(own)) for seed, own in enumerate(books)])


def check_counted_once(prometheus: Prometheus) -> None:
    """No counter fell, at any scrape, whatever was killed."""
    names = [i.name for i in INSTRUMENTS.values() if i.kind == "counter"]
    names += [f"{i.name}_{what}" for i in INSTRUMENTS.values() if i.kind == "histogram" for what in ("bucket", "count")]
    assert {name: prometheus.known(f"sum(resets({name}[30m]))") for name in names} == dict.fromkeys(names, 0.0)
    until(lambda: not prometheus.ask("qttdm_process_up"), "nothing is missed of a run that has ended in good order")

"""The metrics of a run on one machine, and of `qttdm serve`: complete, and what their files say."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from qttdm.common.metrics.instruments import COMMON, INSTRUMENTS
from qttdm.common.metrics.lines import read_metrics
from qttdm.deploy.cli.main import main
from qttdm.deploy.monitoring.exporter import serve
from qttdm.deploy.monitoring.local_exporter import LocalExporter
from qttdm.deploy.runs.local import LocalRun, resume_run
from qttdm.planner_service.serving.client import Client
from tests.deploy.runs.test_local import assert_same_state, lines, reopen, start, train
from tests.deploy.runs.test_serve import pendulum_run, serving

Samples = dict[tuple[str, ...], float]
TRAINING = "training={eval_every: 160, checkpoint_every: 160, log_every: 4}"

ELSEWHERE = {
    "qttdm_staleness_updates": "weights are never old",
    "qttdm_staleness_limit_updates": "likewise",
    "qttdm_calls_in_flight": "there are no others to call",
    "qttdm_gpu_memory_bytes": "there is no GPU",
    "qttdm_gpu_utilisation_ratio": "likewise",
}
"""What a run on one machine without a GPU has no samples of."""
ONCE = {
    "qttdm_process_resident_bytes": "driver",
    "qttdm_disk_free_bytes": "learner",
    "qttdm_disk_size_bytes": "learner",
}
"""What one of the parts tells for all of them."""


def scrape(port: int) -> Samples:
    """All samples: by name, component, then own label and bucket; the common labels are checked."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            run, seed, task, component, index = (labels.pop(name, "") for name in COMMON)
            if component:
                assert (run, seed, index) == ("run", "0", "0")
                assert task.startswith("gym/")
            bound = [labels.pop("le")] if "le" in labels else []
            samples[sample.name, component, *labels.values(), *bound] = sample.value
    return samples


@contextmanager
def serving_metrics() -> Iterator[LocalExporter]:
    exporter = LocalExporter()
    server, thread = serve(exporter, "127.0.0.1", 0)
    exporter.port = server.server_port
    yield exporter
    exporter.close()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def metrics() -> Iterator[LocalExporter]:
    with serving_metrics() as exporter:
        yield exporter


def measured(metrics: LocalExporter, directory: Path) -> Any:
    """For a run in a directory of this name."""
    return lambda config: metrics.of_run("run", 0, config.task, directory / "run" / "metrics-state")


def check_counts(run: LocalRun, samples: Samples) -> None:
    """Against metrics.jsonl and the newest checkpoint."""
    told = read_metrics(run.run_dir.metrics_path)
    saved = run.loop.store.load_latest().meta["counters"] | {"updates": run.learner.updates}
    for what in ("env_steps", "decisions", "episodes", "updates"):
        assert samples[f"qttdm_{what}_total", "learner"] == told[-1][what] == saved[what]
    episodes = [line for line in told if line["kind"] == "train"]
    assert samples["qttdm_episode_return_count", "learner"] == len(episodes)
    assert (
        samples["qttdm_evaluation_return", "learner"] == [e["episode_return"] for e in told if e["kind"] == "eval"][-1]
    )


def test_it_serves_what_the_files_say_and_the_run_is_the_same(tmp_path, metrics):
    run = start(tmp_path, TRAINING, telemetry_of=measured(metrics, tmp_path))
    train(run)
    samples = scrape(metrics.port)
    check_counts(run, samples)
    assert samples["qttdm_acted_total", "actor"] == 30  # decisions but the random ones
    assert samples["qttdm_update_seconds_count", "learner", "compute"] == run.learner.updates
    assert samples["qttdm_seed_state", "driver", "running"] == 1
    plain = start(tmp_path, TRAINING, name="plain")
    train(plain)
    assert lines(run, "train", "update", "eval") == lines(plain, "train", "update", "eval")
    assert_same_state(run, plain)


def test_every_metric_of_its_parts_is_there(tmp_path, metrics):
    run = start(tmp_path, TRAINING, telemetry_of=measured(metrics, tmp_path))
    train(run)
    there = {
        (name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count"), component)
        for name, component, *_ in scrape(metrics.port)
    }
    parts = {"driver", "learner", "actor", "evaluator", "replay"}
    wanted = {(i.name, ONCE.get(i.name, part)) for i in INSTRUMENTS.values() for part in parts & set(i.components)}
    assert {name for name, _ in wanted - there} == set(ELSEWHERE)


def test_a_resumed_run_counts_on(tmp_path, metrics):
    run = start(tmp_path, TRAINING, telemetry_of=measured(metrics, tmp_path))
    decisions = iter(range(1000))
    train(run, should_stop=lambda: next(decisions) > 25)
    before = scrape(metrics.port)
    with serving_metrics() as again:
        resumed = reopen(run, lambda run_dir: resume_run(run_dir, measured(again, tmp_path)))
        first = scrape(again.port)
        assert all(first[key] >= value for key, value in before.items() if key[0] == "qttdm_episodes_total")
        train(resumed)
        after = scrape(again.port)
    check_counts(resumed, after)
    assert after["qttdm_process_restarts_total", "learner"] == 0
    assert after["qttdm_acted_total", "actor"] >= 30  # the dropped episode's, too


def test_what_nobody_asked_for_is_kept_at_the_end(tmp_path):
    first = LocalExporter()
    first.of_run("run", 0, "gym/Pendulum-v1", tmp_path / "state")("actor", 0).inc("qttdm_acted_total", 3)
    first.close()
    again = LocalExporter()
    again.of_run("run", 0, "gym/Pendulum-v1", tmp_path / "state")("actor", 0).inc("qttdm_acted_total", 2)
    assert (
        b'qttdm_acted_total{component="actor",index="0",run="run",seed="0",task="gym/Pendulum-v1"} 5.0' in again.text()
    )


def test_a_measurement_that_fails_is_said_once_and_costs_only_its_own(capsys):
    exporter = LocalExporter()
    telemetry = exporter.of_run("run", 0, "gym/Pendulum-v1")("actor", 0)
    telemetry.before_report(lambda: 1 / 0)
    telemetry.before_report(lambda: telemetry.set("qttdm_staleness_updates", 4.0))
    for _ in range(2):
        assert b"qttdm_staleness_updates" in exporter.text()
    said = capsys.readouterr().err
    assert said.startswith("metrics: a measurement: Traceback")
    assert said.count("ZeroDivisionError: division by zero") == 1


def test_a_port_in_use_is_one_line_and_nothing_is_begun(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = tmp_path / "run"
        assert main(["train", "--preset", "debug", "--run-dir", str(run), "--metrics-port", str(port)]) == 2
    out, err = capsys.readouterr()
    line = f"qttdm: metrics cannot be served at 127.0.0.1:{port} (Address already in use)\n"
    assert (out, err) == ("", line)
    assert not run.exists()


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_what_is_no_port_is_refused(capsys, port):
    assert main(["train", "--preset", "debug", "--metrics-port", port]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "--metrics-port" in err
    assert port in err


def test_a_service_tells_what_it_answers(tmp_path):
    with serving(pendulum_run(tmp_path / "run").run_dir.path) as child, Client(port=child.port) as client:
        assert scrape(child.port)["qttdm_service_requests_total", "planner", "answered"] == 0
        episode = client.episode(seed=0)
        for _ in range(3):
            episode.act(np.zeros(3, np.float32))
        time.sleep(0.1)  # what was measured of a batch is noted after its answers are out
        want = {
            ("qttdm_service_requests_total", "planner", "answered"): 3,
            ("qttdm_service_batch_size_count", "planner"): 3,
            ("qttdm_service_batch_size_sum", "planner"): 3,
            ("qttdm_decision_seconds_count", "planner", "queue"): 3,
            ("qttdm_decision_seconds_count", "planner", "total"): 3,
        }
        told = scrape(child.port)
        assert {name: told[name] for name in want} == want
        assert told["qttdm_process_resident_bytes", "planner"] > 1e6

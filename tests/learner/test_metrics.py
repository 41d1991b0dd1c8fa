"""What Prometheus is told of a run is what its files say, also after kills."""

from __future__ import annotations

import os
import time
from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest

from qttdm.common.checkpoint import CheckpointStore
from qttdm.common.metrics.lines import MetricsWriter
from qttdm.common.metrics.telemetry import Identity, Telemetry
from qttdm.deploy.monitoring.exporter import Exporter
from qttdm.learner.loop import LearningLoop
from qttdm.learner.metrics import open_metrics, report_run, time_spent
from tests.deploy.monitoring.test_exporter import scrape
from tests.learner.test_loop import Killed, Seed

IDENTITY = Identity("run", "0", "point", "learner")
COUNTERS = {"env_steps": 0, "decisions": 0, "updates": 0, "episodes": 0, "wall_seconds": 0.0}


@pytest.fixture
def seed(tmp_path):
    seed = Seed(tmp_path, training={"checkpoint_every": 40})
    yield seed
    seed.replay.close()


def fail(error: Exception) -> None:
    raise error


def measured(seed: Seed, restarted: bool = False) -> LearningLoop:
    """A learner's process starts, and is looked at."""
    loop = seed.loop(telemetry=Telemetry(IDENTITY, restarted))
    report_run(loop)
    return loop


def check_counts(seed: Seed, got: dict) -> None:
    """Against the files of a run that has ended."""
    meta, train = seed.checkpoint(), seed.lines("train")
    for what in ("env_steps", "decisions", "episodes"):
        assert got[f"qttdm_{what}_total"] == meta["counters"][what]
    assert got["qttdm_updates_total"] == meta["pace"]["updates"]
    assert got["qttdm_episode_return_count"] == len(train)


def served(exporter: Exporter) -> dict[str, float]:
    """The learner's metrics that have no label of their own, by name."""
    return {name: value for (name, _, _, *label), value in scrape(exporter).items() if not label}


def test_counts_are_those_of_the_files(seed):
    loop, exporter = measured(seed), Exporter()
    assert seed.run(loop) == "finished"
    exporter.report(loop.telemetry.report(fail).packed())
    check_counts(seed, served(exporter))


def test_counts_neither_fall_nor_jump_when_the_learner_is_killed(seed):
    exporter, seen, counters = Exporter(), [], []

    def look(loop: LearningLoop) -> bool:
        """Report and scrape whenever something has happened."""
        status = loop.status()
        now = [status[name] for name in ("episodes", "updates", "finished")]
        if now not in counters[-1:]:
            counters.append(now)
            exporter.report(loop.telemetry.report(fail).packed())
            seen.append(served(exporter))
        return False

    for updates in (9, 17, 30):
        loop = measured(seed, restarted=bool(seen))
        with pytest.raises(Killed):
            seed.run(loop, until=lambda loop, n=updates: look(loop) or loop.learner.updates >= n)
    loop = measured(seed, restarted=True)
    assert seed.run(loop, until=look) == "finished"
    counters.clear()
    look(loop)
    check_counts(seed, seen[-1])
    assert seen[-1]["qttdm_process_restarts_total"] == 3
    for before, after in pairwise(seen):
        for name in durable(seen[-1]):
            assert before[name] <= after[name] <= seen[-1][name], name


def durable(values: dict[str, float]) -> list[str]:
    """Names of what is counted from the run's beginning."""
    names = ("env_steps", "decisions", "episodes", "updates")
    return [f"qttdm_{name}_total" for name in names] + [
        name for name in values if name.startswith("qttdm_episode_") and name.endswith(("_count", "_sum"))
    ]


def test_gauges_are_the_newest_lines(seed):
    loop = measured(seed)
    seed.run(loop)
    snapshot = loop.telemetry.report(fail).snapshot
    update, evaluation = seed.lines("update")[-1], seed.lines("eval")[-1]
    values = {name: value for (metric, name), value in snapshot.items() if metric == "qttdm_learner"}
    assert values == {name: update[name] for name in values}
    assert {"loss_state", "lr_tdm", "grad_norm_tdm"} <= values.keys()
    assert not [name for name in values if name in COUNTERS or "_per_second" in name or "share" in name]
    assert snapshot["qttdm_evaluation_return", ""] == evaluation["episode_return"]
    assert snapshot["qttdm_pace_ratio", ""] == 1.0
    assert snapshot["qttdm_update_backlog", ""] == 0
    assert snapshot["qttdm_target_env_steps", ""] == 100
    assert snapshot["qttdm_disk_free_bytes", ""] > 0


def test_each_update_is_timed_and_so_is_each_publication(seed):
    loop = measured(seed)
    seed.run(loop)
    snapshot = loop.telemetry.report(fail).snapshot
    for part in ("wait", "copy", "compute"):
        assert sum(snapshot["qttdm_update_seconds", part][1:]) == loop.learner.updates
    assert sum(snapshot["qttdm_weights_publish_seconds", ""][1:]) == len(seed.published)
    saved = max(CheckpointStore.number(p) for p in seed.run_dir.checkpoints_dir.iterdir())
    assert sum(snapshot["qttdm_checkpoint_seconds", ""][1:]) == saved
    for activity, seconds in loop.spent.seconds.items():
        assert snapshot["qttdm_learner_seconds_total", activity] == pytest.approx(seconds)


def test_who_does_not_answer_in_time_is_counted(seed):
    seed.replay.refusals = ["waited 1 s for the replay shards' new episodes"] * 3
    loop = measured(seed)
    seed.run(loop)
    assert loop.telemetry.snapshot()["qttdm_failures_total", "timeout"] == 3


def test_time_is_counted_also_when_what_it_is_spent_on_fails():
    spent = time_spent(Telemetry.silent("learner"))

    def wait_in_vain() -> None:
        time.sleep(0.01)
        raise TimeoutError

    with pytest.raises(TimeoutError), spent.on("waiting_for_batches"):
        wait_in_vain()
    assert spent.seconds["waiting_for_batches"] >= 0.01
    assert spent.seconds["updating"] == 0


def test_lines_that_are_there_are_told_first_and_those_cut_off_not_at_all(tmp_path):
    path, t = tmp_path / "metrics.jsonl", Telemetry.silent("learner")
    episode = {"episode_return": 7.0, "episode_length": 5, "success": None}
    with closing(MetricsWriter(path)) as writer:
        writer.write("train", **COUNTERS, **episode)
        keep = writer.sync()
        writer.write("train", **COUNTERS, **episode)
    with closing(open_metrics(path, keep, t)) as writer:
        assert t.snapshot()["qttdm_episode_outcomes_total", "undefined"] == 1
        writer.write("train", **COUNTERS, **(episode | {"success": 1.0}))
        writer.write("train", **COUNTERS, **(episode | {"success": 0.0}))
    snapshot = t.snapshot()
    outcomes = {label: v for (name, label), v in snapshot.items() if name == "qttdm_episode_outcomes_total"}
    assert outcomes == {"success": 1, "failure": 1, "undefined": 1}


def test_numbers_that_are_not_finite_are_null_and_not_told(tmp_path):
    t = Telemetry.silent("learner")
    with closing(open_metrics(tmp_path / "metrics.jsonl", 0, t)) as writer:
        writer.write("eval", **COUNTERS, episode_return=np.nan, episode_returns=[np.nan, 1.0], success=None)
        writer.write("update", **COUNTERS, loss_q=np.inf, q_mean=2.0)
        writer.write("train", **COUNTERS, episode_return=np.inf, episode_length=3, success=None)
    snapshot = t.snapshot()
    assert snapshot["qttdm_learner", "q_mean"] == 2.0
    assert not [key for key in snapshot if key[0] in ("qttdm_evaluation_return", "qttdm_episode_return_last")]
    assert ("qttdm_learner", "loss_q") not in snapshot


def test_a_checkpoint_has_an_age(seed):
    loop = measured(seed)
    started = loop.telemetry.report(fail).snapshot["qttdm_checkpoint_age_seconds", ""]  # since the start: there is none
    assert 0 <= started < 50
    seed.run(loop)
    newest = loop.store.newest()
    os.utime(newest, (time.time() - 1000, time.time() - 1000))
    assert loop.telemetry.report(fail).snapshot["qttdm_checkpoint_age_seconds", ""] == pytest.approx(1000, abs=50)

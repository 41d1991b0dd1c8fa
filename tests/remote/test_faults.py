"""Every kind of process is killed in the middle of one live run: it goes on, and nothing acknowledged is lost."""

from __future__ import annotations

import math
import os
import signal

import pytest

from qttdm.common.metrics.lines import read_metrics
from qttdm.common.weights import GENERATION
from qttdm.deploy.cluster.exporter_actor import ensure_exporter, remove_exporter
from qttdm.deploy.runs.trained import newest_checkpoint
from tests.remote.live import Live, check_books, gone, settings
from tests.remote.scraping import free_port, scrape

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def live(cluster, tmp_path_factory):
    """The run, with whatever the tests before did to it: starting it is most of what a test costs."""
    port = free_port()
    assert ensure_exporter("127.0.0.1", port).startswith("metrics: ")
    # Longer than a process is stopped here: tests/remote/test_hangs.py is about that.
    config = settings(f"cluster={{metrics_port: {port}, heartbeat_seconds: 3600}}")
    with Live(cluster, tmp_path_factory.mktemp("faults") / "run", [config]) as run:
        try:
            run.progress()
            yield run
        finally:
            run.stop()
            remove_exporter()


def test_killed_collector(live):
    live.until(lambda: any(e.actor == 0 for e in live.stored()), "the collector has collected")
    restarts = live.ask("learner", "status")["actor_restarts"]
    published = live.ask("learner", "version")
    pid = live.kill("actor-0")
    gone(pid, "the collector")
    number = max(live.ask(f"replay-{i}", "next_number", 0) for i in range(2))
    live.replaced("actor-0", pid)
    live.progress()
    live.until(lambda: "learner: actor 0 is back in a new process" in live.events(), "its restart is told")
    assert live.ask("learner", "status")["actor_restarts"] == restarts + 1

    def own():
        return {e.number: e for e in live.stored() if e.actor == 0}

    last = live.until(lambda: (newest := max(own())) > number and newest, "the new process has collected")
    # Lost was the episode in flight and no other, whose number is then the next one's. (Shards are asked one after the
    # other: of what is stored between two of these questions only a part would be heard of.)
    episodes = {n: e for n, e in own().items() if n <= last}
    assert sorted(episodes) == list(range(len(episodes)))
    assert all(e.oldest_weights >= published > GENERATION for e in episodes.values() if e.number > number)


def test_killed_shard(live):
    def inserted():
        return live.ask("replay-0", "episodes_since", 0).totals.episodes

    # Stopped first, so that inserts, batches and pages are surely under way when it is killed.
    pid = live.kill("replay-1", signal.SIGSTOP)
    there = inserted()
    live.until(lambda: live.ask("learner", "status")["seconds_since_progress"] > 4, "the learner waits for it")
    # Nothing piles up meanwhile, in the other shard or on the way: what the pace allows, and one for each collector.
    cluster = live.seeds[0].config.cluster
    assert inserted() - there <= math.ceil(cluster.pace.max_backlog / 20) + cluster.actors

    def in_flight():
        served = scrape(cluster.metrics_port)
        return [served.get(("qttdm_calls_in_flight", "0", "actor", str(i), "inserts")) for i in range(2)]

    gauges = live.until(lambda: None not in (now := in_flight()) and now, "both collectors tell of their calls")
    assert max(gauges) <= 1
    before = live.ask("learner", "status")
    os.kill(pid, signal.SIGKILL)
    live.replaced("replay-1", pid)
    live.progress()
    episodes = live.stored()
    assert len({(e.actor, e.number) for e in episodes}) == len(episodes) >= before["episodes"]


def test_killed_learner(live):
    run_dir = live.seeds[0].run_dir
    live.until(lambda: any(run_dir.checkpoints_dir.glob("[0-9]*-step-*")), "a first checkpoint")
    before = live.ask("learner", "status")
    pid = live.kill("learner", signal.SIGSTOP)  # so that no newer checkpoint comes between this line and the next
    kept = newest_checkpoint(run_dir).meta
    os.kill(pid, signal.SIGKILL)
    live.replaced("learner", pid)
    published = live.until(lambda: live.ask("learner", "version"), "the new learner publishes")
    after = live.ask("learner", "status")
    live.progress()
    # The updates since the checkpoint were lost, no decision was, and nobody took old weights for new ones.
    assert f"learner: goes on from the checkpoint at {kept['pace']['updates']} updates" in live.events()
    assert after["decisions"] >= kept["pace"]["decisions"]
    assert live.ask("learner", "status")["decisions"] >= before["decisions"]
    generation = before["version"] // GENERATION + 1
    assert published // GENERATION == generation
    assert live.versions == sorted(live.versions)

    def newest():
        return [max(e.oldest_weights for e in live.stored() if e.actor == actor) for actor in range(2)]

    live.until(lambda: min(newest()) // GENERATION == generation, "every collector acts on the new learner's weights")


def test_killed_evaluator(live):
    live.until(lambda: live.status.get("eval_env_steps", 0) > 0, "a first evaluation")
    pid = live.kill("evaluator", signal.SIGSTOP)  # so that some are surely under way when it is killed
    asked = live.ask("learner", "status")["env_steps"]
    live.until(lambda: live.ask("learner", "status")["env_steps"] > asked + 2 * 800, "learning goes on meanwhile")
    live.progress()
    os.kill(pid, signal.SIGKILL)
    live.replaced("evaluator", pid)
    live.until(lambda: live.status.get("eval_env_steps", 0) > asked + 2 * 800, "evaluations that were under way")
    steps = [line["env_steps"] for line in read_metrics(live.seeds[0].run_dir.metrics_path) if line["kind"] == "eval"]
    assert len({step // 800 for step in steps}) == len(steps)


def test_the_books_are_right_after_all_that(live):
    live.progress()
    live.stop()
    books = check_books(live.seeds[0])
    # One evaluation for each multiple of the interval: written, or to be asked for by whoever goes on from here.
    waiting = [*books.meta["due"], *(counts for counts, *_ in books.meta["handed_in"])]
    steps = sorted(counts["env_steps"] for counts in [*books.evals, *waiting])
    assert [step // 800 for step in steps] == list(range(1, len(steps) + 1))
    assert len(steps) == books.meta["counters"]["env_steps"] // 800

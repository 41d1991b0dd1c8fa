"""What hangs or raises is noticed, replaced and counted, the log says why, and training goes on."""

from __future__ import annotations

import signal

import pytest

from tests.remote.live import Live, check_books, settings

pytestmark = pytest.mark.ray

TOY = ["env={action_repeat: 4, episode_steps: 80}", "training.eval_every=1000000"]


@pytest.mark.parametrize("name", ["Sleeps", "HoldsTheLock"])
def test_an_environment_that_hangs(cluster, tmp_path, name):
    config = settings(*TOY, "cluster={hang_seconds: 10}", task=f"gym/tests.remote.faulty:{name}-v0")
    with Live(cluster, tmp_path / "run", [config]) as live:
        live.until(lambda: live.status.get("environment_failures", 0) >= 2, "two hangs are counted")
        live.progress()
    books = check_books(live.seeds[0])
    failures = books.meta["counters"]["environment_failures"]
    assert failures >= 2
    assert live.events().count("replaced its environments: hung, see") == failures
    assert books.meta["counters"]["actor_restarts"] >= failures
    stacks = [path.read_text() for path in (live.seeds[0].run_dir.path / "hung").glob("actor-*.*.txt")]
    assert len(stacks) >= failures
    assert all("faulty.py" in stack for stack in stacks)  # where it hung


def test_an_environment_that_raises(cluster, tmp_path):
    with Live(cluster, tmp_path / "run", [settings(*TOY, task="gym/tests.remote.faulty:Fails-v0")]) as live:
        live.until(lambda: live.status.get("environment_failures", 0) >= 2, "two failures are counted")
        live.progress()
    books = check_books(live.seeds[0])
    assert books.meta["counters"]["environment_failures"] >= 2
    assert books.meta["counters"]["actor_restarts"] == 0
    assert "the simulation has become unstable" in live.events()


@pytest.mark.parametrize("name", ["actor-0", "replay-0", "learner", "evaluator"])
def test_a_process_that_no_longer_answers(cluster, tmp_path, name):
    with Live(cluster, tmp_path / "run", [settings("cluster.heartbeat_seconds=5")]) as live:
        live.progress()
        pid = live.kill(name, signal.SIGSTOP)
        live.replaced(name, pid)
        live.progress()
        assert live.seeds[0].restarts[name] >= 1
    check_books(live.seeds[0])
    assert f"driver: {name} has not answered for" in live.events()

"""Every kind of process is killed in the middle of a live run: it goes on, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.weights import GENERATION, updates_of
from deploy.cluster import old_seeds
from deploy.trained import newest_checkpoint
from tests.remote.live import SMALL, Live, check_books, nothing_is_left, objects_stored, settings, until

pytestmark = pytest.mark.ray


def test_killed_collector(cluster, tmp_path):
    with Live(cluster, tmp_path / "run", [settings()]) as live:
        live.progress()
        published = live.ask("learner", "version")
        pid = live.kill("actor-0")
        until(lambda: not Path(f"/proc/{pid}").exists(), "it is gone")
        number = max(live.ask(f"replay-{i}", "next_number", 0) for i in range(2))
        live.replaced("actor-0", pid)
        live.progress(episodes=8)
        live.until(lambda: live.ask("learner", "status")["actor_restarts"] == 1, "it is counted")
    books = check_books(live.seeds[0])
    assert books.meta["counters"]["actor_restarts"] == 1
    assert "learner: actor 0 is back in a new process" in live.events()
    # The episode in flight was lost, no other: its number is the next one's, which had the learner's newest weights.
    [first] = [e for e in [*books.stored, *books.later] if (e.actor, e.number) == (0, number)]
    assert first.oldest_weights >= published > GENERATION
    assert len({e.number for e in books.stored if e.actor == 0}) > number


def test_killed_shard(cluster, tmp_path):
    with Live(cluster, tmp_path / "run", [settings()]) as live:
        live.progress()
        # Stopped first, so that inserts, batches and news are surely under way when it is killed.
        pid = live.kill("replay-1", signal.SIGSTOP)
        live.until(lambda: live.ask("learner", "status")["seconds_since_progress"] > 2, "the learner waits for it")
        os.kill(pid, signal.SIGKILL)
        live.replaced("replay-1", pid)
        live.progress()
    check_books(live.seeds[0])


def test_killed_learner(cluster, tmp_path):
    with Live(cluster, tmp_path / "run", [settings()]) as live:
        run_dir = live.seeds[0].run_dir
        live.progress()
        live.until(lambda: any(run_dir.checkpoints_dir.glob("*-step-*")), "a first checkpoint")
        before = live.ask("learner", "status")
        pid = live.kill("learner", signal.SIGSTOP)  # so that no newer checkpoint comes between this line and the next
        kept = newest_checkpoint(run_dir).meta
        os.kill(pid, signal.SIGKILL)
        live.replaced("learner", pid)
        after = live.until(lambda: live.ask("learner", "status"), "the new learner answers")
        live.progress()
        live.until(lambda: live.ask("actor-0", "alive"), "collectors live on")
    books = check_books(live.seeds[0])
    # The updates since the checkpoint were lost, no decision was, and nobody took old weights for new ones.
    assert f"learner: goes on from the checkpoint at {kept['pace']['updates']} updates" in live.events()
    assert after["decisions"] >= kept["pace"]["decisions"]
    assert books.meta["counters"]["decisions"] >= before["decisions"]
    assert after["version"] // GENERATION == 2
    assert live.versions == sorted(live.versions)
    newest = max(books.stored, key=lambda e: e.newest_weights)
    assert newest.oldest_weights // GENERATION == 2  # the collectors did take the new learner's
    assert books.meta["counters"]["actor_restarts"] == 0


def test_killed_evaluator(cluster, tmp_path):
    with Live(cluster, tmp_path / "run", [settings()]) as live:
        live.until(lambda: live.status.get("eval_env_steps", 0) > 0, "a first evaluation")
        pid = live.kill("evaluator", signal.SIGSTOP)  # so that some are surely under way when it is killed
        asked = live.ask("learner", "status")["env_steps"]
        live.until(lambda: live.ask("learner", "status")["env_steps"] > asked + 2 * 800, "learning goes on meanwhile")
        live.progress()
        os.kill(pid, signal.SIGKILL)
        live.replaced("evaluator", pid)
        live.until(lambda: live.status.get("eval_env_steps", 0) > asked + 2 * 800, "evaluations that were under way")
    books = check_books(live.seeds[0])
    # One for each multiple of the interval: written, or to be asked for again by whoever goes on from here.
    waiting = [*books.meta["due"], *(counts for counts, *_ in books.meta["handed_in"])]
    steps = sorted(counts["env_steps"] for counts in [*books.evals, *waiting])
    assert [step // 800 for step in steps] == list(range(1, len(steps) + 1))
    assert len(steps) == books.meta["counters"]["env_steps"] // 800


def command(cluster, folder: Path, *words: str) -> subprocess.Popen:
    """`qttdm cluster WORDS` as a process of its own."""
    environment = os.environ | {"RAY_ADDRESS": cluster.address, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", "cluster", *words, "--runs-dir", str(folder)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_killed_driver(cluster, tmp_path):
    objects = objects_stored()[0]
    sets = [f"--set={item}" for item in (*SMALL, "training={env_steps: 4800, eval_every: 2400}")]
    driver = command(cluster, tmp_path, "train", "--preset=debug", "--name=run", "--seeds=0", *sets)
    checkpoints = tmp_path / "run" / "seed-0" / "checkpoints"
    try:
        until(lambda: driver.poll() is not None or any(checkpoints.glob("*-step-*")), "a first checkpoint")
    finally:
        driver.kill()
    output, _ = driver.communicate()
    assert driver.returncode == -signal.SIGKILL, output
    nothing_is_left(cluster, objects)
    [seed] = old_seeds(tmp_path / "run")
    assert seed.state == "queued"

    resumed = command(cluster, tmp_path, "resume", "run")
    output, _ = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, output
    nothing_is_left(cluster, objects)
    [seed] = old_seeds(tmp_path / "run")
    assert seed.state == "finished"
    books = check_books(seed)
    assert books.meta["counters"]["env_steps"] >= 4800
    assert "goes on from the checkpoint" in seed.run_dir.events_path.read_text()
    assert {line["env_steps"] // 2400 for line in books.evals} >= {1, 2}
    assert updates_of(max(e.newest_weights for e in books.stored)) <= books.meta["pace"]["updates"]

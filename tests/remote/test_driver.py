"""The driver dies, the whole cluster dies, someone stops the run: `resume` goes on, and ends what was begun."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qttdm.common.weights import updates_of
from qttdm.deploy.cluster.cluster_run import old_seeds
from qttdm.deploy.cluster.seed_run import SeedRun
from qttdm.deploy.runs.trained import newest_checkpoint
from tests.remote.live import PATIENCE, SMALL, TASK, check_books, nothing_is_left, objects_stored, until, workers
from tests.remote.nodes import Nodes

pytestmark = pytest.mark.ray


def command(address: str, folder: Path, *words: str) -> subprocess.Popen:
    """`qttdm cluster WORDS` as a process of its own."""
    if words[0] in ("train", "resume"):
        words = (*words, "--runs-dir", str(folder))
    return subprocess.Popen(
        [sys.executable, "-m", "qttdm.deploy.cli.main", "cluster", *words],
        env=os.environ | {"RAY_ADDRESS": address, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def train(address: str, folder: Path, env_steps: int) -> subprocess.Popen:
    """A run of one seed that ends."""
    own = [*SMALL, "cluster={actors: 1, shards: 1}", f"training={{env_steps: {env_steps}, eval_every: 1600}}"]
    sets = [f"--set={item}" for item in own]
    return command(address, folder, "train", "--preset=debug", f"--task={TASK}", "--name=run", "--seeds=0", *sets)


def answer(process: subprocess.Popen) -> str:
    """What it printed; it must end well."""
    try:
        output, _ = process.communicate(timeout=3 * PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


def wait_for_checkpoints(process: subprocess.Popen, folder: Path, beyond: int = 0) -> int:
    """Until the run has one at more environment steps than that; returns its steps."""

    def newest() -> int:
        assert process.poll() is None, process.communicate()[0]
        whole = (folder / "run/seed-0/checkpoints").glob("[0-9]*-step-*")
        steps = [int(path.name.rpartition("-")[2]) for path in whole]
        return max((s for s in steps if s > beyond), default=0)

    return until(newest, f"a checkpoint beyond {beyond} steps")


def only_seed(folder: Path) -> SeedRun:
    [seed] = old_seeds(folder / "run")
    return seed


def test_a_run_goes_on_after_the_cluster_and_the_driver_died_and_a_stop_until_it_is_finished(cluster, tmp_path):
    objects = objects_stored()[0]
    doomed = Nodes(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 80 * 2**20})
    driver = train(doomed.address, tmp_path, env_steps=4800)
    wait_for_checkpoints(driver, tmp_path)
    processes = list(workers(doomed))
    doomed.head_node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    driver.kill()
    driver.communicate()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), "its processes have ended")
    assert only_seed(tmp_path).state == "queued"
    kept = newest_checkpoint(only_seed(tmp_path).run_dir).meta["counters"]

    driver = command(cluster.address, tmp_path, "resume", "run")  # on another cluster
    steps = wait_for_checkpoints(driver, tmp_path, beyond=kept["env_steps"])
    driver.kill()
    driver.communicate()
    nothing_is_left(cluster, objects)

    driver = command(cluster.address, tmp_path, "resume", "run")
    wait_for_checkpoints(driver, tmp_path, beyond=steps)
    stopped = answer(command(cluster.address, tmp_path, "stop", "run"))
    assert "stopped; go on with: qttdm cluster resume run" in stopped
    assert "saved; go on with: qttdm cluster resume run" in answer(driver)
    nothing_is_left(cluster, objects)
    seed = only_seed(tmp_path)
    assert seed.state == "queued"
    check_books(seed)
    a_replay_that_is_gone_is_gone_on_without_only_if_asked_for(cluster, tmp_path / "without", tmp_path / "run")
    nothing_is_left(cluster, objects)

    answer(command(cluster.address, tmp_path, "resume", "run"))
    nothing_is_left(cluster, objects)
    seed = only_seed(tmp_path)
    assert seed.state == "finished"
    books = check_books(seed)
    assert books.meta["counters"]["env_steps"] >= 4800
    assert books.meta["counters"]["episodes"] > kept["episodes"]
    assert {line["env_steps"] // 1600 for line in books.evals} == {1, 2, 3}
    assert seed.run_dir.events_path.read_text().count("goes on from the checkpoint") == 3
    assert updates_of(max(e.newest_weights for e in books.stored)) <= books.meta["pace"]["updates"]

    generation = (seed.run_dir.path / "generation").read_text()
    answer(command(cluster.address, tmp_path, "resume", "run"))  # there is nothing left to do, and nothing is done
    assert (seed.run_dir.path / "generation").read_text() == generation
    assert check_books(only_seed(tmp_path)).lines == books.lines
    nothing_is_left(cluster, objects)


def a_replay_that_is_gone_is_gone_on_without_only_if_asked_for(cluster, folder: Path, run: Path) -> None:
    """In a copy of a run that was stopped."""
    shutil.copytree(run, folder / "run")
    shutil.rmtree(folder / "run/seed-0/replay")
    refused = command(cluster.address, folder, "resume", "run")
    said, _ = refused.communicate(timeout=3 * PATIENCE)
    assert refused.returncode == 1, said
    assert "decisions in replay, its shards have had 0 (shard 0: all from number 0 to " in said
    assert "--accept-losses" in said

    more = str(newest_checkpoint(only_seed(folder).run_dir).meta["counters"]["env_steps"] + 800)
    answer(command(cluster.address, folder, "resume", "run", "--accept-losses", "--env-steps", more))
    seed = only_seed(folder)
    assert seed.state == "finished"
    assert "goes on with those, as was asked for" in seed.run_dir.events_path.read_text()
    assert newest_checkpoint(seed.run_dir).meta["counters"]["env_steps"] >= int(more)

"""One machine and a cluster take each other's runs: nothing is lost, doubled or learned from twice."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from qttdm.common.run_dir import RunDir
from qttdm.deploy.cluster.cluster_run import old_seeds
from qttdm.deploy.runs.local import new_run, resume_run
from qttdm.deploy.screens.progress import Progress
from tests.remote.live import Live, check_books, settings

pytestmark = pytest.mark.ray


def train_here(run, episodes):
    """On this machine, until so many more episodes are in replay."""
    first = run.loop.counters.episodes
    progress = Progress(10**6, console=Console(file=io.StringIO()))
    run.train(progress, time_is_up=lambda: run.loop.counters.episodes >= first + episodes)
    run.close()


def train_there(cluster, directory, episodes):
    """On the cluster, until so many are in replay in all; returns the seed."""
    with Live(cluster, directory, [], seeds=old_seeds(directory)) as live:
        live.until(lambda: live.status.get("episodes", 0) >= episodes, f"{episodes} episodes")
        live.stop()
    return live.seeds[0]


def test_one_machine_goes_on_with_a_clusters_run(cluster, tmp_path):
    with Live(cluster, tmp_path / "run", [settings()]) as live:
        live.progress()
        live.stop()
    before = check_books(live.seeds[0])
    train_here(resume_run(live.seeds[0].run_dir), episodes=12)
    here = check_books(live.seeds[0])
    assert here.meta["pace"]["updates"] >= before.meta["pace"]["updates"] + 10 * 20


def test_there_and_back(cluster, tmp_path):
    run = new_run(settings("device=cpu"), RunDir.create(tmp_path / "run"))
    train_here(run, episodes=12)
    seed = train_there(cluster, tmp_path / "run", 18)
    check_books(seed)
    train_here(resume_run(run.run_dir), episodes=4)
    check_books(seed)

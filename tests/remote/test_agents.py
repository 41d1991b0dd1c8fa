"""Agents that are not QT-TDM on a cluster: the simulator's through the planner service, and one of a user's own."""

from __future__ import annotations

import pytest

from tests.remote.live import Live, check_books, settings, status_of

pytestmark = pytest.mark.ray


def test_the_simulator_s_agent_through_the_planner_service_and_an_own_agent(cluster, tmp_path):
    service = "cluster={planning: service, actors: 1, shards: 1, planner_cpus: 0.25}"
    configs = [
        settings(service, task="dmc/cartpole-swingup", agent="simulator-shooting"),
        settings("cluster={actors: 1, shards: 1}", agent="tests.deploy.agents.own_agent:Curious", seed=1),
    ]
    with Live(cluster, tmp_path / "run", configs) as live:
        live.until(lambda: live.seeds[0].status, "the first learner answers")
        live.until(lambda: live.ask("planner-0", "__ray_call__", status_of)["answers"] > 20, "the service plans")
        live.progress()
        live.until(lambda: live.seeds[1].status.get("updates", 0) > 40, "the own agent learns")
        live.until(lambda: "eval_return" in live.seeds[1].status, "and is evaluated")
    assert [(seed.state, seed.error) for seed in live.seeds] == [("stopped", "")] * 2
    check_books(live.seeds[0])

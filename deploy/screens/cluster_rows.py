"""Show a run on a cluster, from its driver's status."""

from __future__ import annotations

from typing import Any

from qttdm.deploy.screens.rows import Row, View


def cluster_view(run: dict[str, Any], title: str = "") -> View:
    """Make a row for each seed of ClusterRun.status."""
    return View(title, [_row(seed, run["env_steps"]) for seed in run["seeds"]])


def _row(seed: dict[str, Any], target: int) -> Row:
    done, spent, seconds = seed.get("env_steps", 0), seed.get("spent", {}), seed.get("wall_seconds")
    waited = spent.get("waiting_for_decisions", 0.0) + spent.get("waiting_for_batches", 0.0)
    return Row(
        seed=seed["seed"],
        state=seed["state"],
        env_steps=done,
        target=target,
        seconds_left=seconds * max(0.0, target / done - 1) if seconds and done else None,
        episode_return=seed.get("episode_return"),
        eval_return=seed.get("eval_return"),
        updates_per_second=seed.get("updates_per_second"),
        decisions_per_second=seed.get("decisions_per_second"),
        idle=waited / max(1e-9, seed["seconds"]) if spent else None,
        fill=seed.get("replay_fill"),
        staleness=seed.get("staleness"),
        restarts=seed.get("actor_restarts", 0) + seed.get("environment_failures", 0) + seed.get("hung", 0),
    )

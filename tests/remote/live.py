"""A real run on the session's cluster that a test can look into and kill parts of, and what must be so when it is over.

with Live(cluster, directory, [settings()]) as live:     starts it, in a thread
    live.until(lambda: live.episodes() > 5, "it trains")
    live.kill("actor-0")
    ...
    live.stop()
check_books(live.seeds[0])                               counters, episodes, pace, versions
                                                         (nothing is left in the cluster: checked on leaving)
"""

from __future__ import annotations

import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray._private.internal_api import memory_summary

from qttdm.common.config import load_config
from qttdm.common.metrics.lines import read_metrics
from qttdm.common.weights import GENERATION
from qttdm.deploy.cluster.cluster_run import ClusterRun, new_seeds
from qttdm.deploy.cluster.exporter_actor import NAME as EXPORTER
from qttdm.deploy.cluster.seed_run import ENDED, SeedRun
from qttdm.deploy.configs.cluster_config import NAMESPACE
from qttdm.deploy.configs.run_config import RunConfig, preset_path
from qttdm.deploy.runs.trained import newest_checkpoint
from qttdm.planner_service.remote import PlannerActor
from qttdm.replay.feed import StoredEpisode, Totals
from qttdm.replay.shard import ReplayShard

PATIENCE = 900.0  # seconds for anything to happen: a busy machine is slow, and nothing here asserts a speed

TASK = "gym/tests.fakes:FakePoint-v0"
SMALL = [
    "env={action_repeat: 4, episode_steps: 80}",
    "qt-tdm.tdm={num_layers: 1, head_layers: 1}",
    "qt-tdm.planner={horizon: 2, samples: 8, qt_samples: 2}",
    "training={env_steps: 1000000, eval_every: 800, checkpoint_every: 800}",
    "cluster={actors: 2, shards: 2, metrics_port: null}",
    "replay.capacity=100000",
]
"""The debug preset with smaller networks, a toy task and no end in sight: 20 decisions an episode, a checkpoint every
10 of them."""


def settings(*overrides: str, task: str = TASK, seed: int = 0, agent: str = "qt-tdm") -> RunConfig:
    """SMALL, and these; of another agent its debug settings."""
    small = [item for item in SMALL if agent == "qt-tdm" or not item.startswith("qt-tdm.")]
    overrides = (*small, *overrides)
    return load_config(RunConfig, preset_path("debug"), overrides=overrides, task=task, seed=seed, agent=agent)


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait for it; returns what it returned. AssertionError, saying what, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return answer


def status_of(planner: PlannerActor) -> dict[str, Any]:
    """Say how a planner is doing. Runs in its process."""
    return planner.service.status()


def gone(pid: int, what: str) -> None:
    """Wait until there is no such process."""
    until(lambda: not Path(f"/proc/{pid}").exists(), f"{what} is gone")


class Live:
    """A ClusterRun in a thread of its own, with hands to kill its processes by. A context."""

    def __init__(self, cluster: Any, directory: Path, configs: Sequence[RunConfig], seeds: Any = None) -> None:
        """seeds: those of a run that is resumed, instead of new ones with `configs`."""
        self.cluster = cluster
        self.objects = objects_stored()[0]
        self.seeds: list[SeedRun] = seeds or new_seeds(directory, configs)
        self.run = ClusterRun(directory, self.seeds)
        self.versions: list[int] = []
        """of the first seed's learner, as it told them"""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.run.run, args=(lambda notice: None, self._should_stop))

    def __enter__(self) -> Live:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        nothing_is_left(self.cluster, self.objects)

    @property
    def status(self) -> dict[str, Any]:
        """What the first seed's learner said last."""
        return self.seeds[0].status

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """As the function; fails at once when a seed did, with the reason."""

        def ended_or_so() -> Any:
            assert self._thread.is_alive(), [(seed.state, seed.error) for seed in self.seeds]
            return condition()

        return until(ended_or_so, f"{what}; the learner said {self.status}")

    def progress(self, episodes: int = 6, updates: int = 40) -> None:
        """Wait until so much more has been collected and learned, by processes that are there now."""
        self.until(lambda: self.status, "the learner answers")
        # What was said before may be a dead learner's, which had more.
        first = self.ask("learner", "status")
        self.until(
            lambda: (
                (now := self.ask("learner", "status"))
                and now["episodes"] >= first.get("episodes", 0) + episodes
                and now["updates"] >= first.get("updates", 0) + updates
            ),
            f"{episodes} more episodes and {updates} more updates",
        )

    def ask(self, name: str, method: str, *arguments: Any) -> Any:
        """An answer of the first seed's actor of that name, given while it works."""
        call = getattr(ray.get_actor(f"{self.seeds[0].name}/{name}", namespace=NAMESPACE), method)
        if not name.startswith("planner-"):  # which is async
            call = call.options(concurrency_group="control")
        return ray.get(call.remote(*arguments), timeout=PATIENCE)

    def pid(self, name: str) -> int:
        """The operating system's number of the process that an actor is in."""
        return self.ask(name, "__ray_call__", lambda self: os.getpid())

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send the first seed's actor of that name a signal; returns the number of its process."""
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    def stored(self) -> list[StoredEpisode]:
        """Of the first seed, all that its shards hold now."""
        episodes = []
        for shard in range(self.seeds[0].config.cluster.shards):
            cursor, more = 0, True
            while more:
                page = self.ask(f"replay-{shard}", "episodes_since", cursor)
                episodes += page.episodes
                more, cursor = page.cursor > cursor, page.cursor
        return episodes

    def replaced(self, name: str, pid: int) -> int:
        """Wait until the actor is in another process; returns its number."""
        gone(pid, f"{name}'s old process")
        new = self.pid(name)
        assert new != pid
        return new

    def end(self) -> None:
        """Wait until all seeds have ended by themselves."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), [(seed.state, seed.status) for seed in self.seeds]

    def stop(self) -> None:
        """As `qttdm cluster stop`; returns when it has."""
        self._stop.set()
        self.end()
        assert all(seed.state in ENDED for seed in self.seeds)

    def events(self) -> str:
        """The first seed's events.log."""
        return self.seeds[0].run_dir.events_path.read_text()

    def _should_stop(self) -> bool:
        version = self.status.get("version", -1)
        if version >= 0 and version not in self.versions[-1:]:  # the first is not published at once
            self.versions.append(version)
        return self._stop.is_set()


def nothing_is_left(cluster: Any, objects: int) -> None:
    """Wait until the cluster is empty, but for the exporter, which outlives runs.

    objects: those that may be in its stores.
    """

    def left() -> dict[str, Any]:
        names = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
        found = {
            "actors": names - {EXPORTER},
            "placement groups": [
                group["name"] for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"
            ],
            "processes": workers(cluster),
            "objects": max(0, objects_stored()[0] - objects),
            "CPUs": round(ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0), 3),
        }
        return {what: there for what, there in found.items() if there}

    deadline = time.monotonic() + PATIENCE
    while there := left():
        assert time.monotonic() < deadline, there
        time.sleep(0.2)


RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::ExporterActor")
"""titles of a node's processes while nobody uses it, and of the exporter's"""


def workers(cluster: Any, nodes: Any = None) -> dict[int, str]:
    """Number and title of every process that is working for someone, on these nodes or on all."""
    nodes = nodes or [cluster.head_node, *cluster.worker_nodes]
    raylets = {p.process.pid for node in nodes for p in node.all_processes.get("raylet", [])}
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # it ended just now
            continue
        if parent in raylets and title.startswith("ray::") and not title.startswith(RAYS_OWN):
            found[int(folder.name)] = title
    return found


def objects_stored() -> tuple[int, float]:
    """Objects in the object stores of all nodes, and their MiB."""
    text = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    found = re.search(r"Plasma memory usage (\d+) MiB, (\d+) objects", text)
    assert found, text
    return int(found[2]), float(found[1])


@dataclass
class Books:
    """All that a seed left on disk about its episodes."""

    stored: list[StoredEpisode]
    """in all shards, those that the newest checkpoint counts"""
    later: list[StoredEpisode]
    """in all shards, stored after it"""
    totals: Totals
    """the shards'"""
    train: list[dict[str, Any]]
    """lines of metrics.jsonl"""
    evals: list[dict[str, Any]]
    meta: dict[str, Any]
    """the newest checkpoint's"""
    lines: list[dict[str, Any]] = field(default_factory=list)
    """all"""

    @staticmethod
    def of(seed: SeedRun) -> Books:
        """Opens the shards' directories, so nobody else may have them open."""
        newest = newest_checkpoint(seed.run_dir)
        meta = newest.meta
        s = seed._replay_settings()
        stored, later, totals = [], [], Totals()
        for i in range(seed.config.cluster.shards):
            folder = seed.run_dir.path / "replay" / f"shard-{i}"
            shard = ReplayShard(folder, s.config, s.data, seed=0)
            since, end = 0, False
            while not end:
                page = shard.episodes_since(since)
                for episode in page.episodes:
                    (stored if episode.sequence < meta["cursors"][i] else later).append(episode)
                end, since = page.cursor == since, page.cursor
            t = page.totals
            totals = Totals(
                totals.episodes + t.episodes, totals.decisions + t.decisions, totals.env_steps + t.env_steps
            )
            assert page.lost == []
            shard.close()
        lines = read_metrics(seed.run_dir.metrics_path)
        train, evals = ([line for line in lines if line["kind"] == kind] for kind in ("train", "eval"))
        return Books(stored, later, totals, train, evals, meta, lines)


def check_books(seed: SeedRun) -> Books:
    """Every episode stored and counted once, counters and pace right, versions only growing; then all of it."""
    books = Books.of(seed)
    counters = books.meta["counters"]
    everything = [*books.stored, *books.later]

    # Stored once, and none lost of those that were told of.
    assert len({(e.actor, e.number) for e in everything}) == len(everything)
    assert books.totals == Totals(
        len(everything), sum(e.decisions for e in everything), sum(e.env_steps for e in everything)
    )
    # The lines are exactly the episodes, and the counters are their sums.
    assert sorted((line["actor"], line["episode_length"], line["episode_return"]) for line in books.train) == sorted(
        (e.actor, e.decisions, e.episode_return) for e in books.stored
    )
    assert [line["episodes"] for line in books.train] == list(range(1, len(books.train) + 1))
    assert [line["decisions"] for line in books.train] == cumulated(line["episode_length"] for line in books.train)
    assert counters["episodes"] == len(books.stored)
    assert counters["decisions"] == books.meta["pace"]["decisions"] == sum(e.decisions for e in books.stored)
    assert counters["env_steps"] == sum(e.env_steps for e in books.stored)
    # Evaluations are each of another step.
    steps = [line["env_steps"] for line in books.evals]
    assert len(set(steps)) == len(steps)
    # Weights only grow: along each actor's episodes, and no learner is younger than what it was collected with.
    for actor in {e.actor for e in everything}:
        own = sorted((e for e in everything if e.actor == actor), key=lambda e: e.number)
        versions = [v for e in own for v in (e.oldest_weights, e.newest_weights)]
        assert versions == sorted(versions), versions
    generation = int((seed.run_dir.path / "generation").read_text())
    assert max(e.newest_weights for e in everything) < (generation + 1) * GENERATION
    check_pace(seed, books)
    return books


def check_pace(seed: SeedRun, books: Books) -> None:
    """Updates against decisions: never ahead; behind by no more than the backlog allowed and what was in flight.

    A learner that was killed has fewer updates than its decisions ask for until it has caught up; so the second holds
    for the end, and `behind` says it for the lines of a run whose learner lived.
    """
    pace = books.meta["pace"]
    backlog = updates_due(seed.config, pace["decisions"]) - pace["updates"]
    assert backlog >= 0
    for line in books.lines:
        assert line["updates"] <= updates_due(seed.config, line["decisions"]), line
    if books.meta["finished"]:
        assert backlog < 1


def updates_due(config: RunConfig, decisions: int) -> float:
    """Updates that so many decisions ask for."""
    return max(0.0, config.training.update_ratio * (decisions - config.training.seed_decisions))


def behind(config: RunConfig, books: Books) -> float:
    """The most updates that any line was behind its decisions."""
    return max(updates_due(config, line["decisions"]) - line["updates"] for line in books.lines)


def tolerance(config: RunConfig, decisions: int = 20) -> float:
    """What `behind` may be: the backlog allowed, and an episode of so many decisions in flight in every environment."""
    c = config.cluster
    return math.ceil(c.pace.max_backlog + config.training.update_ratio * c.actors * c.envs_per_actor * decisions)


def cumulated(values: Any) -> list[int]:
    """1, 2, 3 -> 1, 3, 6."""
    sums, total = [], 0
    for value in values:
        total += value
        sums.append(total)
    return sums

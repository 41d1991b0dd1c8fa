"""`qttdm top`: all runs of a cluster, live in a terminal, from the exporter's metrics.

exporter --/metrics, every 2 s--> Scrape --two of them--> a table for each run, and what is wrong
"""

from __future__ import annotations

import time
import urllib.request
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from qttdm.common.config import ConfigError
from qttdm.deploy.screens.display import Display
from qttdm.deploy.screens.rows import Row, View, print_views, short_time, time_left

EVERY = 2.0  # seconds between two scrapes; processes report that often
SPEED_OVER = 30.0  # seconds over which speeds are taken
STUCK = 120.0  # seconds without an update or an episode that are worth a line
DISK = 0.1  # free share of a disk below which it is worth a line


@dataclass(frozen=True)
class Scrape:
    """All samples that the exporter served at one time."""

    time: float
    """seconds, of any clock"""
    samples: dict[str, list[tuple[dict[str, str], float]]]
    """by name: labels and value"""

    @staticmethod
    def of(text: str, now: float) -> Scrape:
        """Parse what /metrics answers."""
        samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
        return Scrape(now, samples)

    def series(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """Select the samples that have these labels."""
        found = self.samples.get(name, [])
        return [(own, value) for own, value in found if labels.items() <= own.items()]

    def most(self, name: str, **labels: str) -> float | None:
        """Return the largest value; None if there is none."""
        return max((value for _, value in self.series(name, **labels)), default=None)

    def total(self, name: str, **labels: str) -> float:
        """Add up the values."""
        return sum(value for _, value in self.series(name, **labels))


def row(old: Scrape, new: Scrape, labels: dict[str, str]) -> Row:
    """Make a seed's row; speeds and idle time are between the two scrapes."""

    def speed(name: str, **more: str) -> float | None:
        which = labels | more
        known = old.series(name, **which) and new.series(name, **which) and new.time > old.time
        return (new.total(name, **which) - old.total(name, **which)) / (new.time - old.time) if known else None

    done, target = new.most("qttdm_env_steps_total", **labels), new.most("qttdm_target_env_steps", **labels)
    all_time = speed("qttdm_learner_seconds_total")
    waits = ("waiting_for_decisions", "waiting_for_batches")
    waited = sum(speed("qttdm_learner_seconds_total", activity=activity) or 0.0 for activity in waits)
    decisions = new.total("qttdm_replay_decisions", **labels)
    capacity = new.total("qttdm_replay_capacity_decisions", **labels)
    return Row(
        seed=int(labels["seed"]),
        state=next((own["state"] for own, value in new.series("qttdm_seed_state", **labels) if value), "-"),
        steps=done or 0,
        target=target or 0,
        seconds_left=time_left(done, target, new.most("qttdm_run_seconds", **labels)),
        episode_return=new.most("qttdm_episode_return_last", **labels),
        eval_return=new.most("qttdm_evaluation_return", **labels),
        updates_per_second=speed("qttdm_updates_total"),
        decisions_per_second=speed("qttdm_decisions_total"),
        idle=waited / all_time if all_time else None,
        fill=decisions / capacity if capacity else None,
        staleness=new.most("qttdm_staleness_updates", **labels),
        restarts=new.total("qttdm_process_restarts_total", **labels),
    )


def troubles(scrape: Scrape, run: str) -> list[str]:
    """List what a person should look at, a line each: docs/operations.md."""
    lines = []
    for own, up in scrape.series("qttdm_process_up", run=run):
        if not up:
            age = scrape.most("qttdm_process_heartbeat_age_seconds", **own)
            lines.append(f"seed {own['seed']}: {own['component']} {own['index']} is silent for {short_time(age)}")
    for own, age in scrape.series("qttdm_progress_age_seconds", run=run):
        if age > STUCK:
            lines.append(f"seed {own['seed']}: no update and no episode for {short_time(age)}")
    for own, number in scrape.series("qttdm_failures_total", run=run):
        if number:
            lines.append(f"seed {own['seed']}: {number:.0f} of {own['component']} {own['index']}: {own['kind']}")
    disks = {
        own["seed"]: free / (scrape.most("qttdm_disk_size_bytes", **own) or 1)
        for own, free in scrape.series("qttdm_disk_free_bytes", run=run)
    }
    return lines + [f"seed {seed}: {share:.0%} of its disk is free" for seed, share in disks.items() if share < DISK]


def metric_views(old: Scrape, new: Scrape) -> list[View]:
    """Make a table for each run that the exporter knows."""
    runs: dict[str, set[tuple[str, int]]] = {}
    for name in ("qttdm_env_steps_total", "qttdm_seed_state"):
        for own, _ in new.samples.get(name, []):
            runs.setdefault(own["run"], set()).add((own["task"], int(own["seed"])))
    return [
        View(
            f"{run}: {', '.join(sorted({task for task, _ in seeds}))}",
            [row(old, new, {"run": run, "task": task, "seed": str(seed)}) for task, seed in sorted(seeds)],
            troubles=troubles(new, run),
        )
        for run, seeds in sorted(runs.items())
    ] or [View("no run has reported yet", [])]


def scrape(url: str) -> Scrape:
    """Ask the exporter. ConfigError, one line, if nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - the address is the user's own
            return Scrape.of(answer.read().decode(), time.monotonic())
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"{url}: no metrics ({getattr(reason, 'strerror', None) or reason}); they are on the cluster's head node, "
            f"where `qttdm cluster train` says: --url http://127.0.0.1:PORT/metrics"
        ) from None


def top(url: str, once: bool, console: Console | None = None) -> None:
    """Show all runs until Ctrl-C; once, or where there is no terminal: after two scrapes, and no more."""
    console = console or Console()
    scrapes = deque([scrape(url)])
    if once or not console.is_terminal:
        time.sleep(2 * EVERY)
        print_views(metric_views(scrapes[0], scrape(url)), console)
        return
    with suppress(KeyboardInterrupt), Display(console, whole_screen=True) as display:
        while True:
            views = metric_views(scrapes[0], scrapes[-1])
            display.show(*views)
            time.sleep(EVERY)
            try:
                scrapes.append(scrape(url))
            except ConfigError as error:  # it comes back by itself
                display.show(*views, View(str(error), []))
                time.sleep(EVERY)
            while scrapes[-1].time - scrapes[0].time > SPEED_OVER:
                scrapes.popleft()

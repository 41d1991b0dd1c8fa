"""`qttdm top`: is it well, what is the bottleneck, when is it done: live in a terminal, from the exporter itself.

exporter --/metrics, every 2 s--> Scrape --two of them--> one table for each run, and what is wrong
"""

from __future__ import annotations

import time
import urllib.request
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from qttdm.common.config import ConfigError

EVERY = 2.0  # seconds between two looks; processes report that often
SPEED_OVER = 30.0  # seconds over which speeds are taken
STUCK = 120.0  # seconds without an update or an episode that are worth a line
PLAIN_WIDTH = 160  # columns, where there is no terminal
DISK = 0.1  # free share of a disk below which it is worth a line


@dataclass(frozen=True)
class Scrape:
    """All that the exporter said at one time."""

    time: float
    """seconds, of any clock"""
    samples: dict[str, list[tuple[dict[str, str], float]]]
    """by name: labels and value"""

    @staticmethod
    def of(text: str, now: float) -> Scrape:
        """From what /metrics answers."""
        samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
        return Scrape(now, samples)

    def series(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """Those that have these labels."""
        found = self.samples.get(name, [])
        return [(own, value) for own, value in found if all(own.get(label) == labels[label] for label in labels)]

    def total(self, name: str, **labels: str) -> float | None:
        """Their sum; None if there are none."""
        values = [value for _, value in self.series(name, **labels)]
        return sum(values) if values else None

    def most(self, name: str, **labels: str) -> float | None:
        """The largest of them; None if there are none."""
        return max((value for _, value in self.series(name, **labels)), default=None)


@dataclass(frozen=True)
class Pair:
    """Two scrapes, for what is counted per second."""

    old: Scrape
    new: Scrape

    def speed(self, name: str, **labels: str) -> float | None:
        """Of a counter; None before there are two."""
        before, now, seconds = self.old.total(name, **labels), self.new.total(name, **labels), self.seconds
        return None if before is None or now is None or seconds <= 0 else (now - before) / seconds

    @property
    def seconds(self) -> float:
        """Between them."""
        return self.new.time - self.old.time


COLUMNS = (
    *("seed", "is", "steps", "left", "eval", "return", "steps/s", "upd/s"),
    *("learner", "stale", "saved", "died"),
)


def row(pair: Pair, labels: dict[str, str]) -> list[str]:
    """The columns of one seed."""
    new = pair.new
    done, target = new.most("qttdm_env_steps_total", **labels), new.most("qttdm_target_env_steps", **labels)
    spent = new.most("qttdm_run_seconds", **labels)
    states = [own["state"] for own, value in new.series("qttdm_seed_state", **labels) if value == 1]
    left = spent * max(0.0, target / done - 1) if spent and done and target else None
    return [
        labels["seed"],
        states[0] if states else "-",
        f"{done:,.0f} ({done / target:.0%})" if done is not None and target else "-",
        _duration(left),
        _number(new.most("qttdm_evaluation_return", **labels), ".1f"),
        _number(new.most("qttdm_episode_return_last", **labels), ".1f"),
        _number(pair.speed("qttdm_env_steps_total", **labels), ".1f"),
        _number(pair.speed("qttdm_updates_total", **labels), ".1f"),
        busiest(pair, labels),
        _number(new.most("qttdm_staleness_updates", **labels), ".0f"),
        _duration(new.most("qttdm_checkpoint_age_seconds", **labels)),
        _number(new.total("qttdm_process_restarts_total", **labels), ".0f"),
    ]


def busiest(pair: Pair, labels: dict[str, str]) -> str:
    """What the learner does most, and the share of its time."""
    name = "qttdm_learner_seconds_total"
    activities = {own["activity"] for own, _ in pair.new.series(name, **labels)}
    speeds = {activity: pair.speed(name, **labels, activity=activity) or 0.0 for activity in activities}
    if not sum(speeds.values()):
        return "-"
    most = max(speeds, key=lambda activity: speeds[activity])
    return f"{speeds[most] / sum(speeds.values()):.0%} {most.replace('_', ' ')}"


def troubles(scrape: Scrape, run: str) -> list[str]:
    """A line for each thing that a person should look at: docs/operations.md."""
    lines = []
    for own, up in scrape.series("qttdm_process_up", run=run):
        if not up:
            age = scrape.most("qttdm_process_heartbeat_age_seconds", **own)
            lines.append(f"seed {own['seed']}: {own['component']} {own['index']} is silent for {_duration(age)}")
    for own, age in scrape.series("qttdm_progress_age_seconds", run=run):
        if age > STUCK:
            lines.append(f"seed {own['seed']}: no update and no episode for {_duration(age)}")
    for own, number in scrape.series("qttdm_failures_total", run=run):
        if number:
            lines.append(f"seed {own['seed']}: {number:.0f} of {own['component']} {own['index']}: {own['kind']}")
    disks = {
        own["seed"]: free / (scrape.most("qttdm_disk_size_bytes", **own) or 1)
        for own, free in scrape.series("qttdm_disk_free_bytes", run=run)
    }
    lines += [f"seed {seed}: {share:.0%} of its disk is free" for seed, share in disks.items() if share < DISK]
    return lines


def components(pair: Pair, run: str) -> list[list[str]]:
    """Of each component: how many report of how many, processors, memory, decisions per second."""
    rows = []
    for component in dict.fromkeys(own["component"] for own, _ in pair.new.series("qttdm_process_up", run=run)):
        labels = {"run": run, "component": component}
        up = [value for _, value in pair.new.series("qttdm_process_up", **labels)]
        memory = pair.new.total("qttdm_process_resident_bytes", **labels)
        rows.append(
            [
                component,
                f"{sum(up):.0f} of {len(up)}",
                _number(pair.speed("qttdm_process_cpu_seconds_total", **labels), ".2f"),
                "-" if memory is None else f"{memory / 2**30:.1f} GiB",
                _number(pair.speed("qttdm_acted_total", **labels), ".1f"),
            ]
        )
    return rows


def screen(pair: Pair) -> RenderableType:
    """All runs that the exporter knows."""
    seeds = {
        (own["run"], own["task"], own["seed"]): None
        for name in ("qttdm_env_steps_total", "qttdm_seed_state")
        for own, _ in pair.new.samples.get(name, [])
    }
    parts: list[RenderableType] = []
    for run in sorted({run for run, _, _ in seeds}):
        tasks = sorted({task for name, task, _ in seeds if name == run})
        table = _table(f"{run}: {', '.join(tasks)}", COLUMNS)
        for name, task, seed in sorted(seeds, key=lambda key: (key[1], int(key[2]))):
            if name == run:
                table.add_row(*row(pair, {"run": run, "task": task, "seed": seed}))
        processes = _table(None, ("component", "reporting", "processors", "memory", "decisions/s"))
        for cells in components(pair, run):
            processes.add_row(*cells)
        parts += [table, Text(), *([processes] if processes.rows else [])]
        parts += [Text(f"! {line}", style="bold red") for line in troubles(pair.new, run)]
        parts.append(Text())
    return Group(*parts) if parts else Text("no run has reported yet")


def scrape(url: str) -> Scrape:
    """ConfigError, one line, if nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return Scrape.of(answer.read().decode(), time.monotonic())
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"{url}: no metrics ({getattr(reason, 'strerror', None) or reason}); they are on the cluster's head node, "
            f"where `qttdm cluster train` says: --url http://127.0.0.1:PORT/metrics"
        ) from None


def top(url: str, once: bool, console: Console | None = None) -> None:
    """Until Ctrl-C; once, or where there is no terminal: after two looks, and no more. ConfigError as `scrape`."""
    console = console or Console()
    looks = deque([scrape(url)])
    if once or not console.is_terminal:
        time.sleep(2 * EVERY)
        if not console.is_terminal:
            console.width = PLAIN_WIDTH
        console.print(screen(Pair(looks[0], scrape(url))))
        return
    note = Text()
    with suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(Group(screen(Pair(looks[0], looks[-1])), note), refresh=True)
            time.sleep(EVERY)
            try:
                looks.append(scrape(url))
                note = Text()
            except ConfigError as error:  # it comes back by itself
                note = Text(str(error), style="red")
            while looks[-1].time - looks[0].time > SPEED_OVER:
                looks.popleft()


def _table(title: str | None, columns: tuple[str, ...]) -> Table:
    table: Any = Table(
        title=title, title_justify="left", box=None, padding=(0, 1), pad_edge=False, collapse_padding=True
    )
    for name in columns:
        table.add_column(name, justify="left" if name in ("is", "component", "learner") else "right")
    assert isinstance(table, Table)
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    """61.9 -> "0:01:01"."""
    return "-" if seconds is None else str(timedelta(seconds=int(seconds)))

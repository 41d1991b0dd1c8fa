"""What a person sees of a run on a cluster: a table with a line for each seed, live in a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0  # of plain output, so that a log of hours stays short
COLUMNS = (
    "seed",
    "state",
    "env steps",
    "return",
    "eval",
    "updates/s",
    "decisions/s",
    "idle",
    "fill",
    "stale",
    "restarts",
)


def row(seed: dict[str, Any], env_steps: int) -> list[str]:
    """The columns of one seed, from its part of ClusterRun.notice."""
    seconds = max(1e-9, seed.get("seconds", 0.0))
    spent = seed.get("spent", {})
    waited = spent.get("waiting_for_decisions", 0.0) + spent.get("waiting_for_batches", 0.0)
    done = seed.get("env_steps", 0)
    restarts = seed.get("actor_restarts", 0) + seed.get("environment_failures", 0) + seed.get("hung", 0)
    return [
        str(seed["seed"]),
        seed["state"],
        f"{done:,} ({done / env_steps:.0%})",
        _number(seed, "episode_return", ".1f"),
        _number(seed, "eval_return", ".1f"),
        _number(seed, "updates_per_second", ".1f"),
        _number(seed, "decisions_per_second", ".1f"),
        f"{waited / seconds:.0%}" if spent else "-",
        _number(seed, "replay_fill", ".0%"),
        _number(seed, "staleness", "d"),
        str(restarts),
    ]


def table(notice: dict[str, Any]) -> Table:
    """All seeds of a run."""
    shown = Table(title=f"{notice.get('name')}: {notice.get('task')}", title_justify="left", box=None, padding=(0, 1))
    for name in COLUMNS:
        shown.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for seed in notice.get("seeds", []):
        shown.add_row(*row(seed, notice["env_steps"]))
    return shown


def line(seed: dict[str, Any], env_steps: int) -> str:
    """One seed in one plain line."""
    cells = row(seed, env_steps)
    return " | ".join(
        [f"seed {cells[0]}", *[f"{name} {cell}" for name, cell in zip(COLUMNS[1:], cells[1:], strict=True)]]
    )


def _number(values: dict[str, Any], name: str, form: str) -> str:
    return format(values[name], form) if values.get(name) is not None else "-"


class ClusterProgress:
    """A live table in a terminal, a line for each seed now and then anywhere else. A context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, refresh_per_second=2)
        self._last_line = float("-inf")
        self._states: dict[int, str] = {}

    def show(self, notice: dict[str, Any]) -> None:
        """The newest state; plain output also when a seed's state changes."""
        if self._live is not None:
            self._live.update(table(notice))
            return
        states = {seed["seed"]: seed["state"] for seed in notice["seeds"]}
        now = time.monotonic()
        for seed in notice["seeds"]:
            changed = self._states.get(seed["seed"]) != seed["state"]
            moving = seed["state"] in ("running", "stopping") and now - self._last_line >= SECONDS_BETWEEN_LINES
            if changed or moving:
                self._console.print(Text(line(seed, notice["env_steps"])), soft_wrap=True, highlight=False)
        if any(self._states.get(seed) != state for seed, state in states.items()) or (
            now - self._last_line >= SECONDS_BETWEEN_LINES
        ):
            self._last_line = now
        self._states = states

    def __enter__(self) -> ClusterProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

"""What a person sees of a run on a cluster: a table with a line for each seed, live in a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0  # of plain output, so that a log of hours stays short
COLUMNS = {
    "seed": "seed",
    "state": "state",
    "env steps": "env steps",
    "return": "return",
    "eval": "eval",
    "updates/s": "updates\n/s",
    "decisions/s": "deci-\nsions/s",
    "idle": "idle",
    "fill": "fill",
    "stale": "stale",
    "restarts": "re-\nstarts",
}
"""Name of each, and how the table heads it: a run of half a million steps fits into 80 columns."""


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
        f"{done:,} {done / env_steps:.0%}",
        _return(seed, "episode_return"),
        _return(seed, "eval_return"),
        _number(seed, "updates_per_second", ".1f"),
        _number(seed, "decisions_per_second", ".1f"),
        f"{waited / seconds:.0%}" if spent else "-",
        _number(seed, "replay_fill", ".0%"),
        _number(seed, "staleness", "d"),
        str(restarts),
    ]


def table(notice: dict[str, Any]) -> Table:
    """All seeds of a run."""
    shown = Table(box=None, padding=(0, 1, 0, 0))
    for name, heading in COLUMNS.items():
        justify: Literal["left", "right"] = "left" if name == "state" else "right"
        shown.add_column(heading, justify=justify, vertical="bottom", no_wrap=True)
    for seed in notice["seeds"]:
        shown.add_row(*row(seed, notice["env_steps"]))
    return shown


def line(seed: dict[str, Any], env_steps: int) -> str:
    """One seed in one plain line, of what is known."""
    cells = zip(COLUMNS, row(seed, env_steps), strict=True)
    return " | ".join(f"{name} {cell}" for name, cell in cells if cell != "-")


def _number(values: dict[str, Any], name: str, form: str) -> str:
    return format(values[name], form) if values.get(name) is not None else "-"


def _return(values: dict[str, Any], name: str) -> str:
    return _number(values, name, ".1f" if abs(values.get(name) or 0) < 1000 else ".0f")


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

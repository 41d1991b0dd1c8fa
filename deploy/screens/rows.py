"""Draw the one table of `train`, `cluster train`, `cluster status` and `top`: a row for each seed.

progress.py (a run in this process), deploy/cluster/cluster_run.py, top.py (metrics) --View--> table, line
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 160  # columns, where there is no terminal


@dataclass(frozen=True)
class Row:
    """One seed; None where a number is not known (yet)."""

    seed: int
    state: str
    steps: float
    target: float
    """simulator steps to train for"""
    seconds_left: float | None = None
    episode_return: float | None = None
    """of the newest training episode"""
    eval_return: float | None = None
    """of the newest evaluation"""
    updates_per_second: float | None = None
    decisions_per_second: float | None = None
    idle: float | None = None
    """share of the learner's time spent waiting for decisions or batches"""
    fill: float | None = None
    """share of the replay's capacity"""
    staleness: float | None = None
    """updates"""
    restarts: float | None = None
    unit: str = "env steps"
    """of steps and target"""
    detail: str = ""
    """more in words, under the table and at the end of a plain line"""

    def cells(self) -> dict[str, str]:
        """Format all columns, by heading."""
        return {
            "seed": str(self.seed),
            "state": self.state,
            self.unit: f"{self.steps:,.0f} {self.steps / max(1, self.target):.0%}",
            "left": short_time(self.seconds_left),
            "return": _score(self.episode_return),
            "eval": _score(self.eval_return),
            "upd/s": _number(self.updates_per_second, ".1f"),
            "dec/s": _number(self.decisions_per_second, ".1f"),
            "idle": _number(self.idle, ".0%"),
            "fill": _number(self.fill, ".0%"),
            "stale": _number(self.staleness, ".0f"),
            "died": _number(self.restarts, ".0f"),
        }

    def line(self) -> str:
        """Format the known columns as one plain line."""
        known = [f"{name} {cell}" for name, cell in self.cells().items() if cell != "-"]
        return " | ".join([*known, self.detail] if self.detail else known)


@dataclass(frozen=True)
class View:
    """One run: its title, its seeds, what else is shown below, and what is wrong."""

    title: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    troubles: Sequence[str] = ()

    def __rich__(self) -> RenderableType:
        """Draw the title, the table and the lines below."""
        table = Table(box=None, padding=(0, 1, 0, 0))
        for number, row in enumerate(self.rows):
            for name in row.cells() if number == 0 else ():
                table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
            table.add_row(*row.cells().values())
        notes = [*(row.detail for row in self.rows if row.detail), *self.notes]
        parts = [Text(self.title)] if self.title else []
        alarms = [Text(f"! {trouble}", style="bold red") for trouble in self.troubles]
        return Group(*parts, table, *(Text(note, style="dim") for note in notes), *alarms)


def print_views(views: Sequence[View], console: Console | None = None) -> None:
    """Print the runs once; without a terminal no column is cut."""
    console = console or Console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    for view in views:
        console.print(view)


def time_left(env_steps: float | None, target: float | None, seconds: float | None) -> float | None:
    """Estimate the seconds until the end, at the pace of the whole run; None where that is not known."""
    return seconds * max(0.0, target / env_steps - 1) if seconds and env_steps and target else None


def short_time(seconds: float | None) -> str:
    """Format seconds: 59 -> "59s", 300 -> "5.0m", 36_000 -> "10.0h", 10**6 -> "11.6d"."""
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds:.0f}s"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _score(value: float | None) -> str:
    return _number(value, ".1f" if abs(value or 0) < 1000 else ".0f")

"""What a person sees while a run trains: one live panel in a terminal, and a line now and then anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0  # of plain output, so that a log of hours stays short
SECONDS_OF_SILENCE = 30.0  # of plain output, after which a sign of life is due
LOSSES = {"loss_state": "state", "loss_reward": "reward", "loss_continuation": "continuation", "loss_q": "Q"}


class Progress:
    """Shows a run's budget and newest numbers. A context manager, so that the terminal is always given back.

    with Progress(total_env_steps=100_000, max_minutes=30) as progress:
        progress.update(env_steps=500, episode_return=12.0)     # names as in common/metrics/lines.py, any subset
        progress.evaluation(500, mean=14.2, success=None)
    """

    def __init__(
        self,
        total_env_steps: int,
        max_minutes: float | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_minutes` and the time shown count from here, also in a resumed run; `clock` is in seconds."""
        self.total_env_steps = total_env_steps
        self.max_minutes = max_minutes
        self.values: dict[str, Any] = {}
        self._console = console or Console()
        self._clock = clock
        self._started = clock()
        self._last_line, self._last_sign = float("-inf"), clock()
        self._first_env_steps: int | None = None
        self._last_evaluation = "none yet"
        self._doing = "starting"
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(get_renderable=self.panel, console=self._console, refresh_per_second=2) if live else None

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        elif kind is None and self.values:
            self._print(self.line())

    def update(self, **values: Any) -> None:
        """Take over the newest values; plain output prints them at most every SECONDS_BETWEEN_LINES."""
        self.values.update(values)
        if self._first_env_steps is None and "env_steps" in values:
            self._first_env_steps = values["env_steps"]
        if not self._live and self._clock() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print(self.line())
            self._last_line = self._clock()

    def doing(self, what: str) -> None:
        """What is under way, for times when there is no news: an episode at the paper's size may take half an hour."""
        self._doing = what
        if not self._live and self._clock() - self._last_sign >= SECONDS_OF_SILENCE:
            self._print(what)

    def evaluation(self, env_steps: int, mean: float, success: float | None = None) -> None:
        """Show an evaluation's mean return, and its share of successes where the task tells."""
        solved = "" if success is None else f", success {success:.0%}"
        self._last_evaluation = f"{mean:.1f}{solved} at {env_steps:,}"
        self.note(f"evaluation at {env_steps:,} steps: return {mean:.1f}{solved}")

    def note(self, text: str) -> None:
        """Print one line that stays, above the panel where there is one."""
        self._print(text)

    def seconds_left(self) -> float | None:
        """Seconds until the first of the two budgets is spent; None before anything has been collected."""
        env_steps, elapsed = self.values.get("env_steps", 0), self._clock() - self._started
        collected = env_steps - (self._first_env_steps or 0)
        limits = []
        if collected > 0:  # at this session's pace: a resumed run's earlier steps took none of this time
            limits.append(max(0, self.total_env_steps - env_steps) * elapsed / collected)
        if self.max_minutes is not None:
            limits.append(max(0.0, self.max_minutes * 60 - elapsed))
        return min(limits) if limits else None

    def line(self) -> str:
        """The state in one plain line."""
        elapsed, left = self._times()
        parts = [self._steps(), f"return {self._number('episode_return', '.1f')}", f"eval {self._last_evaluation}"]
        parts += [f"{label} loss {self.values[name]:.3g}" for name, label in LOSSES.items() if self._known(name)]
        parts += [self._speeds(), f"elapsed {elapsed}", f"left {left}"]
        return " | ".join(parts)

    def panel(self) -> Panel:
        """The state as a panel, built anew at each refresh so that the clock runs between updates."""
        elapsed, left = self._times()
        losses = "  ".join(f"{label} {self._number(name, '.3g')}" for name, label in LOSSES.items())
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
        table.add_row("collected", Text(self._steps()))
        table.add_row("", ProgressBar(total=max(1, self.total_env_steps), completed=self.values.get("env_steps", 0)))
        for name, text in (
            ("last return", self._number("episode_return", ".1f")),
            ("last evaluation", self._last_evaluation),
            ("losses", losses),
            ("speed", self._speeds()),
            ("now", self._doing),
            ("time", f"{elapsed}, {left} left"),
        ):
            table.add_row(name, Text(text))
        return Panel(table, title="qttdm", title_align="left", width=78)

    def _steps(self) -> str:
        env_steps = self.values.get("env_steps", 0)
        return f"{env_steps:,} / {self.total_env_steps:,} env steps ({env_steps / max(1, self.total_env_steps):.0%})"

    def _speeds(self) -> str:
        decisions, updates = self._number("decisions_per_second", ".1f"), self._number("updates_per_second", ".1f")
        return f"{decisions} decisions/s, {updates} updates/s"

    def _times(self) -> tuple[str, str]:
        left = self.seconds_left()
        return _clock_time(self._clock() - self._started), "?" if left is None else _clock_time(left)

    def _known(self, name: str) -> bool:
        return self.values.get(name) is not None

    def _number(self, name: str, form: str) -> str:
        return format(self.values[name], form) if self._known(name) else "-"

    def _print(self, text: str) -> None:
        self._last_sign = self._clock()
        # soft_wrap and no highlighting: a log file gets the line as it is, neither cut at 80 columns nor coloured
        self._console.print(Text(text), soft_wrap=True, highlight=False)


def _clock_time(seconds: float) -> str:
    """61.9 -> "0:01:01"."""
    return str(timedelta(seconds=min(int(seconds), 10**9)))  # timedelta takes no more than it can count in days

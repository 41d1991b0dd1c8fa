"""Show tables that refresh, in a terminal and in a notebook with ipywidgets; print a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from qttdm.deploy.screens.rows import View

SECONDS_BETWEEN_LINES = 10.0  # of plain output for a seed, so that a log of hours stays short
SECONDS_OF_SILENCE = 30.0  # of plain output, after which a sign of life is due


class Display:
    """Show runs. A context manager, so that the terminal is always given back."""

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic, whole_screen: bool = False
    ) -> None:
        """`clock` is in seconds."""
        self._console, self._clock = console or Console(), clock
        self.views: Sequence[View] = ()
        self._lines: dict[tuple[str, int], tuple[str, str, float]] = {}  # state, line and time of each seed's last one
        self._last_line = clock()
        self.live: Live | None = None
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        if terminal or (self._console.is_jupyter and find_spec("ipywidgets") is not None):
            self.live = Live(
                get_renderable=self._draw, console=self._console, refresh_per_second=2, screen=whole_screen
            )

    def _draw(self) -> Group:
        """Draw the tables, and a bar where there is one seed alone."""
        rows = [row for view in self.views for row in view.rows]
        bars = [ProgressBar(max(1, row.target), row.steps, width=60) for row in rows] if len(rows) == 1 else []
        return Group(*self.views, *bars)

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()
        elif kind is None:
            self._print_lines(every=0.0)

    def show(self, *views: View) -> None:
        """Show the newest state; plain output prints a seed's line when its state changes, else every ten seconds."""
        self.views = views
        if not self.live:
            self._print_lines(SECONDS_BETWEEN_LINES)

    def note(self, text: str) -> None:
        """Print one line that stays, above the tables where they are."""
        self._last_line = self._clock()
        # soft_wrap and no highlighting: a log file gets the line as it is, neither cut at 80 columns nor coloured
        self._console.print(Text(text), soft_wrap=True, highlight=False)

    def sign_of_life(self, text: str) -> None:
        """Print this without a terminal if nothing has been printed for a while."""
        if not self.live and self._clock() - self._last_line >= SECONDS_OF_SILENCE:
            self.note(text)

    def _print_lines(self, every: float) -> None:
        for view in self.views:
            for row in view.rows:
                state, line, printed = self._lines.get((view.title, row.seed), ("", "", 0.0))
                due = self._clock() - printed >= every
                if row.state != state or (due and row.line() != line):
                    self._lines[view.title, row.seed] = row.state, row.line(), self._clock()
                    self.note(row.line())

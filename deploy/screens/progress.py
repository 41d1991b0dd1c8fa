"""Show a run that trains in this process: its row, its losses and what is under way."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from rich.console import Console

from qttdm.deploy.screens.display import Display
from qttdm.deploy.screens.rows import Row, View, time_left


class Progress(Display):
    """Show one run's budget and newest numbers.

    with Progress(total_steps=100_000, max_minutes=30) as progress:
        progress.update(env_steps=500, episode_return=12.0)     # names as in common/metrics/lines.py, any subset
        progress.evaluation(500, mean=14.2, success=None)
    """

    def __init__(
        self,
        total_steps: int,
        max_minutes: float | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        seed: int = 0,
        offline_updates: int = 0,
    ) -> None:
        """total_steps: environment steps, and `offline_updates`, each of which counts as one.

        `max_minutes` and the time shown count from here, also in a resumed run; `clock` is in seconds."""
        super().__init__(console, clock)
        self.total_steps, self.max_minutes, self.seed = total_steps, max_minutes, seed
        self.offline_updates = offline_updates
        self.values: dict[str, Any] = {}
        self._started = clock()
        self._evaluated: float | None = None
        self._doing = "starting"

    def update(self, **values: Any) -> None:
        """Take over the newest values."""
        self.values |= values
        self.show(self.view())

    def doing(self, what: str) -> None:
        """Say what is under way while no value changes: an episode at the paper's size may take half an hour."""
        self._doing = what
        self._redraw()
        self.sign_of_life(what)

    def evaluation(self, steps: int, mean: float, success: float | None = None) -> None:
        """Show an evaluation's mean return, and its share of successes where the task defines success."""
        self._evaluated = mean
        self._redraw()
        solved = "" if success is None else f", success {success:.0%}"
        self.note(f"evaluation at {steps:,} steps: return {mean:.1f}{solved}")

    def _redraw(self) -> None:
        """Change the table; plain output has one once there are values."""
        if self.live or self.values:
            self.views = (self.view(),)

    def view(self) -> View:
        """Make the table of one row, with what is under way below it."""
        v, elapsed = self.values, self._clock() - self._started
        done = v.get("env_steps", 0) + min(v.get("updates", 0), self.offline_updates)
        left = time_left(done, self.total_steps, v.get("wall_seconds"))
        if self.max_minutes is not None:
            allowed = max(0.0, self.max_minutes * 60 - elapsed)
            left = allowed if left is None else min(left, allowed)
        losses = [
            f"{name.removeprefix('loss_')} {value:.3g}"
            for name, value in v.items()
            if name.startswith("loss_") and value is not None
        ]
        row = Row(
            seed=self.seed,
            state="running",
            steps=done,
            target=self.total_steps,
            unit="updates" if self.offline_updates == self.total_steps else "env steps",
            seconds_left=left,
            episode_return=v.get("episode_return"),
            eval_return=self._evaluated,
            updates_per_second=v.get("updates_per_second"),
            decisions_per_second=v.get("decisions_per_second"),
            detail=f"losses: {', '.join(losses)}" if losses else "",
        )
        return View("", [row], [f"{timedelta(seconds=int(elapsed))}, {self._doing}"])

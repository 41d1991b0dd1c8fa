"""Show a run that trains in this process: its row, its losses and what is under way."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console

from qttdm.deploy.screens.display import Display
from qttdm.deploy.screens.rows import Row, View


class Progress(Display):
    """Show one run's budget and newest numbers.

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
        seed: int = 0,
    ) -> None:
        """`max_minutes` and the time shown count from here, also in a resumed run; `clock` is in seconds."""
        super().__init__(console, clock)
        self.total_env_steps, self.max_minutes, self.seed = total_env_steps, max_minutes, seed
        self.values: dict[str, Any] = {}
        self._started = clock()
        self._first_env_steps: int | None = None
        self._evaluated: float | None = None
        self._doing = "starting"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.values:  # the newest evaluation came after the newest values
            self.show(self.view())
        super().__exit__(kind, error, traceback)

    def update(self, **values: Any) -> None:
        """Take over the newest values."""
        self.values |= values
        if self._first_env_steps is None and "env_steps" in values:
            self._first_env_steps = values["env_steps"]
        self.show(self.view())

    def doing(self, what: str) -> None:
        """Say what is under way when there is no news: an episode at the paper's size may take half an hour."""
        self._doing = what
        if self.live:
            self.show(self.view())
        self.sign_of_life(what)

    def evaluation(self, env_steps: int, mean: float, success: float | None = None) -> None:
        """Show an evaluation's mean return, and its share of successes where the task defines success."""
        self._evaluated = mean
        if self.live:
            self.show(self.view())
        solved = "" if success is None else f", success {success:.0%}"
        self.note(f"evaluation at {env_steps:,} steps: return {mean:.1f}{solved}")

    def seconds_left(self) -> float | None:
        """Estimate the seconds until the first of the two budgets is spent; None before anything is collected."""
        env_steps, elapsed = self.values.get("env_steps", 0), self._clock() - self._started
        collected = env_steps - (self._first_env_steps or 0)
        limits = []
        if collected > 0:  # at this session's pace: a resumed run's earlier steps took none of this time
            limits.append(max(0, self.total_env_steps - env_steps) * elapsed / collected)
        if self.max_minutes is not None:
            limits.append(max(0.0, self.max_minutes * 60 - elapsed))
        return min(limits) if limits else None

    def view(self) -> View:
        """Make the table of one row, with what is under way below it."""
        v = self.values
        losses = [
            f"{name.removeprefix('loss_')} {v[name]:.3g}"
            for name in v
            if name.startswith("loss_") and v[name] is not None
        ]
        row = Row(
            seed=self.seed,
            state="running",
            env_steps=v.get("env_steps", 0),
            target=self.total_env_steps,
            seconds_left=self.seconds_left(),
            episode_return=v.get("episode_return"),
            eval_return=self._evaluated,
            updates_per_second=v.get("updates_per_second"),
            decisions_per_second=v.get("decisions_per_second"),
            detail=f"losses: {', '.join(losses)}" if losses else "",
        )
        elapsed = timedelta(seconds=int(self._clock() - self._started))
        return View("", [row], [f"{elapsed}, {self._doing}"])

"""Environments that break, in the middle of an episode or from the start."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import ray

from tests.fakes import Point

FOR_EVER = 10**6  # seconds


def sleep() -> None:
    """Other threads of the process go on."""
    time.sleep(FOR_EVER)


def hold_the_lock() -> None:
    """As a simulator that loops in C: no other thread of Python's ever gets a turn."""
    ctypes.PyDLL(None).sleep(FOR_EVER)


def fail() -> None:
    raise RuntimeError("the simulation has become unstable")


def not_finite() -> np.ndarray:
    """What it observes then."""
    return np.full(3, np.nan)


def wrong_shape() -> np.ndarray:
    """What it observes then."""
    return np.zeros(2)


FAULTS: dict[str, Callable[[], Any]] = {f.__name__: f for f in (sleep, hold_the_lock, fail, not_finite, wrong_shape)}


def to_come() -> Path:
    """A folder with a file for each fault that shall happen, once. All processes of a test's Ray know of it."""
    return Path(os.environ["RAY_TMPDIR"]) / "faults"


class Faulty(Point):
    """A Point that breaks at the 28th step of an episode, a decision's last, if there is a fault to come."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.age == 27:
            for name, fault in FAULTS.items():
                path = to_come() / name
                if path.exists():
                    path.unlink()
                    broken = fault()
                    return broken, *super().step(action)[1:]
        return super().step(action)


class FaultyEvaluations(Point):
    """A Point that breaks in evaluations, one fault to come after the other: files `<run's seed>-<number>-<name>`."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        *_, seed, actor = ray.get_runtime_context().get_actor_name().split("/")
        if actor == "evaluator":
            for path in sorted(to_come().glob(f"{seed.removeprefix('seed-')}-*"))[:1]:
                path.unlink()
                FAULTS[path.name.rpartition("-")[2]]()
        return super().step(action)


class BrokenForActors(Point):
    """A Point that can only be made where the test has allowed it, in the driver's process."""

    def __init__(self, render_mode: str | None = None) -> None:
        if "MAY_MAKE_ENVIRONMENTS" not in os.environ:
            raise RuntimeError("no licence on this machine")
        super().__init__()


gymnasium.register("BrokenForActors-v0", BrokenForActors, max_episode_steps=80)
gymnasium.register("Faulty-v0", Faulty, max_episode_steps=80)
gymnasium.register("FaultyEvaluations-v0", FaultyEvaluations, max_episode_steps=80)

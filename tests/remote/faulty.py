"""Environments that break, in the middle of an episode or from the start; the seed of the episode says how."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import gymnasium
import numpy as np

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


FAULTS = (sleep, hold_the_lock, fail)


class Faulty(Point):
    """A Point that breaks at the 24th step of every third episode or so, in one of the three ways."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        answer = super().reset(seed=seed)
        self.fault = self.np_random.choice([None, None, None, None, None, None, *FAULTS])
        return answer

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.fault is not None and self.age == 24:
            self.fault()
        return super().step(action)


class BrokenForActors(Point):
    """A Point that can only be made where the test has allowed it, in the driver's process."""

    def __init__(self, render_mode: str | None = None) -> None:
        if "MAY_MAKE_ENVIRONMENTS" not in os.environ:
            raise RuntimeError("no licence on this machine")
        super().__init__()


gymnasium.register("BrokenForActors-v0", BrokenForActors, max_episode_steps=80)
gymnasium.register("Faulty-v0", Faulty, max_episode_steps=80)

"""Environments that break in the middle of an episode, each in its own way; the seed of the episode says whether."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
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


class Faulty(Point):
    """A Point in which `fault` is called at the 24th step of every fourth episode or so."""

    def __init__(self, fault: Callable[[], None], render_mode: str | None = None) -> None:
        super().__init__()
        self.fault = fault

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        answer = super().reset(seed=seed, options=options)
        self.breaks = self.np_random.random() < 0.25
        return answer

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.breaks and self.age == 24:
            self.fault()
        return super().step(action)


for name, fault in {"Sleeps": sleep, "HoldsTheLock": hold_the_lock, "Fails": fail}.items():
    gymnasium.register(f"{name}-v0", Faulty, max_episode_steps=80, kwargs={"fault": fault})

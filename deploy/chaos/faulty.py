"""A pendulum that breaks, once for each file that the attack puts into a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.classic_control.pendulum import PendulumEnv

FOLDER = "QTTDM_CHAOS_FAULTS"
"""environment variable that names it"""


def hang() -> np.ndarray:
    """Take longer than anything waits."""
    time.sleep(3600)
    raise RuntimeError("nothing ended it")


def fail() -> np.ndarray:
    """Raise, as a simulation that has become unstable."""
    raise RuntimeError("planted by the attack")


FAULTS: dict[str, Callable[[], np.ndarray]] = {
    "nan": lambda: np.full(3, np.nan, np.float32),
    "shape": lambda: np.zeros(2, np.float32),
    "raise": fail,
    "hang": hang,
}
"""what is observed instead, by the name of the file"""


class FaultyPendulum(PendulumEnv):
    """Gymnasium's, and at times what FAULTS says."""

    def __init__(self) -> None:
        super().__init__()  # without frames, and so without a video at the end

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Step, and break if there is a file."""
        observation, *others = super().step(action)
        for name, fault in FAULTS.items():
            try:
                (Path(os.environ[FOLDER]) / name).unlink()
            except (FileNotFoundError, KeyError):
                continue
            observation = fault()
        return observation, *others

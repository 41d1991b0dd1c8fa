"""A batch of windows: what replay hands to the learner.

A window starts at any decision of an episode and holds up to L consecutive ones. One that starts within the last L-1
decisions is padded behind the episode's end with zeros and masked: so every decision can come first in a window, which
is the place that planning (TDM) and Q-learning (QT) use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batch:
    """B windows of L steps. Values of padded steps are zeros."""

    observations: np.ndarray
    """float32 [B, L+1, M]"""
    actions: np.ndarray
    """float32 [B, L, N]"""
    rewards: np.ndarray
    """float32 [B, L]"""
    terminated: np.ndarray
    """bool [B, L]: the task ended after this step, nothing follows it"""
    mask: np.ndarray
    """bool [B, L]: the step exists (True) or is padding"""
    returns_to_go: np.ndarray
    """float32 [B, L]: sum of gamma^k * reward from this step to the end of its episode"""

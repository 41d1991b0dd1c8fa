"""A batch of windows: what replay hands to the learner.

A window starts at any decision of an episode and holds up to L consecutive ones. One that starts within the last L-1
decisions is padded behind the episode's end with zeros and masked: so every decision can come first in a window, which
is the place that planning (TDM) and Q-learning (QT) use.

    observations    [B, L+1, M]  and every other observation that DataSpec names, under its name and in its dtype
    actions         [B, L, N]    float32, or int64 of a discrete action
    rewards         [B, L]       float32
    terminated      [B, L]       bool: the task ended after this step, nothing follows it
    mask            [B, L]       bool: the step exists (True) or is padding
    returns_to_go   [B, L]       float32: sum of discount^k * reward from this step to the end of its episode;
                                 absent where DataSpec has no discount

and where DataSpec asks for `ends`

    last_observations   [B, M]   of the window's episode
    left                [B]      int64: decisions from the window's first to the last of its episode, both counted
    ends                [B]      bool: the task itself ended that episode; else a time limit did, and its return goes on
"""

from __future__ import annotations

import numpy as np

Batch = dict[str, np.ndarray]
"""B windows of L steps, in the order above. Values of padded steps are zeros."""

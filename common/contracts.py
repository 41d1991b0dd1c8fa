"""What everything around an agent knows of it: the data it needs, how it learns, how it acts. Nothing else.

    Agent --data--> replay, codec, wire         (built from DataSpec)
          --learner()--> Learner                (trained by the loop)
          --policy()--> Policy                  (acts in actors, evaluation and the planner service)

    planning policy = Planner over a DynamicsModel and, where there is one, a ValueFunction

A Tree maps names to arrays or tensors whose first dimension is the environment or the batch, so that joining,
splitting and padding are generic (common/trees.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one step's array."""

    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class DataSpec:
    """What an agent wants of each step; replay, the episode codec, batches and the wire are built from it."""

    observations: Mapping[str, ArraySpec]
    """by name, T+1 rows an episode: `observations` is what the task shows; others are such as `simulator_state`"""
    actions: ArraySpec
    """T rows: float32 in [-1, 1], or int64 in [0, choices)"""
    window: int
    """L, consecutive decisions of a training window"""
    discount: float | None
    """of the returns-to-go; None: none are computed"""
    choices: int | None = None
    """of a discrete action; None: actions are continuous"""


def vector_data(obs_dim: int, action_dim: int, window: int, discount: float | None) -> DataSpec:
    """The data of a task with one vector observed and a continuous action."""
    return DataSpec({"observations": ArraySpec((obs_dim,))}, ArraySpec((action_dim,)), window, discount)

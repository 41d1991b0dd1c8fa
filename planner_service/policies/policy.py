"""Policies: what chooses actions for E environments at once, episode by episode.

`MPCPolicy` plans (Algorithm 2); `GreedyPolicy` is the paper's QT ablation. Both own their copy of the networks, in
eval mode, and take new weights between decisions. Both keep nothing else: what an episode carries from one decision to
the next is its `EpisodeState`, so that `decide` serves whichever episodes are due, and an episode's actions do not
depend on the company. `begin` and `act` are that for environments in lockstep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from qttdm.common.seeding import derive_seed
from qttdm.common.weights import Weights
from qttdm.planner_service.planners.mppi import PlanState


class Policy(Protocol):
    """What actors need of a policy."""

    decided: Decisions | None
    """what `act` decided last; None if nothing yet, or if another process decides"""

    @property
    def weights_version(self) -> int:
        """Of the networks that act."""

    def load(self, weights: Weights) -> None:
        """Take new network weights."""

    def begin(self, seeds: list[int], exploration: float) -> None:
        """Start one episode in each of len(seeds) environments; exploration in [0, 1], 0 when evaluating."""

    def act(self, observations: np.ndarray) -> np.ndarray:
        """float32 [E, M] -> float32 [E, N] in [-1, 1]."""


@dataclass
class EpisodeState:
    """What one episode carries from decision to decision."""

    generator: torch.Generator
    exploration: float
    """in [0, 1], 0 when evaluating"""
    plan: PlanState | None = None
    """the warm start, E = 1; None where nothing is planned"""


@dataclass(frozen=True)
class Decisions:
    """One decision for each of some episodes."""

    actions: np.ndarray
    """float32 [E, N] in [-1, 1]"""
    values: np.ndarray
    """float32 [E], the return expected from here on, discounted: of the best sequence found, or the QT's"""
    iterations: int
    """the planner's; 0 where nothing is planned"""
    terminal: np.ndarray
    """float32 [E], the part of `values` that is the terminal value's; 0 where nothing is planned"""
    std: np.ndarray
    """float32 [E], of the planner's last Gaussian, mean over horizon and action dimensions; 0 likewise"""

    @property
    def finite(self) -> np.ndarray:
        """bool [E]: numbers that one can act on? Networks overflow on observations far beyond all they have seen."""
        return np.isfinite(self.actions).all(axis=1) & np.isfinite(self.values)


def freeze(networks: nn.Module) -> None:
    """Eval mode, no gradients: a policy's networks are never trained."""
    networks.eval()
    networks.requires_grad_(False)


def seeded_generator(seed: int, device: torch.device) -> torch.Generator:
    """A generator of its own for one episode."""
    return torch.Generator(device).manual_seed(derive_seed(seed, "policy"))
